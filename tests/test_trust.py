"""What comes from strangers harms nobody: names, claims, pickles, descriptions, the network.

HTML pages: tests/test_report.py and tests/test_data_survey.py.
"""

import ast
import copy
import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_cases import annotation, make_image, make_record, read_json, write_json, write_set
from PIL import Image
from places import ROOT
from safetensors.numpy import save_file

from boxseg_jax import config as configuration
from boxseg_jax import data
from boxseg_jax.apps import card, label, predict, tables
from boxseg_jax.data import coco, datumaro, formats, images, labels, mask_files, split
from boxseg_jax.errors import InputError
from boxseg_jax.models import pretrained
from boxseg_jax.training import origin, run, saved, snapshots

CLASSES = ("background", "car", "person")
OUTSIDE = (
  "../../secret.png",
  "/etc/secret.png",
  "a/../../../secret.png",
  "..\\secret.png",
  "C:\\secret.png",
  "",
  ".",
  "a\x00.png",
  "a\x1b[2J.png",
  "\ud800.png",
  "a" * 300 + ".png",
)

ONE_DEVICE = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}

# --- A run in a child process without a network; other tests use what it leaves ---

_OFFLINE = """
import json, sys
TRIED = []
def guard(event, arguments):
  reaching = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
  if event in reaching + ("urllib.Request",):
    TRIED.append([event, repr(arguments)])
    raise OSError("there is no network")
sys.addaudithook(guard)
folder = sys.argv[1]
sys.path.insert(0, "tests")
from pathlib import Path
from test_run import small
from boxseg_jax.apps import check_data, export, predict
from boxseg_jax.training import loop
config = small(train__num_steps=2, train__checkpoint_every=1, eval__pictures=0, eval__box_images=0,
               loss__teacher="self", data__batch_size=4)
workdir, quiet = Path(folder) / "run", lambda line: None
check_data.run(config, Path(folder) / "check", report=quiet)
loop.train(config, workdir, report=quiet)
predict.run(config, workdir, images=[folder + "/photo.png"], report=quiet)
export.run(config, workdir, to=folder + "/model.safetensors")
import socket
try:
  socket.create_connection(("example.org", 80))
except OSError as error:
  print(error)
print(json.dumps(TRIED))
"""


