"""Data under fire: a hundred thousand damaged files, each read right or refused by name.

    python launch/nightly_fuzz.py [--inputs 100000] [--first 0] [--seed 0] [--keep fuzz_findings]

Input i is a pure function of the seed and i: a valid COCO file, label map, photograph or polygon
file of CityScapes, changed in one to a few places. A child process reads them, as a run does
before it trains: records, the check of every image, and an example of the batch contract of each
that is left. It has a limit of memory and may be killed for taking too long; a new one then goes
on behind that input. Findings (anything but a right reading or an `InputError` that names the file)
are kept with their input, and end the script with status 1.
"""

import argparse
import collections
import copy
import io
import json
import multiprocessing
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SECONDS = 10.0  # for one input
MEMORY = 1 << 30  # bytes that all inputs together may add to the address space of the child
GROWTH = 200 << 20  # bytes that one input may add to the most memory in use
SIZE = (20, 30)
CLASSES = ("background", "car", "person")

# --- Changes ---

_DEEP = "nested too deep"  # stands for lists in lists, which are written into the text alone
HOSTILE = (
  *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-320, 1e308, -1e308, 2**31, 2**63, -(2**63)),
  *(2**64, 10**400, float("nan"), float("inf"), float("-inf"), "", "0", "1", "a.png", "NaN"),
  *("../a.png", "/etc/passwd", "..\\a.png", "a\x00.png", "\ud800", "a" * 300, "/", ".", "b/./c"),
  *("<script>alert(1)</script>", "=1+1", "|", "\u202e", "\U0001f697", [], {}, [[]], [None], [1, 2]),
  *([0, 0, 60000, 60000], {"size": [60000, 60000], "counts": [3600000000]}, [float("nan")] * 4),
  *({"size": [20, 30], "counts": "PQ0"}, {"size": [20, 30], "counts": [600]}, {"counts": []}),
  *({"size": [20, 30], "counts": [2**62, 2**62, 2**62, 2**62 + 600]}, [[1, 1, 9, 1, 9, 9]], _DEEP),
)


def _places(value, path=()):
  """Paths of all values inside of a JSON value."""
  found = [path] if path else []
  inner = value.items() if isinstance(value, dict) else enumerate(value)
  for key, one in inner:
    found += _places(one, (*path, key)) if isinstance(one, dict | list) else [(*path, key)]
  return found


def _parent(value, path):
  for key in path[:-1]:
    value = value[key]
  return value


def change_json(rng, content):
  """Deletes, doubles, swaps or replaces a value of a JSON document, in place."""
  places = _places(content)
  # Most of what is read lies in annotations; all else is refused soon.
  inner = [place for place in places if place[0] == "annotations" and len(place) > 2]
  places = inner if inner and rng.random() < 0.6 else places
  path = places[rng.integers(len(places))]
  parent, key = _parent(content, path), path[-1]
  kind = rng.integers(6)
  if kind == 0:
    del parent[key]
  elif kind == 1 and isinstance(parent, list):
    parent.insert(key, parent[key])
  elif kind == 2:
    other = places[rng.integers(len(places))]
    parent[key] = copy.deepcopy(_parent(content, other)[other[-1]])
  elif kind == 3 and isinstance(parent[key], str):
    parent[key] = _changed_text(rng, parent[key])
  elif kind == 4 and isinstance(parent[key], int | float):
    parent[key] = parent[key] * int(rng.integers(-3, 50)) + int(rng.integers(-9, 9))
  else:
    parent[key] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])


def _as_text(rng, content):
  depth = int(rng.choice([70, 500, 900, 5000, 200_000]))
  return json.dumps(content).replace(json.dumps(_DEEP), "[" * depth + "]" * depth).encode()


def _changed_text(rng, text):
  characters = list(text)
  for _ in range(rng.integers(1, 4)):
    place = int(rng.integers(len(characters) + 1))
    characters[place : place + int(rng.integers(2))] = chr(int(rng.integers(128)))
  return "".join(characters)


def change_bytes(rng, content):
  """Flips, cuts out, inserts, repeats or truncates bytes."""
  content = bytearray(content)
  for _ in range(rng.integers(1, 5)):
    place = int(rng.integers(len(content) + 1))
    length = int(rng.integers(1, 1 + min(64, max(len(content), 1))))
    kind = rng.integers(6)
    if kind == 0 and place < len(content):
      content[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      content[place : place + length] = b""
    elif kind == 2:
      content[place:place] = rng.bytes(length)
    elif kind == 3:
      content[place:place] = content[place : place + length]
    elif kind == 4:
      content[place : place + length] = bytes([int(rng.choice([0, 255, 127, 128]))]) * length
    elif rng.random() < 0.3:
      del content[place:]
  return bytes(content)


def _chunks(content):
  """(kind, data) of the chunks of a PNG."""
  place, found = 8, []
  while place < len(content):
    (length,) = struct.unpack(">I", content[place : place + 4])
    found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
    place += length + 12
  return found


def _png(chunks):
  packed = b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in chunks
  )
  return b"\x89PNG\r\n\x1a\n" + packed


