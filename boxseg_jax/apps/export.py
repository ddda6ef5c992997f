"""A trained network in one file, for use without this package or for sharing."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from boxseg_jax.apps import card, programs
from boxseg_jax.apps.model import Model
from boxseg_jax.errors import ExportError, InputError
from boxseg_jax.models import choice
from boxseg_jax.training import saved

TOLERANCE = 1e-4  # of probabilities and certainties
LISTED = 8  # lines of another process's error


class Format(NamedTuple):
  """A kind of file.

  Attributes:
    write: (network, path), writes it.
    snippet: Python that takes `images`, uint8 [batch, *canvas, 3], RGB, to `probability` and
      `certainty`; with a place for {path}, quoted.
  """

  write: Callable[[saved.Network, Path], None]
  snippet: str


FORMATS = {
  "safetensors": Format(
    saved.save,
    """\
import boxseg_jax
model = boxseg_jax.load({path})
results = model.predict(list(images))  # of any size; paths, too
probability = [result.probability for result in results]
certainty = [result.certainty for result in results]
""",
  ),
  "stablehlo": Format(
    programs.write_stablehlo,
    """\
import jax.export
program = jax.export.deserialize(bytearray(open({path}, "rb").read()))
outputs = program.call(images)
probability, certainty = outputs["probability"], outputs["certainty"]
""",
  ),
  "savedmodel": Format(
    programs.write_savedmodel,
    """\
import tensorflow as tf
model = tf.saved_model.load({path})
outputs = model.signatures["serving_default"](image=tf.constant(images))
probability, certainty = outputs["probability"], outputs["certainty"]
""",
  ),
  "onnx": Format(
    programs.write_onnx,
    """\
import onnxruntime
session = onnxruntime.InferenceSession({path})
names = ["probability", "certainty"]
probability, certainty = session.run(names, {{"image": images}})
""",
  ),
}
HUB = "hub"


def run(config: ConfigDict, workdir, *, to: str, report=print) -> str:
  """Writes a network in a format that others read, and reads it back.

  Args:
    config: of it, `export` is used; the network is that of the workdir.
    workdir: of a run, or a file of an earlier export.
    to: a path whose suffix is the format, or the format alone for a file beside the run's:
      "safetensors", "stablehlo", "savedmodel" (a folder), "onnx"; "hub" (a folder with a card).
    report: takes lines of text for the person who waits.

  Returns:
    Where it is, and how it is used.

  Raises:
    InputError: no network there, no such format, or a library that is missing.
    ExportError: what was written gives other numbers than the network; it is not kept.
  """
  kind, path = _kind_and_path(Path(workdir), to)
  network = saved.load(workdir)
  if kind == HUB:
    export(network, "safetensors", path / "model.safetensors", report)
    return card.complete_folder(config, network, Path(workdir), path)
  export(network, kind, path, report)
  height, width = network.canvas
  images = f"# images: uint8 [batch, {height}, {width}, 3], RGB\n"
  return f"\n{images}{FORMATS[kind].snippet.format(path=json.dumps(str(path)))}"


def export(network: saved.Network, kind: str, path: Path, report: Callable[[str], None]) -> None:
  """Writes one file, keeps it if a fresh process reads from it what the network says.

  Args:
    network: what to write.
    kind: a key of `FORMATS`.
    path: of the file or folder; what is there is replaced.
    report: takes a line of text.

  Raises:
    InputError: it cannot be written.
    ExportError: it says something else than the network.
  """
  unfinished = path.with_name(path.name + ".unfinished")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(unfinished)
    FORMATS[kind].write(network, unfinished)
    same = network if kind == "safetensors" else programs.in_float32(network)
    difference = largest_difference(same, kind, unfinished)
    _remove(path)
    unfinished.replace(path)
  except OSError as error:
    raise InputError(f"{path} cannot be written: {error}") from error
  finally:
    _remove(unfinished)
  step = network.description["step"]
  report(
    f"{path}: {_megabytes(path):.1f} MB, the network of step {step}.\n"
    f"Read by a fresh process, it differs from it by {difference:.1g} at most."
  )


def largest_difference(network: saved.Network, kind: str, path: Path) -> float:
  """Runs the format's snippet in a fresh process and compares with the network here.

  Args:
    network: the network.
    kind: a key of `FORMATS`.
    path: what was written of it.

  Returns:
    The largest difference of a probability or certainty, at most `TOLERANCE`.

  Raises:
    ExportError: it is larger, or the snippet failed.
  """
  images = np.random.default_rng(0).integers(0, 256, (2, *network.canvas, 3), np.uint8)
  # Both on the CPU: accelerators round more than what is asked for here.
  on_cpu = jax.device_put(network.variables, jax.local_devices(backend="cpu")[0])
  expected = Model(network._replace(variables=on_cpu)).predict(list(images))
  assert isinstance(expected, list), "many images, many results"
  got = in_fresh_process(FORMATS[kind].snippet.format(path=json.dumps(str(path))), images)
  differences = [
    np.abs(value - getattr(result, name)).max()
    for name, values in got.items()
    for value, result in zip(values, expected, strict=True)
  ]
  if not max(differences) <= TOLERANCE:
    raise ExportError(
      f"{kind} differs from the network by {max(differences):.2g} (at most {TOLERANCE} is "
      f"allowed), so nothing was kept"
    )
  return float(max(differences))


def in_fresh_process(snippet: str, images: np.ndarray) -> dict[str, np.ndarray]:
  """What a snippet makes of images, on the CPU.

  Args:
    snippet: of a `Format`, its path filled in.
    images: uint8 [batch, height, width, 3].

  Returns:
    {"probability": float32 [batch, height, width, num_classes], "certainty": float32 [batch,
    height, width]}.

  Raises:
    ExportError: it failed; the message has what it said last.
  """
  with tempfile.TemporaryDirectory() as folder:
    given, got = Path(folder) / "images.npy", Path(folder) / "outputs.npz"
    np.save(given, images)
    program = (
      f"import numpy as np\nimages = np.load({str(given)!r})\n{snippet}\n"
      f"np.savez({str(got)!r}, probability=probability, certainty=certainty)\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
      [sys.executable, "-c", program],
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode:
      last = "\n  ".join(done.stderr.strip().splitlines()[-LISTED:])
      raise ExportError(f"what was written cannot be used in a fresh process:\n  {last}")
    with np.load(got) as outputs:
      return dict(outputs)


def _kind_and_path(workdir, to):
  """(format, path) of what a person asked for."""
  known = {**FORMATS, HUB: None}
  if not to:
    raise InputError(f"--mode=export needs --to=FILE or a format (known: {', '.join(known)})")
  target = Path(to)
  if target.suffix:
    kind = target.suffix.removeprefix(".")
    choice.pick(FORMATS, kind, f"format of --to={to}:")
    return kind, target
  choice.pick(known, target.name, "format")
  if target.name == HUB:
    return HUB, saved.beside(workdir, HUB) if to == HUB else target
  named = saved.beside(workdir, f"model.{target.name}")
  return target.name, named if to == target.name else target


def _remove(path):
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _megabytes(path):
  files = path.rglob("*") if path.is_dir() else [path]
  return sum(file.stat().st_size for file in files) / 1e6
