"""Long and large: whether memory, file handles and speed stay as they are. For every night.

    python launch/soak.py steps --to=runs/soak.json          # 20,000 small steps, by either feed
    python launch/soak.py images --to=runs/load-images.json  # 100,000 images in one COCO file
    python launch/soak.py files --to=runs/load-files.json    # prediction of 5,000 files, 50 broken

Each part runs the command that a person starts, or opens what training opens, in a process of
its own, and watches that process from outside by /proc (so Linux with glibc alone). What falls
short of its limit is named at the end, and the exit status is 1.

Two numbers tell of memory: what is in use, by the allocator's own count of what it has given out
and not got back (Python's objects with it), and what the process has of the machine. The second
moves with what the allocator keeps for later, too, and the system takes that back and gives it
again as it likes, so the growth is that of the first. To count all of it slows Python down.

"steps": the embedded set, a network of two channels, with evaluations, pictures and checkpoints
between, twice: as it is, and counted. The first tenth is the warm-up. After it, least squares over
all samples of the counted run give the growth of the memory in use. Of the other run file handles
are told at the end of the warm-up, at their most, and at the last step; and the last tenth's
throughput is compared with that of the tenth behind the warm-up, by seconds of the processor,
which other work on the machine changes little, and by the wall's clock beside it.
"images": opening a training set of 1/8, 1/4, 1/2 and all of the images: seconds of the processor
and peak memory, each also per image; and the exponent e of n^e that fits them best, what an empty
Python with the same libraries takes left out.
"files": exit status, what is listed, and the growth of memory over the files.
"""

import argparse
import ctypes
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from boxseg_jax.training import origin

ROOT = Path(__file__).resolve().parents[1]
# What is asked for: a run of 100,000 steps may not grow by more than 50 MiB, for example.
MAX_GROWTH = 0.5  # MiB per 1,000 steps
MAX_GROWTH_OF_FILES = 4.0  # MiB per 1,000 files
LEAST_THROUGHPUT = 0.95
MAX_EXPONENT = 1.1
_WARM_UP = 0.1
_PART = 0.1  # of the steps whose throughput is compared
_POLL = 0.1  # seconds
_KEPT = 50  # samples in the JSON file


class Sample(NamedTuple):
  """What a process looks like at some point.

  Attributes:
    done: steps or files.
    wall: seconds.
    processor: seconds, of all of its threads.
    in_use: MiB that it has asked for and not given back: what a leak makes more of.
    memory: MiB that it has of the machine, in memory or swapped out. Pages of files are left out.
    handles: open files, sockets and the like.
    threads: their number.
  """

  done: int
  wall: float
  processor: float
  in_use: float
  memory: float
  handles: int
  threads: int


def sample(pid, done, noted):
  """A Sample of a process, with what `note_memory` has noted of it; None where it has ended."""
  proc = Path(f"/proc/{pid}")
  try:
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    handles = len(os.listdir(proc / "fd"))
  except OSError:
    return None
  if "RssAnon" not in status:  # it has ended, and waits to be asked
    return None
  ticks = int(fields[11]) + int(fields[12])
  return Sample(
    done,
    time.monotonic(),
    ticks / os.sysconf("SC_CLK_TCK"),
    float(noted.read_text()),
    sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 2**10,
    handles,
    int(fields[17]),
  )


class _MallInfo(ctypes.Structure):
  """What mallinfo2(3) gives back."""

  _fields_ = tuple(
    (name, ctypes.c_size_t)
    for name in (
      *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
      *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
    )
  )


def note_memory(path, seconds):
  """Writes the MiB in use into a file, now and again and again, in a thread of this process."""
  libc = ctypes.CDLL("libc.so.6")
  libc.mallinfo2.restype = _MallInfo
  file = open(path, "w")  # noqa: SIM115  the thread writes as long as there is a process

  def note():
    found = libc.mallinfo2()
    file.seek(0)
    file.write(f"{(found.uordblks + found.hblkhd) / 2**20:16.4f}")  # one length, so never a mixture
    file.flush()

  def keep_noting():
    while True:
      time.sleep(seconds)
      note()

  note()
  threading.Thread(target=keep_noting, daemon=True).start()