def change_png(rng, content):
  """Changes chunks and sets their checksums right, so that what is in them is looked at."""
  chunks = _chunks(content)
  for _ in range(rng.integers(1, 3)):
    at = int(rng.integers(len(chunks)))
    kind, data = chunks[at]
    choice = rng.integers(7)
    if choice == 0 and len(chunks) > 1:
      del chunks[at]
    elif choice == 1:
      chunks.insert(int(rng.integers(len(chunks))), chunks[at])
    elif choice == 2:
      sides = [int(rng.choice([0, 1, 19, 20, 30, 31, 60000, 2**31 - 1, 2**32 - 1])) for _ in "hw"]
      head = struct.pack(">IIBB", *sides, int(rng.choice([1, 2, 4, 8, 16])), int(rng.integers(8)))
      chunks[0] = (b"IHDR", head + chunks[0][1][10:])
    elif choice == 3:
      chunks[at] = (kind, change_bytes(rng, data))
    elif choice == 4:
      raw = zlib.compress(rng.bytes(int(rng.integers(1, 2000))) * int(rng.integers(1, 2000)))
      chunks[at] = (b"IDAT", raw)
    elif choice == 5:
      extra = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fcTL")
      bomb = b"a\0\0" + zlib.compress(b"b" * int(rng.integers(1 << 22)))
      data = (bomb, rng.bytes(20), _exif(rng))
      chunks.insert(1, (extra[rng.integers(len(extra))], data[rng.integers(3)]))
    else:
      chunks[at] = (rng.bytes(4), data)
  return _png(chunks)


def _exif(rng):
  exif = Image.Exif()
  exif[0x0112] = int(rng.integers(12))
  content = exif.tobytes()
  return change_bytes(rng, content) if rng.random() < 0.5 else content


def change_jpeg(rng, content):
  """Changes what the header claims: the size, the sampling, tables, or the orientation."""
  at = content.find(b"\xff\xc0")
  choice = rng.integers(3)
  if choice == 0 and at > 0:
    sides = [int(rng.choice([0, 1, 16, 20, 30, 4000, 60000, 65535])) for _ in "hw"]
    return content[: at + 5] + struct.pack(">HH", *sides) + content[at + 9 :]
  if choice == 1 and at > 0:
    place = at + int(rng.integers(4, 20))
    return content[:place] + rng.bytes(1) + content[place + 1 :]
  data = _exif(rng)[: 1 << 15]
  segment = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
  return content[:2] + segment + content[2:]


# --- Inputs ---


def _valid_coco(rng):
  height, width = SIZE
  mask = np.zeros(SIZE, np.uint8)
  mask[3:8, 2:12] = 1
  runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=2, append=2)))
  segmentations = (
    [[2, 3, 12, 3, 12, 8, 2, 8]],
    {"size": [height, width], "counts": runs.tolist()},
    {
      "size": [height, width],
      "counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode(),
    },
    [],
  )
  images = [
    {"id": 1, "file_name": "a.png", "height": height, "width": width},
    {"id": 2, "file_name": "b.jpg", "height": height, "width": width},
  ]
  annotations = [
    {
      "id": number,
      "image_id": int(rng.integers(1, 3)),
      "category_id": int(rng.choice([3, 7])),
      "bbox": [2, 3, 10, 5],
      "iscrowd": int(rng.random() < 0.1),
      "segmentation": segmentations[rng.integers(len(segmentations))],
    }
    for number in range(1, int(rng.integers(2, 5)))
  ]
  categories = [{"id": 7, "name": "person"}, {"id": 3, "name": "car"}]
  return {"images": images, "annotations": annotations, "categories": categories}


def _coded(array, kind, **options):
  content = io.BytesIO()
  Image.fromarray(array).save(content, kind, **options)
  return content.getvalue()


def _valid_photo(rng, kind):
  pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8)
  return _coded(pixels, kind, **({"progressive": bool(rng.integers(2))} if kind == "JPEG" else {}))


def _valid_map(rng):
  labels = Image.fromarray(rng.integers(0, 3, SIZE, np.uint8))
  labels = labels.convert("P") if rng.random() < 0.5 else labels
  content = io.BytesIO()
  labels.save(content, "PNG")
  return content.getvalue()


def _valid_polygons(rng):
  objects = [
    {"label": label, "polygon": rng.integers(0, 30, (4, 2)).tolist()}
    for label in rng.choice(["road", "car", "person", "cargroup", "license plate"], 3).tolist()
  ]
  return {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects}


