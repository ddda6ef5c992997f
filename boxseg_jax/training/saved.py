"""A trained network by itself: what it takes to use one, without its data or optimiser.

A run writes `network.json` beside its checkpoints, which says how the network is built and what
its loss learned from the data; one file, `*.safetensors`, holds the same and the parameters.
"""

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialised

from boxseg_jax import files, models
from boxseg_jax.data.box_priors import BoxPriors
from boxseg_jax.errors import InputError
from boxseg_jax.models import pretrained
from boxseg_jax.training import build
from boxseg_jax.training.checkpoint import Checkpoints
from boxseg_jax.training.step import LossSettings

DESCRIPTION = "network.json"
FILE = "model.safetensors"  # in a folder that is no run
_KEY = "boxseg_jax"  # of the description in a safetensors file's metadata


class Network(NamedTuple):
  """A trained network.

  Attributes:
    model: the flax module.
    variables: {"params", "batch_stats"}, float32, of the moving average.
    class_names: by class id, background first.
    canvas: (height, width) in pixels that images were fitted to in training.
    settings: of the loss; what boxes become depends on them.
    description: as `describe` gave it; with "step", number of training steps taken.
  """

  model: Any
  variables: Any
  class_names: tuple[str, ...]
  canvas: tuple[int, int]
  settings: LossSettings
  description: dict


def beside(path, name: str) -> Path:
  """Where what is made with a network is put by default: in its run, or beside its file."""
  path = Path(path)
  return (path if path.is_dir() else path.parent) / name


def fingerprint(network: Network) -> str:
  """Changes with the network and its parameters: eight hexadecimal digits."""
  state = zlib.crc32(json.dumps(network.description, sort_keys=True).encode())
  for array in jax.tree.leaves(jax.device_get(network.variables)):
    state = zlib.crc32(np.ascontiguousarray(array), state)
  return f"{state:08x}"


def describe(config: ConfigDict, settings: LossSettings) -> dict:
  """All but the parameters, as JSON can hold it.

  Args:
    config: the configuration.
    settings: of the loss.
  """
  loss = settings._asdict()
  if settings.box_priors is not None:
    loss["box_priors"] = settings.box_priors._asdict()
  return {
    "model": build.model_options(config),
    "class_names": list(config.data.class_names),
    "canvas": list(config.data.canvas),
    "loss": loss,
    "best_metric": config.train.best_metric,
  }


def load(path, *, step: int | None = None) -> Network:
  """Reads a trained network; no data, encoder weights or TensorFlow are needed.

  Args:
    path: the workdir of a run, a file of `save`, or a folder or repository with one of that name:
      "hf://owner/repository" on the Hugging Face hub.
    step: which checkpoint of a run; the best one by default (the newest, if none was evaluated).

  Returns:
    Network, on the default device.

  Raises:
    InputError: no trained network there, or it cannot be read.
  """
  if str(path).startswith(pretrained.HUB):
    path = pretrained.download(f"{path}/{FILE}")
  path = Path(path)
  if (path / FILE).exists() and not (path / DESCRIPTION).exists():
    path = path / FILE
  if path.is_dir():
    return _of_run(path, step)
  if step is not None:
    raise InputError(f"{path}: a file holds one step, so step={step} cannot be chosen")
  return _of_file(path)


def save(network: Network, path) -> None:
  """Writes a network into one safetensors file.

  Args:
    network: what to write.
    path: of the file; its folder is made where it is missing.

  Raises:
    InputError: it cannot be written.
  """
  flat = traverse_util.flatten_dict(jax.device_get(network.variables), sep="/")
  arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
  # Not save_file: that makes files which nobody else may read.
  files.write_bytes(path, serialised(arrays, metadata={_KEY: json.dumps(network.description)}))


def _of_run(workdir, step):
  described = workdir / DESCRIPTION
  if not described.exists():
    raise InputError(f"{workdir} holds no trained network: there is no {DESCRIPTION}")
  description = _parsed(described, described.read_text())
  like = _variables_like(description, described)
  with Checkpoints(
    workdir, keep=1, best_metric=description["best_metric"], read_only=True
  ) as checkpoints:
    step = checkpoints.best_step() if step is None else step
    if step is None:
      raise InputError(f"{workdir} holds no checkpoint yet")
    if step not in checkpoints.steps():
      held = ", ".join(map(str, checkpoints.steps()))
      raise InputError(f"{workdir} holds no checkpoint of step {step} (held: {held})")
    variables = checkpoints.restore_average(step, like)
  return _network(description | {"step": step}, variables, described)


def _of_file(path):
  try:
    with safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except FileNotFoundError as error:
    raise InputError(f"{path}: no such file or folder") from error
  except (OSError, SafetensorError) as error:
    raise InputError(f"{path}: cannot be read as a safetensors file: {error}") from error
  if _KEY not in metadata:
    raise InputError(f"{path}: a safetensors file, but not of a network of boxseg_jax")
  description = _parsed(path, metadata[_KEY])
  wanted = traverse_util.flatten_dict(_variables_like(description, path), sep="/")
  differing = sorted(
    name
    for name in wanted.keys() | flat.keys()
    if name not in wanted or name not in flat or wanted[name].shape != flat[name].shape
  )
  if differing:
    raise InputError(f"{path}: {len(differing)} arrays do not fit the network, e.g. {differing[0]}")
  variables = traverse_util.unflatten_dict(flat, sep="/")
  variables.setdefault("batch_stats", {})
  return _network(description, jax.tree.map(jnp.asarray, variables), path)


def _parsed(path, text):
  try:
    return json.loads(text)
  except ValueError as error:
    raise InputError(f"{path}: is damaged: {error}") from error


def _variables_like(description, path):
  """Shapes of the parameters and batch statistics."""
  model, canvas, settings = _parts(description, path)
  shapes = jax.eval_shape(lambda key: build.init(model, canvas, settings, key), jax.random.key(0))
  return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


def _network(description, variables, path) -> Network:
  model, canvas, settings = _parts(description, path)
  names = tuple(description["class_names"])
  return Network(model, variables, names, canvas, settings, description)


def _parts(description, path):
  """(model, canvas, LossSettings) of a description that may have been tampered with."""
  try:
    loss = dict(description["loss"])
    if loss["box_priors"] is not None:
      loss["box_priors"] = BoxPriors(**loss["box_priors"])
    settings = LossSettings(**loss)
    height, width = description["canvas"]
    num_classes = len(description["class_names"])
    model = models.build(num_classes=num_classes, **description["model"])
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"{path}: is damaged: its description lacks something: {error}") from error
  return model, (height, width), settings._replace(class_weights=tuple(settings.class_weights))