_NOTED = f"""
import runpy, sys
runpy.run_path({str(Path(__file__).resolve())!r})["note_memory"](sys.argv[1], float(sys.argv[2]))
sys.argv = ["python", *sys.argv[3:]]
"""
_PROGRAM = "from boxseg_jax import main; main.run()"


def watch(code, args, progress, *, log, counted):
  """Runs a program.

  Args:
    code: Python.
    args: its arguments, a list of texts.
    progress: () -> how far it is, a whole number.
    log: path for what it says; beside it lies what is noted of its memory.
    counted: Python's small objects are in use, too. Else it keeps them in blocks of its own, whose
      use nobody counts, and is faster by half.

  Returns:
    (exit status, a Sample whenever progress had changed).
  """
  samples, last, noted = [], 0, log.with_suffix(".memory")
  command = [sys.executable, "-c", _NOTED + code, str(noted), str(_POLL), *args]
  env = os.environ | ({"PYTHONMALLOC": "malloc"} if counted else {})
  with open(log, "w") as told:
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=told, stderr=subprocess.STDOUT)
    while process.poll() is None:
      done = progress()
      seen = sample(process.pid, done, noted) if done > last else None
      if seen:
        samples.append(seen)
        last = done
      time.sleep(_POLL)
  return process.returncode, samples


def growth(samples):
  """Least squares of the memory in use, MiB per 1,000 done."""
  done, in_use = (np.array([getattr(s, k) for s in samples]) for k in ("done", "in_use"))
  return 1000 * float(np.polyfit(done, in_use, 1)[0])


def _between(samples, low, high):
  return [s for s in samples if low <= s.done <= high]


def _cost(samples):
  """(processor, wall) milliseconds of each step between the first and the last sample."""
  first, last = samples[0], samples[-1]
  count = (last.done - first.done) / 1000
  return (last.processor - first.processor) / count, (last.wall - first.wall) / count


def _in_use(samples, warm_up):
  """What a part's JSON says of the memory in use behind the warm-up."""
  warm = [s for s in samples if s.done >= warm_up]
  thinned = samples[:: math.ceil(len(samples) / _KEPT)]
  return {
    "in_use_mib": _three(warm, "in_use", 2),
    "growth_mib_per_1000": round(growth(warm), 4),
    "samples": len(warm),
    "in_use_mib_by_done": [[s.done, round(s.in_use, 2)] for s in thinned],
  }


def _held(samples, warm_up):
  """What a part's JSON says of what the process has of the machine behind the warm-up."""
  warm = [s for s in samples if s.done >= warm_up]
  return {
    "own_mib": _three(warm, "memory", 1),
    "handles": _three(warm, "handles", 0),
    "threads": _three(warm, "threads", 0),
  }


def _three(warm, field, digits):
  values = [round(getattr(s, field), digits) for s in warm]
  return {"after_warm_up": values[0], "most": max(values), "end": values[-1]}


# --- Steps ---


def steps(count, pipeline, folder):
  """A training of many small steps.

  Args:
    count: steps, at least 100.
    pipeline: as `data.pipeline`.
    folder: of the runs.

  Returns:
    What is known of it, by name.
  """
  warm_up, part = round(_WARM_UP * count), round(_PART * count)
  counted = _trained(folder / f"counted-{pipeline}", count, pipeline, counted=True)
  workdir = folder / f"steps-{pipeline}"
  samples = _trained(workdir, count, pipeline, counted=False)
  first = _cost(_between(samples, warm_up, warm_up + part))
  last = _cost(_between(samples, count - part, count))
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {
    "command": _shown(_training(workdir, count, pipeline), folder),
    "steps": count,
    "warm_up_steps": warm_up,
    **_in_use(counted, warm_up),
    **_held(samples, warm_up),
    "processor_ms_per_step": {"first_tenth": round(first[0], 3), "last_tenth": round(last[0], 3)},
    "wall_ms_per_step": {"first_tenth": round(first[1], 3), "last_tenth": round(last[1], 3)},
    "throughput_of_last_tenth": {
      "processor": round(first[0] / last[0], 4),
      "wall": round(first[1] / last[1], 4),
    },
    "evaluations": sum("eval/miou" in row for row in rows),
    "result": json.loads((workdir / "result.json").read_text())["foreground_iou"],
  }