def make_input(seed, number):
  """One input: (kind, name of the changed file, its content)."""
  rng = np.random.default_rng([seed, number])
  kind = str(rng.choice(["coco", "label", "jpeg", "png", "polygons"], p=[0.4, 0.2, 0.2, 0.1, 0.1]))
  if kind in ("coco", "polygons"):
    content = (_valid_coco if kind == "coco" else _valid_polygons)(rng)
    for _ in range(rng.integers(0, 4)):
      change_json(rng, content)
      if not content:
        break
    text = _as_text(rng, content)
    return kind, "instances.json", change_bytes(rng, text) if rng.random() < 0.1 else text
  content = {
    "label": lambda: _valid_map(rng),
    "jpeg": lambda: _valid_photo(rng, "JPEG"),
    "png": lambda: _valid_photo(rng, "PNG"),
  }[kind]()
  chance = rng.random()
  if chance < 0.05:
    changed = content
  elif chance < 0.5:
    changed = change_bytes(rng, content)
  else:
    changed = (change_jpeg if kind == "jpeg" else change_png)(rng, content)
  names = {"label": "labels/a.png", "jpeg": "images/b.jpg", "png": "images/a.png"}
  return kind, names[kind], changed


# --- Reading ---


def _write_valid(root):
  rng = np.random.default_rng(0)
  for name in ("images", "labels"):
    (root / "train" / name).mkdir(parents=True, exist_ok=True)
  split = root / "train"
  (split / "instances.json").write_text(json.dumps(_valid_coco(rng)))
  (split / "images" / "a.png").write_bytes(_valid_photo(rng, "PNG"))
  (split / "images" / "b.jpg").write_bytes(_valid_photo(rng, "JPEG"))
  (split / "labels" / "a.png").write_bytes(_valid_map(rng))


def read(root, kind, name, content):
  """Reads a data set with one changed file as a run does.

  Args:
    root: a folder of the set, `_write_valid` there before.
    kind: of the input.
    name: of the file in the split.
    content: its bytes.

  Returns:
    "read" or "refused".

  Raises:
    Whatever is wrong: AssertionError for a reading that is none, or what the reader raised.
  """
  from boxseg_jax.errors import InputError

  path = root / "train" / name
  before = path.read_bytes()
  path.write_bytes(content)
  try:
    refusals = (_read_polygons if kind == "polygons" else _read_set)(root, kind, path)
  except InputError as error:
    refusals = [str(error)]
  finally:
    path.write_bytes(before)
  for text in refusals:
    assert str(root) in text, f"a refusal that names no file: {text}"
    assert len(text) < 20000, f"a refusal of {len(text)} characters"
    text.encode(errors="backslashreplace")
  return "refused" if refusals else "read"


def _read_polygons(root, kind, path):
  from boxseg_jax.data import cityscapes

  values = cityscapes.draw_instances(str(path))
  claimed = json.loads(path.read_text())
  assert values.shape == (claimed["imgHeight"], claimed["imgWidth"]), values.shape
  assert values.min() >= 0 and values.max() < 34 * 1000
  return []


def _read_set(root, kind, path):
  from boxseg_jax.data import check, coco, labels
  from boxseg_jax.data.examples import ExampleReader
  from boxseg_jax.data.records import max_boxes

  source = coco if kind == "coco" else labels
  records = source.load(str(root), "train", CLASSES)
  facts = check.look_at(records, num_classes=len(CLASSES), workers=1)
  usable = check.usable(records, facts)
  if usable:
    hidden = np.zeros(len(usable), bool)
    reader = ExampleReader(usable, (16, 24), max_boxes(usable), hidden, cache=False)
    for index in range(len(usable)):
      require_contract(reader(index), reader.evaluation(index), len(CLASSES))
  return [problem for seen in facts for problem in seen.problems]


def require_contract(example, judged, num_classes):
  """Asserts what `boxseg_jax.batch` promises of an example, as it is made of a checked record.

  Args:
    example: for training.
    judged: the same for evaluation, with `full_labels`.
    num_classes: with the background.
  """
  from boxseg_jax.batch import padding_example

  canvas = example["image"].shape[:2]
  for key, like in padding_example(canvas, len(example["boxes"])).items():
    found = np.asarray(example[key])
    assert found.shape == like.shape, (key, found.shape)
    assert found.dtype == like.dtype, (key, found.dtype)
  low, high = example["boxes"][:, :2], example["boxes"][:, 2:]
  real = example["box_classes"] > 0
  assert np.isfinite(example["boxes"]).all()
  assert (low >= 0).all() and (high <= 1).all()
  assert (low[real] < high[real]).all()
  assert not example["boxes"][~real].any() and not example["box_is_crowd"][~real].any()
  assert example["box_classes"].max(initial=0) < num_classes
  assert ((example["extent"] > 0) & (example["extent"] <= 1)).all()
  for labels in (example["labels"], judged["labels"], judged["full_labels"]):
    known = set(np.unique(labels).tolist())
    assert known <= {*range(num_classes), 255}, known
  height, width = np.rint(example["extent"] * canvas).astype(int)
  beyond = np.ones(canvas, bool)
  beyond[:height, :width] = False
  assert (example["labels"][beyond] == 255).all() and not example["image"][beyond].any()
  assert example["has_mask"] or (example["labels"] == 255).all()
  assert example["valid"]


