"""Measures how fast images are read, on one core: decoding alone, the feeds, and PyTorch's.

    python launch/bench_input.py configs/camvid.py --to=runs/input.json

Every row reads the same images and masks in the same order, without a cache. "decode" only makes
arrays of the files; the feeds of `boxseg_jax.data.feed` and the DataLoader also fit them to the
canvas and make batches. "DataLoader" does that as PyTorch's users write it (Pillow, resize,
default collation), in one worker process; "DataLoader, our reader" calls our reader instead.
All of it is pinned to one core, worker process included, and counted in seconds of that
processor, so that other work on the machine does not count; the wall's clock is given beside it.
Rows whose library is not installed are left out by name.
"""

import argparse
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import runpy
import shlex
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, features

_WARM_UP, _BEYOND = 4, 8  # batches that are not measured, so that what is read ahead cancels out
_BOX_FIELDS = ("boxes", "box_classes", "box_is_crowd")


def bench(reader, *, batch_size, num_batches, repeats):
  """(rows as name -> median images/s, rows left out as name -> why)."""
  total = _WARM_UP + num_batches + _BEYOND
  batches_of = {
    "decode": partial(_decoded, reader.records, batch_size, total),
    "feed numpy": partial(_feed, reader, "numpy", batch_size, total),
    "feed tf": partial(_feed, reader, "tf", batch_size, total),
    "DataLoader": partial(_loader, _PlainDataset(reader), batch_size, total),
    "DataLoader, our reader": partial(_loader, _ReaderDataset(reader), batch_size, total),
  }
  measured, left_out = {}, {}
  # In turn, so that a machine that changes its speed changes that of every row.
  for _, (name, open_batches) in itertools.product(range(repeats), batches_of.items()):
    try:
      row = _measure(open_batches(), batch_size, num_batches)
    except ImportError as error:
      left_out[name] = str(error)
      continue
    measured.setdefault(name, []).append(row)
  return {name: _median(rows) for name, rows in measured.items()}, left_out


def _median(rows):
  return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def _measure(batches, batch_size, num_batches):
  for _ in itertools.islice(batches, _WARM_UP):
    pass
  processor, wall = _processor_seconds(), time.perf_counter()
  read = sum(1 for _ in itertools.islice(batches, num_batches))
  processor, wall = _processor_seconds() - processor, time.perf_counter() - wall
  assert read == num_batches
  batches.close()
  images = read * batch_size
  return {"per_core": images / processor, "per_wall_second": images / wall}


def _processor_seconds():
  """Of this process and of its workers, which only /proc tells while they live."""
  ticks = 0
  for worker in multiprocessing.active_children():
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    ticks += int(fields[11]) + int(fields[12])
  return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _decoded(records, batch_size, total):
  indices = itertools.cycle(range(len(records)))
  for _ in range(total):
    yield [(records[i].read_image(), records[i].read_labels()) for i in _next(indices, batch_size)]


def _feed(reader, pipeline, batch_size, total):
  from boxseg_jax.data import feed

  batches = feed.training_batches(
    reader,
    lambda step: np.arange(step * batch_size, (step + 1) * batch_size) % len(reader),
    start_step=0,
    num_steps=total,
    process_index=0,
    process_count=1,
    workers=1,
    pipeline=pipeline,
  )
  yield from batches


def _loader(dataset, batch_size, total):
  import torch.utils.data

  indices = itertools.cycle(range(len(dataset)))
  yield from torch.utils.data.DataLoader(
    dataset,
    batch_sampler=[_next(indices, batch_size) for _ in range(total)],
    num_workers=1,
    multiprocessing_context="spawn",  # this process has threads, TensorFlow's among them
  )


def _next(indices, count):
  return list(itertools.islice(indices, count))


class _ReaderDataset:
  """Our reader as a data set of PyTorch."""

  def __init__(self, reader):
    self.reader = reader

  def __len__(self):
    return len(self.reader)

  def __getitem__(self, index):
    return dict(self.reader(index))