def _trained(workdir, count, pipeline, *, counted):
  """Samples of a training."""
  if workdir.exists():
    sys.exit(f"{workdir} holds an earlier run, whose steps are over: give another --folder")
  progress, log = _Tail(workdir / "metrics.jsonl").step, workdir.with_suffix(".log")
  args = _training(workdir, count, pipeline)
  status, samples = watch(_PROGRAM, args, progress, log=log, counted=counted)
  if status or not samples or samples[-1].done < count:
    sys.exit(f"the training failed:\n{log.read_text()[-2000:]}")
  return samples


def _training(workdir, count, pipeline):
  settings = {
    "data.pipeline": pipeline,
    "data.canvas": "(24, 24)",
    "data.batch_size": 2,
    "data.workers": 2,
    "data.mask_fraction": 0.25,
    "data.shapes.num_train": 64,
    "data.shapes.num_eval": 8,
    "model.width": 2,
    "loss.bootstrap": "soft",
    "loss.teacher": "self",
    "loss.bootstrap_start": 0.02,  # every step behind the warm-up does the same
    "loss.bootstrap_ramp": 0.02,
    "optimizer.learning_rate": 1e-3,
    "train.num_steps": count,
    "train.log_every": max(count // 400, 1),
    "train.eval_every": count // 20,
    "train.checkpoint_every": count // 100,
    "eval.box_images": 8,
    "eval.pictures": 2,
  }
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  return [f"--workdir={workdir}", *flags]


class _Tail:
  """The newest step in a growing `metrics.jsonl`, reading only what has come."""

  def __init__(self, path):
    self._path, self._place, self._newest = path, 0, 0

  def step(self):
    if self._path.exists():
      with open(self._path) as file:
        file.seek(self._place)
        whole, _, _ = file.read().rpartition("\n")
      self._place += len(whole.encode()) + bool(whole)
      rows = [json.loads(line) for line in whole.splitlines()]
      self._newest = max([self._newest, *(row["step"] for row in rows)])
    return self._newest


def short_of_steps(rows):
  """Sentences about what falls short, of `steps` by feed."""
  for name, row in rows.items():
    handles, throughput = row["handles"], row["throughput_of_last_tenth"]["processor"]
    if row["growth_mib_per_1000"] > MAX_GROWTH:
      yield f"{name}: memory grows by {row['growth_mib_per_1000']} MiB per 1,000 steps"
    if handles["end"] > handles["after_warm_up"]:
      yield f"{name}: {handles['after_warm_up']} file handles have become {handles['end']}"
    if throughput < LEAST_THROUGHPUT:
      yield f"{name}: the last tenth has {throughput:.1%} of the throughput of the first"


# --- Images ---


def images(counts, folder):
  """Opening training sets of some sizes, each in a process of its own.

  Args:
    counts: numbers of images, the largest last.
    folder: for the files.

  Returns:
    What is known of it, by name.
  """
  pool = folder / "pool"
  write_photos(pool, counts[-1])
  empty = _opened(0)
  rows = {}
  for count in counts:
    root = folder / f"coco-{count}"
    write_coco(root, pool, count)
    opened = _opened(root)
    rows[count] = opened | {
      "json_mib": round((root / "train" / "instances.json").stat().st_size / 2**20, 1),
      "ms_per_image": round(1000 * (opened["processor_s"] - empty["processor_s"]) / count, 4),
      "kib_per_image": round(1024 * (opened["peak_mib"] - empty["peak_mib"]) / count, 3),
    }
    print(count, rows[count], flush=True)
  exponents = {
    name: round(_exponent(list(rows), [row[name] - empty[name] for row in rows.values()]), 3)
    for name in ("processor_s", "peak_mib")
  }
  return {"empty": empty, "by_images": rows, "exponent": exponents}


def write_photos(folder, count):
  """Small photos that all differ, or all of them would be told as equal."""
  folder.mkdir(parents=True, exist_ok=True)
  ground = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
  ground = np.asarray(Image.fromarray(ground).resize((64, 48)))
  for number in range(count):
    path = folder / f"{number:06}.jpg"
    if not path.exists():
      photo = ground.copy()
      # The number in black and white blocks, which JPEG keeps.
      bits = np.array([number >> bit & 1 for bit in range(24)], np.uint8).reshape(4, 6)
      photo[:32, :48] = np.kron(255 * bits, np.ones((8, 8), np.uint8))[..., None]
      Image.fromarray(photo).save(path, quality=80)


def write_coco(root, pool, count, objects=7):
  """A COCO set of the first photos, as many objects in each as COCO has, all with polygons."""
  split = root / "train"
  split.mkdir(parents=True, exist_ok=True)
  if not (split / "images").exists():
    (split / "images").symlink_to(pool.resolve())
  turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
  ring = np.stack([np.cos(turns), np.sin(turns)], axis=-1)
  rng = np.random.default_rng(0)
  entries, annotations = [], []
  for number in range(count):
    entries.append({"id": number, "file_name": f"{number:06}.jpg", "height": 48, "width": 64})
    middles, radii = rng.uniform((12, 12), (52, 36), (objects, 2)), rng.uniform(3, 11, objects)
    for middle, radius in zip(middles, radii, strict=True):
      points = np.round(middle + radius * ring, 2)
      low, high = points.min(0), points.max(0)
      annotations.append(
        {
          "id": len(annotations),
          "image_id": number,
          "category_id": 1 + len(annotations) % 3,
          "bbox": [*low.tolist(), *(high - low).tolist()],
          "area": float(np.prod(high - low)),
          "iscrowd": 0,
          "segmentation": [points.ravel().tolist()],
        }
      )
  categories = [{"id": 1 + n, "name": name} for n, name in enumerate(("star", "crescent", "sun"))]
  content = {"images": entries, "annotations": annotations, "categories": categories}
  (split / "instances.json").write_text(json.dumps(content))


def _opened(root):
  """What `open_training_set` takes in a process of its own; root 0 = its libraries alone."""
  done = subprocess.run(
    [sys.executable, __file__, "open", f"--to={root}"],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    sys.exit(f"{root} cannot be opened: {done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def _open(root):
  import resource

  from boxseg_jax import config as configuration
  from boxseg_jax.data import coco, training_set  # noqa: F401, as an open set has it

  config = configuration.get_config()
  config.data.source, config.data.root = "coco", str(root)
  config.data.class_names = ("background", "star", "crescent", "sun")
  config.data.canvas = (48, 64)
  wall, processor = time.perf_counter(), time.process_time()
  if str(root) != "0":
    opened = training_set.open_training_set(config, report=lambda line: print(line[:200]))
    assert len(opened.reader)
  content = {
    "processor_s": round(time.process_time() - processor, 2),
    "wall_s": round(time.perf_counter() - wall, 2),
    "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1),
  }
  print(json.dumps(content))


def _exponent(counts, values):
  return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def short_of_images(found):
  """Sentences about what falls short, of `images`."""
  for name, exponent in found["exponent"].items():
    if exponent > MAX_EXPONENT:
      yield f"{name} grows with the number of images to the power of {exponent}"


# --- Files ---


def files(count, folder):
  """Prediction of many files, every hundredth of them broken.

  Args:
    count: files.
    folder: for the files.

  Returns:
    What is known of it, by name.
  """
  photos, results, workdir = folder / "photos", folder / "results", folder / "network"
  write_photos(photos, count)
  broken = break_files(photos)
  shutil.rmtree(results, ignore_errors=True)
  trained = [sys.executable, "-m", "boxseg_jax.main", *_training(workdir, 100, "numpy")]
  subprocess.run(trained, cwd=ROOT, check=True, capture_output=True)
  args = ["--mode=predict", f"--workdir={workdir}", f"--images={photos}", f"--to={results}"]
  log, done = folder / "files.log", results / "labels"

  def progress():
    return len(os.listdir(done)) if done.exists() else 0

  status, samples = watch(_PROGRAM, args, progress, log=log, counted=True)
  warm_up = round(_WARM_UP * count)
  told = log.read_text()
  listed = (results / "broken.txt").read_text()
  return {
    "command": _shown(args, folder),
    "files": count,
    "broken": len(broken),
    "predicted": len(os.listdir(done)),
    "exit_status": status,
    "listed": sum(name in listed for name in broken),
    "lines_told": len(told.splitlines()),
    "traceback": "Traceback" in told,
    **_in_use(samples, warm_up),
    **_held(samples, warm_up),
  }


def break_files(folder):
  """Breaks every hundredth photo of a folder, by turns in four ways; their names."""
  names = sorted(os.listdir(folder))[50::100]
  for number, name in enumerate(names):
    content = (folder / name).read_bytes()
    ways = (b"", content[: len(content) // 2], b"no image at all", content[:20])
    (folder / name).write_bytes(ways[number % len(ways)])
  return names


def short_of_files(found):
  """Sentences about what falls short, of `files`."""
  expected = {
    "exit_status": 3,
    "listed": found["broken"],
    "predicted": found["files"] - found["broken"],
    "traceback": False,
  }
  for name, value in expected.items():
    if found[name] != value:
      yield f"{name} is {found[name]}, but must be {value}"
  if found["growth_mib_per_1000"] > MAX_GROWTH_OF_FILES:
    yield f"memory grows by {found['growth_mib_per_1000']} MiB per 1,000 files"


def _shown(args, folder):
  return shlex.join(["python", "-m", "boxseg_jax.main", *args]).replace(f"{folder}/", "runs/")


def main():
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  parser.add_argument("part", choices=("steps", "images", "files", "open"))
  parser.add_argument("--steps", type=int, default=20_000)
  parser.add_argument("--images", type=int, default=100_000)
  parser.add_argument("--files", type=int, default=5_000)
  parser.add_argument("--pipelines", nargs="+", default=("numpy", "tf"))
  parser.add_argument("--folder", type=Path, help="for what is written on the way; it is kept")
  parser.add_argument("--to", type=Path, required=True, help="JSON file to write")
  given = parser.parse_args()
  if given.part == "open":  # a set, told of on the standard output: what `images` starts
    _open(given.to)
    return
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory(prefix="boxseg-soak-") as passing:
    folder = given.folder or Path(passing)
    folder.mkdir(parents=True, exist_ok=True)
    if given.part == "steps":
      found = {name: steps(given.steps, name, folder) for name in given.pipelines}
      short = [*short_of_steps(found)]
    elif given.part == "images":
      found = images([given.images // parts for parts in (8, 4, 2, 1)], folder)
      short = [*short_of_images(found)]
    else:
      found = files(given.files, folder)
      short = [*short_of_files(found)]
  content = {**origin.here(), "load_before": round(load, 2), given.part: found, "short": short}
  given.to.parent.mkdir(parents=True, exist_ok=True)
  given.to.write_text(json.dumps(content, indent=2) + "\n")
  print(json.dumps({**found, "short": short}, indent=2))
  sys.exit(bool(short))


if __name__ == "__main__":
  main()
