"""Measures prediction: the bare compiled network beside what a person calls.

    python launch/bench_predict.py runs/nuclei --images=../shared/data/nuclei/test/images \
      --to=runs/predict.json

"network" is the compiled forward pass alone, on a batch of the canvas's size that is already on
the device; "at the images' size" also resizes its logits there and decides, as prediction has to;
"predict" reads the files, fits them, and does all that (`Predictor.decisions`); "predict, files
written" also writes index PNGs, certainty maps and overlays (`--mode=predict`). Images are read
over and over until --num are done. Rows take turns, and the best of --repeats counts, since other
work on the machine can only slow them down.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import boxseg_jax
from boxseg_jax import augment
from boxseg_jax import config as configuration
from boxseg_jax.apps import predict
from boxseg_jax.data import photos as photo_files
from boxseg_jax.data.examples import fit_image, fitted_size
from boxseg_jax.errors import InputError
from boxseg_jax.training import origin
from boxseg_jax.training.step import make_predict_fn


def bench(model, paths, *, batch_size, num, repeats):
  """Rows as name -> images per second."""
  rows = {
    "network": lambda: _network(model, batch_size, num),
    "at the images' size": lambda: _at_own_size(model, paths, batch_size, num),
    "predict": lambda: _predict(model, paths, batch_size, num),
    "predict, files written": lambda: _written(model, paths, batch_size),
  }
  best = dict.fromkeys(rows, 0.0)
  for _, (name, measure) in itertools.product(range(repeats), rows.items()):
    best[name] = max(best[name], measure())
  return best


def _network(model, batch_size, num):
  """The forward pass alone, one batch ahead as in `Predictor`."""
  canvas = model.canvas
  images = np.random.default_rng(0).integers(0, 256, (batch_size, *canvas, 3), np.uint8)
  batch = jax.device_put(augment.unlabelled(images, np.ones((batch_size, 2), np.float32)))
  predict_fn = make_predict_fn(model.network.model, model.network.settings)
  forward = jax.jit(lambda variables, batch: predict_fn(variables, augment.prepare(batch)))
  jax.block_until_ready(forward(model.network.variables, batch))
  started, running = time.perf_counter(), None
  for _ in range(-(-num // batch_size)):
    finished, running = running, forward(model.network.variables, batch)
    jax.block_until_ready(finished)
  jax.block_until_ready(running)
  return -(-num // batch_size) * batch_size / (time.perf_counter() - started)


def _at_own_size(model, paths, batch_size, num):
  """Photos that are as large as the files, but already in memory and on the canvas."""
  files = [photo_files.of_file(path) for path in paths[: 4 * batch_size]]
  sizes = [file.size() for file in files]
  ready = []
  for file, size in zip(files, sizes, strict=True):
    height, width = fitted_size(size, model.canvas)
    pixels = fit_image(file.read_reduced((height, width)), model.canvas)[0][:height, :width]
    ready.append(file._replace(size=lambda s=size: s, read_reduced=lambda _, p=pixels: p))
  return _rate(model, ready, batch_size, num)


def _predict(model, paths, batch_size, num):
  return _rate(model, [photo_files.of_file(path) for path in paths], batch_size, num)


def _rate(model, photos, batch_size, num):
  predictor = model.predictor(batch_size=batch_size)
  many = list(itertools.islice(itertools.cycle(photos), num))
  for _ in predictor.decisions(many):  # compiles every shape
    pass
  started = time.perf_counter()
  done = sum(1 for _ in predictor.decisions(many))
  return done / (time.perf_counter() - started)


def _written(model, paths, batch_size):
  config = configuration.get_config()
  config.eval.batch_size = batch_size
  names = {path: Path(path.name) for path in paths}
  with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    broken = predict.predict_files(config, model, names, Path(folder))
    if broken:
      raise InputError("\n".join(broken))
    return len(names) / (time.perf_counter() - started)


def _table(rows):
  lines = ["| | images/s | of the network |", "|---|---:|---:|"]
  network = rows["network"]
  return "\n".join(
    [*lines, *(f"| {name} | {rate:.1f} | {rate / network:.0%} |" for name, rate in rows.items())]
  )


def main():
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  parser.add_argument("model", help="workdir of a run, or an exported .safetensors file")
  parser.add_argument("--images", required=True, help="file, folder or pattern")
  parser.add_argument("--batch-size", type=int, default=8)
  parser.add_argument("--num", type=int, default=200, help="images per row and repeat")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--to", help="also write a JSON file")
  options = parser.parse_args()
  try:
    model = boxseg_jax.load(options.model)
    paths = photo_files.find(options.images)
    load = os.getloadavg()[0]
    rows = bench(
      model, paths, batch_size=options.batch_size, num=options.num, repeats=options.repeats
    )
  except InputError as error:
    sys.exit(f"error: {error}")
  print(_table(rows))
  if options.to:
    found = {
      **origin.here(),
      "load_before": round(load, 1),
      "canvas": model.canvas,
      "images": len(paths),
      "images_per_second": rows,
    }
    Path(options.to).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