class _PlainDataset(_ReaderDataset):
  """The same examples with nothing but Pillow and numpy, as a data set usually reads them."""

  def __getitem__(self, index):
    from boxseg_jax.batch import padding_example
    from boxseg_jax.data.examples import fitted_size

    record, canvas = self.reader.records[index], self.reader.canvas
    photo_path, labels_path = record.read_image.args[0], record.read_labels.args[0]
    height, width = fitted_size(record.size, canvas)
    example = padding_example(canvas, self.reader.max_boxes)
    with Image.open(photo_path) as photo:
      photo = photo.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    example["image"][:height, :width] = np.asarray(photo)
    with Image.open(labels_path) as labels:
      labels = labels.resize((width, height), Image.Resampling.NEAREST)
    example["labels"][:height, :width] = np.asarray(labels)
    for name in _BOX_FIELDS:
      example[name][: len(record.boxes)] = getattr(record, name)
    example["extent"][:] = np.array([height, width]) / canvas
    return example | {"has_mask": np.array(True), "valid": np.array(True)}


def _open_reader(config, root):
  """A reader that decodes afresh, and shows all masks."""
  from boxseg_jax import data
  from boxseg_jax.data.examples import ExampleReader
  from boxseg_jax.data.records import max_boxes

  if config.data.source != "labels":
    sys.exit(f"the config's data.source is {config.data.source!r}, but must be 'labels'")
  config.data.root = root or config.data.root
  records = data.load_records(config.data, config.data.train_split)
  show = np.zeros(len(records), bool)
  return ExampleReader(records, config.data.canvas, max_boxes(records), show, cache=False)


def _table(rows, left_out):
  lines = [
    "| images/s | per core | of decode | by the wall's clock |",
    "|---|---:|---:|---:|",
  ]
  for name, row in rows.items():
    share = row["per_core"] / rows["decode"]["per_core"]
    lines.append(f"| {name} | {row['per_core']:.0f} | {share:.0%} | {row['per_wall_second']:.0f} |")
  return "\n".join(lines + [f"{name} left out: {why}" for name, why in left_out.items()])


def _versions():
  names = ("numpy", "pillow", "tensorflow-cpu", "tensorflow", "torch")
  found = {"python": platform.python_version(), "libjpeg-turbo": features.version("libjpeg_turbo")}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _processor_name():
  for line in Path("/proc/cpuinfo").read_text().splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.machine()


def main():
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  parser.add_argument("config", help="config file with data.source = 'labels'")
  parser.add_argument("--root", default="", help="instead of the config's data.root")
  parser.add_argument("--canvas", type=int, nargs=2, help="height and width, not the config's")
  parser.add_argument("--batch-size", type=int, default=8)
  parser.add_argument("--batches", type=int, default=90, help="that are measured in each row")
  parser.add_argument("--repeats", type=int, default=7, help="of which the median counts")
  parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
  parser.add_argument("--to", type=Path, required=True, help="JSON file to write")
  given = parser.parse_args()
  os.sched_setaffinity(0, {given.core})  # before any library starts its threads
  load = os.getloadavg()[0]

  config = runpy.run_path(given.config)["get_config"]()
  if given.canvas:
    config.data.canvas = tuple(given.canvas)
  reader = _open_reader(config, given.root)
  rows, left_out = bench(
    reader, batch_size=given.batch_size, num_batches=given.batches, repeats=given.repeats
  )
  print(_table(rows, left_out))
  given.to.parent.mkdir(parents=True, exist_ok=True)
  content = {
    "command": shlex.join(["python", *sys.argv]),
    "device": {"processor": _processor_name(), "cores": os.cpu_count(), "core": given.core},
    "load_before": round(load, 2),
    "versions": _versions(),
    "images": len(reader),
    "canvas": list(reader.canvas),
    "rows": rows,
    "left_out": left_out,
  }
  given.to.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
  main()