def said_by_child(program, folder):
  """Standard output of a Python program in a process of its own, which has to end well."""
  done = subprocess.run(
    [sys.executable, "-c", program, str(folder)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=ONE_DEVICE,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
  """(folder, what the child process said) of a check, a training, a prediction and an export."""
  folder = tmp_path_factory.mktemp("offline")
  Image.fromarray(make_image((20, 30), 0)).save(folder / "photo.png")
  return folder, said_by_child(_OFFLINE, folder)


def test_nothing_reaches_for_the_network(offline):
  folder, said = offline
  *_, refused, tried = said.splitlines()
  assert refused == "there is no network"
  # The last line of the program itself, which shows that the guard is awake, and no other.
  assert [event for event, _ in json.loads(tried)] == ["socket.getaddrinfo"]
  assert "example.org" in tried
  for name in ("run/network.json", "run/predictions/labels/photo.png", "model.safetensors"):
    assert (folder / name).exists()


# --- Paths ---


def evil_set(folder, name):
  """A set of one image whose file lies outside of it, where there can be such a file."""
  write_set(folder / "set" / "train", [annotation(1)], images=["a.png"])
  Image.fromarray(make_image((20, 30), 1)).save(folder / "set" / "secret.png")
  content = read_json(folder / "set" / "train")
  content["images"][0]["file_name"] = name
  write_json(folder / "set" / "train", content)
  return str(folder / "set")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("source", [coco, labels])
def test_names_in_annotation_files_stay_in_the_set(tmp_path, source, name):
  root = evil_set(tmp_path, name)
  with pytest.raises(InputError, match="instances.json") as error:
    source.load(root, "train", CLASSES)
  told = str(error.value)
  assert "image 1" in told and told.isascii() and "\x1b" not in told and len(told) < 400


def test_links_and_folders_in_the_set_are_ordinary(tmp_path):
  """Large sets are often folders of links; whoever has the set made them."""
  root = evil_set(tmp_path, "linked/a.png")
  elsewhere = tmp_path / "elsewhere"
  (tmp_path / "set" / "train" / "images").rename(elsewhere)
  (tmp_path / "set" / "train" / "images").mkdir()
  (tmp_path / "set" / "train" / "images" / "linked").symlink_to(elsewhere)
  (record,) = coco.load(root, "train", CLASSES)
  assert record.read_image().shape == (20, 30, 3)


@pytest.mark.parametrize("source", sorted(data._SOURCES))
def test_no_source_gives_names_that_lead_out(monkeypatch, source):
  """Results are written under the names of the images: of TFDS and of datumaro, too."""
  config = configuration.get_config().data
  config.source = source
  for name in ("../x.png", "/x.png"):
    monkeypatch.setitem(data._SOURCES, source, lambda *_, name=name: [make_record(0, name=name)])
    for part in ("train", "train[0:1]"):
      with pytest.raises(InputError, match=r"made/instances.json: the name .* leads out"):
        data.load_records(config, part)


def test_photographs_of_other_formats_lie_in_the_set(tmp_path):
  def item(name, path, size=None):
    media = SimpleNamespace(path=str(path), has_size=size is not None, size=size)
    return SimpleNamespace(id=name, media=media)

  datumaro._require_own(str(tmp_path), item("a", tmp_path / "deep" / "a.jpg", (20, 30)))
  for bad in (
    item("../a", tmp_path / "a.jpg"),
    item("a", tmp_path / ".." / "a.jpg"),
    item("a", "/etc/passwd"),
    item("a", tmp_path / "a.jpg", (60000, 60000)),
  ):
    with pytest.raises(InputError, match="image (a|../a)"):
      datumaro._require_own(str(tmp_path), bad)


def test_lists_of_yolo_stay_in_the_set(tmp_path, monkeypatch):
  root = tmp_path / "set"
  for folder in (root / "train" / "images", tmp_path / "train" / "images", tmp_path / "other"):
    folder.mkdir(parents=True)
    Image.fromarray(make_image((4, 5), 0)).save(folder / "a.png")
  where = root / "data.yaml"

  def found(given, **more):
    return formats._photos(where, {"train": given, **more}, "train")

  inside = [root / "train" / "images" / "a.png"]
  assert found("train/images") == found("../train/images") == inside  # Roboflow means this
  assert found(str(root / "train" / "images")) == inside
  for given, more in (("../other", {}), (str(tmp_path / "other"), {}), ("other", {"path": ".."})):
    with pytest.raises(InputError, match="data.yaml: there is no folder or list"):
      found(given, **more)
  (root / "train.txt").write_text("./train/images/a.png\n")
  assert found("train.txt") == inside
  monkeypatch.chdir(tmp_path)  # names are those below the root, however that is written
  for given in ("train/images", "../train/images", "train.txt"):
    photos = formats._photos(Path("set/data.yaml"), {"train": given}, "train")
    assert photos == [Path("set/train/images/a.png")]
  (root / "train.txt").write_text("train/images/../../../other/a.png\n")
  with pytest.raises(InputError, match=r"train.txt: .*other/a.png lies outside"):
    found("train.txt")


def test_predictions_stay_in_their_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for folder in ("x", "b"):
    Path(folder).mkdir()
  paths = ["x/../a.png", "b/c.png", "../" + tmp_path.name + "/d.png", str(tmp_path / "e.png")]
  for path in paths:
    Image.fromarray(make_image((4, 5), 0)).save(path)
  for name in predict._names([Path(path) for path in paths]).values():
    assert not name.is_absolute() and ".." not in name.parts


# --- Claims: what is measured is the most memory that a process ever had ---

_CLAIMS = """
import base64, json, resource, struct, sys, types, zlib
sys.modules["datumaro"] = types.ModuleType("datumaro")
from pathlib import Path
from boxseg_jax.data import cityscapes, coco, formats, images, labels
from boxseg_jax.errors import InputError
import numpy as np
folder, side = Path(sys.argv[1]), 60000

def chunk(kind, data):
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def png(depth, color):
  header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
  body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
  return b"\\x89PNG\\r\\n\\x1a\\n" + body

for name, content in {"grey": png(8, 0), "rgb": png(8, 2), "deep": png(16, 0)}.items():
  (folder / f"{name}.png").write_bytes(content)
whole = (folder / "small.jpg").read_bytes()
at = whole.index(b"\\xff\\xc0")
(folder / "big.jpg").write_bytes(whole[:at + 5] + struct.pack(">HH", side, side) + whole[at + 9:])
polygons = {"imgWidth": side, "imgHeight": side, "objects": []}
(folder / "polygons.json").write_text(json.dumps(polygons))
meta = {"size": {"height": side, "width": side}, "objects": [
  {"geometryType": "polygon", "classTitle": "a", "points": {"exterior": [[0, 0], [1, 0], [0, 1]]}}]}
(folder / "supervisely.json").write_text(json.dumps(meta))

def bomb():
  packer = zlib.compressobj(1)  # by parts: what is measured is the most memory there ever was
  packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
  packed = base64.b64encode(packed).decode()
  return lambda: formats._pasted({"data": packed, "origin": [0, 0]}, (20, 30))

def runs(code):
  region = coco.Region(1, 1, code)
  return lambda: coco.read_labels("file.json", "a.png", (20, 30), [region])

at = lambda name: str(folder / name)
readers = [
  *[lambda n=n: images.read_image(at(n)) for n in ("grey.png", "rgb.png", "deep.png", "big.jpg")],
  lambda: images.read_reduced(at("big.jpg"), None, (48, 48)),
  lambda: images.image_size(at("big.jpg")),
  lambda: images.read_image("in memory", content=(folder / "rgb.png").read_bytes()),
  lambda: images.read_index_image(at("grey.png")),
  lambda: images.read_color_labels(at("rgb.png")),
  lambda: images.read_instance_image(at("deep.png")),
  lambda: labels.read_values(at("grey.png"), (20, 30), table={0: 0}),
  lambda: cityscapes.draw_instances(at("polygons.json")),
  lambda: formats._supervisely_item(folder / "supervisely.json", "train", ["a"]),
  lambda: coco.load(str(folder), "claims", ("background", "car")),
  runs({"size": [side, side], "counts": [side * side]}),
  runs({"size": [20, 30], "counts": [side * side]}),
  runs([[0, 0, side, 0, side, side]]),
  runs([[0, 0, 60, 40] * 40000]),
]
packed = bomb()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
told = []
for read in readers:
  try:
    read()
    told.append("was read")
  except InputError as error:
    told.append(str(error))
try:
  packed()
except ValueError as error:
  told.append(f"bitmap: {error}")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([grown // 1024, told]))
"""


def test_sizes_that_are_claimed_are_not_believed(tmp_path):
  Image.fromarray(make_image((16, 16), 0)).save(tmp_path / "small.jpg")
  folder = write_set(tmp_path / "claims", [annotation(1)], images=["a.png"])
  content = read_json(folder)
  content["images"][0] |= {"height": 60000, "width": 60000}
  write_json(folder, content)
  grown, told = json.loads(said_by_child(_CLAIMS, tmp_path))
  # The smallest of these claims, a map of bits, would take 429 MiB.
  assert grown < 50, f"{grown} MiB were taken"
  assert len(told) == 19 and "was read" not in told, told
  assert sum("60000" in text or "3600000000" in text for text in told) >= 12, told
  for text in told:
    assert text.startswith((str(tmp_path), "in memory", "file.json: image a.png", "bitmap")), text


# --- Pickles ---

FIRED = []


def _fire():
  FIRED.append("a pickle has run code")


class Evil:
  """Runs `_fire` when it is unpickled."""

  def __reduce__(self):
    return _fire, ()


PAYLOAD = pickle.dumps(Evil())


@pytest.fixture(autouse=True)
def _nothing_fires():
  FIRED.clear()
  yield
  assert not FIRED


def test_the_pickle_would_run_code():
  pickle.loads(PAYLOAD)
  assert FIRED
  FIRED.clear()


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pkl", "w.bin", "w.ckpt", "w.safetensors"])
def test_weights_are_never_pickles(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(PAYLOAD)
  hint = "" if name.endswith("safetensors") else "never opened"
  for read in (
    lambda: pretrained.read_metadata(str(path)),
    lambda: pretrained.load_encoder({}, str(path), encoder="resnet18"),
    lambda: saved.load(path),
  ):
    with pytest.raises(InputError, match=rf"{name}: cannot be read as a safetensors file.*{hint}"):
      read()


def test_files_of_a_run_are_never_pickles(tmp_path):
  config = configuration.get_config()
  for name in ("config.json", "split.json", "starts.json", "network.json", "masks.jsonl"):
    (tmp_path / name).write_bytes(PAYLOAD + b"\n")
  (tmp_path / "snapshots").mkdir()
  evil = np.empty(1, object)
  evil[0] = Evil()
  np.savez(tmp_path / "snapshots" / "0000001.npz", targets=evil)
  for read, name in (
    (lambda: run.refuse_other_configuration(config, tmp_path), "config.json"),
    (lambda: split.read_lists(str(tmp_path / "split.json")), "split.json"),
    (lambda: origin.starts(tmp_path), "starts.json"),
    (lambda: saved.load(tmp_path), "network.json"),
    (lambda: snapshots.kept_targets(tmp_path), "0000001.npz"),
  ):
    with pytest.raises(InputError, match=name):
      read()
  (tmp_path / "snapshots" / "0000001.npz").write_bytes(PAYLOAD)
  with pytest.raises(InputError, match="0000001.npz"):
    snapshots.kept_targets(tmp_path)


def test_nothing_in_a_checkpoint_is_executed(offline, tmp_path):
  """Each file of one in turn is a pickle, and then the text of a program."""
  whole = offline[0] / "run"
  checkpoint = whole / "checkpoints" / "2"
  files = sorted(path.relative_to(whole) for path in checkpoint.rglob("*") if path.is_file())
  assert len(files) > 3
  for number, name in enumerate(files):
    evil = tmp_path / f"{number}"
    shutil.copytree(whole, evil, ignore=shutil.ignore_patterns("pictures", "tensorboard", "1"))
    (evil / name).write_bytes(PAYLOAD if number % 2 else b"import test_trust; test_trust._fire()")
    try:
      saved.load(evil, step=2)
    except InputError as error:
      assert str(evil) in str(error)
    assert not FIRED, name


def test_nothing_of_ours_unpickles_evaluates_or_extracts():
  """Nor opens arrays of objects, runs a shell, or loads YAML that may make objects."""
  modules = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch"}
  calls = {"eval", "exec", "compile", "__import__", "system", "popen", "extract", "extractall"}
  calls |= {"unpack_archive", "unsafe_load", "full_load", "read_pickle"}
  for path in sorted((ROOT / "boxseg_jax").rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      where = f"{path.name}:{getattr(node, 'lineno', 0)}"
      if isinstance(node, ast.Import):
        assert not modules & {name.name.split(".")[0] for name in node.names}, where
      if isinstance(node, ast.ImportFrom):
        assert node.module.split(".")[0] not in modules, where
      if isinstance(node, ast.Call):
        called = node.func
        # `compile` of `re` and of jitted programs makes no code of a text.
        if isinstance(called, ast.Name):
          assert called.id not in calls, where
        elif isinstance(called, ast.Attribute):
          assert called.attr not in calls - {"compile"}, where
        for keyword in node.keywords:
          value = getattr(keyword.value, "value", None)
          assert not (keyword.arg in ("allow_pickle", "shell") and value), where


# --- Descriptions ---


def _changes():
  """What is put where in the description of a network."""
  huge, deep = 10**400, {"a": [[[]]]}
  for value in (None, 5, "x", [], {}, ["a"], [1, 2], ["a", "a"], ["a", None], ["a"] * 3):
    yield ("class_names",), value
  for value in (None, [60000, 60000], [0, 32], [-1, 32], [32], [32.0, 32], ["32", 32], [huge, 1]):
    yield ("canvas",), value
  for value in (None, [], {}, {"name": "unet"} | deep, {"name": "os.system"}, {"name": ["unet"]}):
    yield ("model",), value
  for value in (huge, -1, 10**9, "16", None, 1.5, [16]):
    yield ("model", "width"), value
  for value in (10**9, 0, "4"):
    yield ("model", "levels"), value
  for name in ("norm", "dtype", "encoder"):
    for value in ("__class__", None, 5, {}):
      yield ("model", name), value
  for value in (None, [], {}, {"num_classes": 4}):
    yield ("loss",), value
  for name, value in (("extra", 1), ("num_classes", 99), ("mask_images", "2"), ("teacher", 5)):
    yield ("loss", name), value
  for value in (None, [1], "1111", [float("nan")] * 4, [[1, 2]] * 4, [1, 1, 0, 1], [1, -1, 1, 1]):
    yield ("loss", "class_weights"), value
  for value in (5, {}, {"fill_bands": 1, "mean_masks": 1}, {"fill_bands": [], "mean_masks": []}):
    yield ("loss", "box_priors"), value
  yield ("best_metric",), ["miou"]


def test_descriptions_of_networks_are_not_believed(offline, tmp_path):
  description = json.loads((offline[0] / "run" / "network.json").read_text())
  assert len(description["class_names"]) == 4
  arrays = pretrained.read_file(offline[0] / "model.safetensors")[1]
  for number, (place, value) in enumerate(_changes()):
    changed = copy.deepcopy(description) | {"step": 2}
    parent = changed
    for key in place[:-1]:
      parent = parent[key]
    parent[place[-1]] = value
    path = tmp_path / f"{number}.safetensors"
    save_file(arrays, path, metadata={"boxseg_jax": json.dumps(changed)})
    with pytest.raises(InputError) as error:
      saved.load(path)
    assert str(error.value).startswith(f"{path}: "), (place, value, str(error.value))
    assert len(str(error.value)) < 3000
  for text in ("[]", "null", "{", "[" * 100_000, '"x"', "{}", json.dumps({"model": 1})):
    (tmp_path / "network.json").write_text(text)
    with pytest.raises(InputError, match="network.json"):
      saved.load(tmp_path)


def test_a_changed_bit_of_exported_parameters_is_noticed(offline, tmp_path):
  whole = bytearray((offline[0] / "model.safetensors").read_bytes())
  header = 8 + int.from_bytes(whole[:8], "little")
  path = tmp_path / "model.safetensors"
  path.write_bytes(whole)
  saved.load(path)
  for place in np.random.default_rng(0).integers(header, len(whole), 20):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(InputError, match="model.safetensors: is damaged: it has changed since"):
      saved.load(path)
  # A file of an earlier version has no fingerprint.
  metadata, arrays = pretrained.read_file(offline[0] / "model.safetensors")
  save_file(arrays, path, metadata={"boxseg_jax": metadata["boxseg_jax"]})
  saved.load(path)


def test_headers_of_weights_are_not_believed(offline, tmp_path):
  whole = (offline[0] / "model.safetensors").read_bytes()
  path = tmp_path / "m.safetensors"
  length = int.from_bytes(whole[:8], "little")
  header = json.loads(whole[8 : 8 + length])
  name = next(key for key in header if key != "__metadata__")

  def written(change):
    changed = copy.deepcopy(header)
    change(changed)
    text = json.dumps(changed).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]

  files = [
    b"",
    whole[:4],
    whole[:-1],
    (2**63).to_bytes(8, "little") + whole[8:],
    (10**9).to_bytes(8, "little") + whole[8:],
    written(lambda h: h[name].update(shape=[2**40, 2**40])),
    written(lambda h: h[name].update(shape=[-1])),
    written(lambda h: h[name].update(data_offsets=[0, 2**60])),
    written(lambda h: h[name].update(dtype="object")),
    written(lambda h: h.pop(name)),
    written(lambda h: h.update({"params/more": h.pop(name)})),
    written(lambda h: h[name].update(dtype="I32")),
    written(lambda h: h.pop("__metadata__")),
    written(lambda h: h["__metadata__"].update(boxseg_jax="[]")),
  ]
  for content in files:
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
      saved.load(path)
    assert str(error.value).startswith(f"{path}: ")
  path.write_bytes(whole)
  assert saved.load(path).description["step"] == 2


@pytest.mark.parametrize(
  "text", ["", "[]", "null", "{", "[" * 100_000, '{"mask_ids": [[1]], "box_ids": []}', "\ud800"]
)
def test_damaged_files_of_a_run_are_named(tmp_path, text):
  for name in ("config.json", "split.json", "starts.json", "made_by.json"):
    content = json.dumps(5) if name == "starts.json" and text == "[]" else text
    if name == "config.json" and text.startswith('{"mask_ids"'):
      continue  # a configuration of other keys, which is told as such
    (tmp_path / name).write_bytes(content.encode(errors="surrogatepass"))
  config = configuration.get_config()
  model = SimpleNamespace(network=SimpleNamespace(description={}, variables={}, refiner=None))
  readers = {
    "split.json": lambda: split.read_lists(str(tmp_path / "split.json")),
    "starts.json": lambda: origin.starts(tmp_path),
    "config.json": lambda: run.refuse_other_configuration(config, tmp_path),
    "made_by.json": lambda: predict._refuse_other_predictions(config, model, tmp_path),
  }
  for name, read in readers.items():
    if (tmp_path / name).exists():
      with pytest.raises(InputError, match=name):
        read()


@pytest.mark.parametrize(
  "line",
  [
    "5",
    "{",
    '["a.png", "k", 5]',
    '["a.png", "k", [[0, [{"size": [60000, 60000], "counts": "ooo"}, 1]]]]',
    '["a.png", "k", [[0, [{"size": [20, 30], "counts": [1]}, 1]]]]',
    '["a.png", "k", [[0, [{"size": [20, 30]}, 1]]]]',
    '["a.png", "k", [[0, [{"counts": [600]}, 1]]]]',
    '["a.png", "k", [[0, [{"size": [60000, 60000], "counts": [3600000000]}, 1]]]]',
  ],
)
def test_a_damaged_journal_is_named(tmp_path, line):
  path = tmp_path / "masks.jsonl"
  path.write_text(line + "\n")
  with pytest.raises(InputError, match="masks.jsonl"):
    label._read_journal(path, {"a.png": "k"})


def test_masks_are_checked_before_pycocotools_has_them():
  """Which reads past the end of such codes, or never ends."""
  bad = {"size": [20, 30], "counts": "o" * 9 + "0"}
  record = make_record(0, mask=False)
  for segmentation in (bad, {"size": [20, 30], "counts": [2**62, 2**62, 2**62, 2**62 + 600]}):
    entry = {"id": 5, "bbox": [0, 0, 1, 1], "segmentation": segmentation}
    fake = SimpleNamespace(Bbox=lambda *_, **__: None)
    with pytest.raises(InputError, match="image000.png: annotation 5: .*cannot be read"):
      mask_files._shapes(fake, record, entry, {}, as_polygons=False)


# --- Programs that open what is written ---

NAMES = ("background", "a|b", "<script>x</script>", "=cmd|' /C calc'!A0", "x\n---\nlicense: mit\n")


def test_tables_of_markdown_keep_their_cells():
  text = tables.markdown(["arm", "masks", *NAMES], [["a|b\n", "<b>", *"12345"]])
  rows = text.splitlines()
  assert len(rows) == 3
  for row in rows:
    assert row.replace("\\|", "").count("|") == 8
  assert "<script" not in text and "<b>" not in text
  assert tables.markdown(["arm", "masks", "car"], [["plain", "18 %", "1.5"]]).splitlines()[2] == (
    "| plain | 18 %  |  1.5 |"
  )


def test_reviews_hold_no_formula_and_keep_their_cells():
  row = dict.fromkeys(label._FIELDS, 0.5)
  rows = [row | {"image": name, "class": name, "x": -1.5} for name in (*NAMES, "+1", "-1", "@a")]
  read = list(csv.DictReader(io.StringIO(label._as_csv(rows))))
  for given, found in zip(rows, read, strict=True):
    assert found["image"] in (given["image"], "'" + given["image"])
    assert not found["image"].startswith(("=", "+", "-", "@"))
    assert not found["class"].startswith(("=", "+", "-", "@"))
    assert float(found["x"]) == -1.5
  assert read[0]["image"] == "background"
  for line in label._as_markdown(rows).splitlines()[2:]:
    assert line.replace("\\|", "").count("|") == 10 and "<script" not in line


def test_cards_keep_names_in_their_place(offline):
  yaml, _ = pytest.importorskip("yaml"), pytest.importorskip("huggingface_hub")
  network = saved.load(offline[0] / "model.safetensors")._replace(class_names=NAMES)
  text = card.model_card(configuration.get_config(), network, offline[0] / "nowhere")
  assert text.startswith("---\n") and text.count("\n---\n") == 1
  facts, body = text.removeprefix("---\n").split("\n---\n")
  facts = yaml.safe_load(facts)
  assert facts["license"] == "unknown"
  assert facts["model-index" if "model-index" in facts else "library_name"]
  assert "<script" not in body
  assert [line for line in body.splitlines() if line.startswith("# ")] == [
    "# Segmentation of " + ", ".join(tables.cell(name) for name in NAMES[1:])
  ]


def test_formats_that_are_programs_are_not_opened(tmp_path):
  """Pillow hands PostScript to Ghostscript, whatever the file is called."""
  path = tmp_path / "photo.jpg"
  path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n")
  with Image.open(path) as opened:
    assert opened.format == "EPS"
  with pytest.raises(InputError, match=r"photo.jpg: cannot be read as an image"):
    images.read_image(str(path))


def test_messages_cannot_steer_the_terminal():
  error = InputError("a\x1b[2J\r\nb\x07\tc")
  assert str(error) == "a\\x1b[2J\\r\nb\\x07\tc"


def test_a_whole_journal_is_read_back(tmp_path):
  masks = np.random.default_rng(0).random((3, 20, 30)) < 0.3
  made = {
    index: mask_files.MadeMask(mask_files.encode((20, 30), 0, 0, mask), 0.5)
    for index, mask in enumerate(masks)
  }
  lines = [["a.png", "k", list(made.items())], ["b.png", "another", []]]
  path = tmp_path / "masks.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '["c.png", "k", [[0')
  assert label._read_journal(path, {"a.png": "k", "b.png": "k"}) == {"a.png": made}