# --- The child ---


def _child(pipe, seed, first, last, root):
  """Reads inputs and tells of each; dies with the parent."""
  from boxseg_jax.data import check

  # A pool of threads would take longer than these few small files.
  check.feed.ahead = lambda function, items, workers, depth: map(function, items)
  warnings.simplefilter("ignore")
  warnings.simplefilter("error", RuntimeWarning)  # of numpy: NaN, infinity, what does not fit
  root = Path(root)
  _write_valid(root)
  _warm_up(root)
  used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
  for number in range(first, last):
    pipe.send((number, *_outcome(root, seed, number)))
  pipe.close()


def _warm_up(root):
  """What is imported late, and caches, is no input's fault."""
  for name in ("labels/a.png", "images/a.png", "images/b.jpg", "instances.json"):
    kind = "coco" if name.endswith("json") else "label"
    read(root, kind, name, (root / "train" / name).read_bytes())


def _outcome(root, seed, number):
  kind, name, content = make_input(seed, number)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    outcome, told = read(root, kind, name, content), ""
  except BaseException as error:
    outcome, told = f"{type(error).__name__}", traceback.format_exc()
  grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
  if grown > GROWTH:
    outcome, told = "memory", f"{grown >> 20} MiB more"
  return kind, outcome, told


# --- The parent ---


def run(inputs, seed, keep, *, first=0, report=print):
  """Reads inputs.

  Args:
    inputs: how many.
    seed: of all of them.
    keep: folder for findings.
    first: number of the first one.
    report: takes lines of text.

  Returns:
    (Counter of (kind, outcome), list of findings as text).
  """
  counts, findings, last = collections.Counter(), [], first + inputs
  context = multiprocessing.get_context("spawn")
  root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
  told = time.monotonic()
  try:
    while first < last:
      ours, theirs = context.Pipe(duplex=False)
      child = context.Process(target=_child, args=(theirs, seed, first, last, str(root)))
      child.start()
      theirs.close()
      limit = 120.0  # the first one waits for the imports
      try:
        while first < last:
          if not ours.poll(limit):
            raise TimeoutError(f"takes longer than {SECONDS:.0f} s")
          number, kind, outcome, text = ours.recv()
          counts[kind, outcome] += 1
          if outcome not in ("read", "refused"):
            findings.append(_kept(keep, seed, number, f"{outcome}\n{text}"))
          first, limit = number + 1, SECONDS
          if time.monotonic() - told > 60:
            told = time.monotonic()
            report(f"input {first} of {last}, {len(findings)} findings")
      except (EOFError, TimeoutError, ConnectionError) as error:
        child.kill()
        child.join()
        words = f"killed: {error or f'the process ended with {child.exitcode}'}"
        counts[make_input(seed, first)[0], "killed"] += 1
        findings.append(_kept(keep, seed, first, words))
        first += 1
      child.join()
  finally:
    shutil.rmtree(root, ignore_errors=True)
  return counts, findings


def _kept(keep, seed, number, text):
  kind, name, content = make_input(seed, number)
  folder = Path(keep) / f"{seed}-{number:06}-{kind}"
  folder.mkdir(parents=True, exist_ok=True)
  (folder / Path(name).name).write_bytes(content)
  (folder / "finding.txt").write_text(text, errors="backslashreplace")
  return f"{folder}: {text.strip().splitlines()[0]} ... {text.strip().splitlines()[-1]}"


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--inputs", type=int, default=100_000)
  parser.add_argument("--first", type=int, default=0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--keep", default="fuzz_findings")
  given = parser.parse_args()
  started = time.monotonic()
  counts, findings = run(given.inputs, given.seed, given.keep, first=given.first)
  seconds = time.monotonic() - started
  print(f"{given.inputs} inputs of seed {given.seed}: {given.inputs / seconds:.0f} inputs/s")
  for (kind, outcome), count in sorted(counts.items()):
    print(f"  {kind:9} {outcome:16} {count:7}")
  print(f"{len(findings)} findings")
  for text in findings[:50]:
    print(f"  {text}")
  sys.exit(1 if findings else 0)


if __name__ == "__main__":
  main()
