"""A trained network by itself: what it takes to use one, without its data or optimiser.

A run writes `network.json` beside its checkpoints, which says how the network is built and what
its loss learned from the data; one file, `*.safetensors`, holds the same and the parameters.
What corrects its box masks (`models.refiner`) is another such file beside the checkpoints, and of
one of them; in a file by itself, the network has it too.
"""

import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save as serialised

from boxseg_jax import config as configuration
from boxseg_jax import files, models
from boxseg_jax.data import images
from boxseg_jax.data.box_priors import GRID, BoxPriors
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import labeller
from boxseg_jax.losses import instances
from boxseg_jax.models import pretrained, refiner
from boxseg_jax.training import build
from boxseg_jax.training.checkpoint import Checkpoints
from boxseg_jax.training.step import LossSettings, make_evidence_fn

DESCRIPTION = "network.json"
FILE = "model.safetensors"  # in a folder that is no run
REFINER = "refiner.safetensors"  # in a run
# In a safetensors file's metadata: the description, and the fingerprint of all that was written.
_KEY, _FINGERPRINT = "boxseg_jax", "boxseg_jax.fingerprint"
_REFINER = "refiner"  # among the names of arrays
_NETWORK = "boxseg_jax.network"  # in a refiner's metadata: fingerprint of what it was learned with


class Network(NamedTuple):
  """A trained network.

  Attributes:
    model: the flax module.
    variables: {"params", "batch_stats"}, float32, of the moving average.
    class_names: by class id, background first.
    canvas: (height, width) in pixels that images were fitted to in training.
    settings: of the loss; what boxes become depends on them.
    description: as `describe` gave it; with "step", number of training steps taken.
    refiner: variables of `models.refiner` that were learned with this network; None: none were.
  """

  model: Any
  variables: Any
  class_names: tuple[str, ...]
  canvas: tuple[int, int]
  settings: LossSettings
  description: dict
  refiner: Any = None


def beside(path, name: str) -> Path:
  """Where what is made with a network is put by default: in its run, or beside its file."""
  path = Path(path)
  return (path if path.is_dir() else path.parent) / name


def fingerprint(network: Network) -> str:
  """Changes with the network and its parameters: eight hexadecimal digits."""
  state = zlib.crc32(json.dumps(network.description, sort_keys=True).encode())
  for array in jax.tree.leaves(jax.device_get((network.variables, network.refiner))):
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
  variables = dict(network.variables)
  variables |= {} if network.refiner is None else {_REFINER: network.refiner}
  metadata = {_KEY: json.dumps(network.description), _FINGERPRINT: fingerprint(network)}
  _write(path, variables, metadata)


def save_refiner(network: Network, workdir) -> Path:
  """Writes the refiner of a run's network beside its checkpoints.

  Args:
    network: of the run, with a refiner.
    workdir: of the run.

  Returns:
    The file.

  Raises:
    InputError: it cannot be written.
  """
  path = Path(workdir) / REFINER
  alone = fingerprint(network._replace(refiner=None))
  metadata = {_NETWORK: alone, _FINGERPRINT: fingerprint(network)}
  _write(path, {_REFINER: network.refiner}, metadata)
  return path


def _write(path, variables, metadata):
  flat = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
  arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
  # Not save_file: that makes files which nobody else may read.
  files.write_bytes(path, serialised(arrays, metadata=metadata))


def _of_run(workdir, step):
  described = workdir / DESCRIPTION
  if not described.exists():
    raise InputError(f"{workdir} holds no trained network: there is no {DESCRIPTION}")
  description = files.read_json(described)
  like = _variables_like(description, described)
  try:
    step, variables = _of_checkpoints(workdir, step, description["best_metric"], like)
  except InputError:
    raise
  except Exception as error:  # Orbax raises whatever a damaged folder makes it raise
    raise InputError(f"{workdir}: its checkpoints cannot be read: {error}") from error
  network = _network(description | {"step": step}, variables, described)
  path = workdir / REFINER
  if not path.exists():
    return network
  metadata, flat = pretrained.read_file(path)
  if metadata.get(_NETWORK) != fingerprint(network):
    return network  # it is of another checkpoint
  network = _with_refiner(network, flat, path)
  _require_unchanged(path, metadata, network)
  return network


def _with_refiner(network: Network, flat, path) -> Network:
  """The network with the refiner whose arrays these are."""
  wanted = traverse_util.flatten_dict({_REFINER: _refiner_like(network)}, sep="/")
  _require_fitting(path, wanted, flat)
  variables = traverse_util.unflatten_dict(flat, sep="/")[_REFINER]
  return network._replace(refiner=jax.tree.map(jnp.asarray, variables))


def _refiner_like(network: Network):
  """Shapes of the variables of a network's refiner."""
  see = partial(labeller.look, make_evidence_fn(network.model, network.settings))
  image, extent = np.zeros((1, *network.canvas, 3), np.uint8), np.ones((1, 2), np.float32)
  no_boxes = np.zeros((1, 1, 4), np.float32), np.zeros((1, 1), np.int32)
  seen = jax.eval_shape(see, network.variables, image, extent, *no_boxes)
  channels = instances.evidence_channels(len(network.class_names))
  return refiner.shapes(instances.SIDE, channels, seen.features.shape[-1])


def _of_checkpoints(workdir, step, best_metric, like):
  """(step, variables) of a run's checkpoint."""
  with Checkpoints(workdir, keep=1, best_metric=best_metric, read_only=True) as checkpoints:
    step = checkpoints.best_step() if step is None else step
    if step is None:
      raise InputError(f"{workdir} holds no checkpoint yet")
    if step not in checkpoints.steps():
      held = ", ".join(map(str, checkpoints.steps()))
      raise InputError(f"{workdir} holds no checkpoint of step {step} (held: {held})")
    try:
      return step, checkpoints.restore_average(step, like)
    except InputError as error:
      others = ", ".join(str(other) for other in checkpoints.steps() if other != step) or "none"
      raise InputError(f"{error}; remove it to use another (of the steps: {others})") from error


def _of_file(path):
  if not path.exists():
    raise InputError(f"{path}: no such file or folder")
  metadata, flat = pretrained.read_file(path)
  if _KEY not in metadata:
    raise InputError(f"{path}: a safetensors file, but not of a network of boxseg_jax")
  description = files.parse_json(str(path), metadata[_KEY])
  if not isinstance(description.get("step"), int):
    raise InputError(f"{path}: is damaged: its description has no step")
  wanted = traverse_util.flatten_dict(_variables_like(description, path), sep="/")
  of_refiner = {name: flat.pop(name) for name in list(flat) if name.startswith(f"{_REFINER}/")}
  _require_fitting(path, wanted, flat)
  variables = traverse_util.unflatten_dict(flat, sep="/")
  variables.setdefault("batch_stats", {})
  network = _network(description, jax.tree.map(jnp.asarray, variables), path)
  if of_refiner:
    network = _with_refiner(network, of_refiner, path)
  # Files of earlier versions have none, and are what they are.
  if _FINGERPRINT in metadata:
    _require_unchanged(path, metadata, network)
  return network


def _require_fitting(path, wanted, given) -> None:
  """Refuses arrays by name whose names, shapes or types are not those that are wanted."""
  differing = sorted(
    name
    for name in wanted.keys() | given.keys()
    if name not in wanted or name not in given or not _fits(wanted[name], given[name])
  )
  if differing:
    raise InputError(f"{path}: {len(differing)} arrays do not fit the network, e.g. {differing[0]}")


def _require_unchanged(path, metadata, network) -> None:
  if metadata.get(_FINGERPRINT) != fingerprint(network):
    raise InputError(f"{path}: is damaged: it has changed since it was written")


def _fits(wanted, given):
  return wanted.shape == given.shape and wanted.dtype == given.dtype


def _variables_like(description, path):
  """Shapes of the parameters and batch statistics."""
  model, canvas, settings = _parts(description, path)
  try:
    shapes = jax.eval_shape(lambda key: build.init(model, canvas, settings, key), jax.random.key(0))
  except Exception as error:  # whatever an option of the wrong kind makes a network raise
    raise InputError(f"{path}: is damaged: no such network can be built: {error}") from error
  return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


def _network(description, variables, path) -> Network:
  model, canvas, settings = _parts(description, path)
  names = tuple(description["class_names"])
  return Network(model, variables, names, canvas, settings, description)


def _parts(description, path):
  """(model, canvas, LossSettings) of a description that may have been tampered with."""
  try:
    names, canvas = description["class_names"], tuple(description["canvas"])
    _require_names(names)
    images.require_possible_size("its canvas", canvas)
    settings = _settings(description["loss"], len(names))
    if not isinstance(description["best_metric"], str):
      raise InputError("its best_metric is no name")
    model = models.build(num_classes=len(names), **description["model"])
  except InputError as error:  # of `models.build`, too, which does not know where it is from
    raise InputError(f"{path}: is damaged: {error}") from error
  except Exception as error:  # whatever is where something else should be
    raise InputError(f"{path}: is damaged: its description lacks something: {error!r}") from error
  return model, canvas, settings


def _require_names(names) -> None:
  known = isinstance(names, list) and all(isinstance(name, str) for name in names)
  if not known or not 2 <= len(set(names)) == len(names) <= configuration.MAX_CLASSES:
    raise InputError("its class_names are no 2 to 255 different names")


def _settings(given: dict, num_classes: int) -> LossSettings:
  """The settings of the loss, each of the kind that it has to be."""
  loss = dict(given)
  if loss["box_priors"] is not None:
    priors = BoxPriors(**loss["box_priors"])
    shapes = {"fill_bands": (num_classes, 2), "mean_masks": (num_classes, GRID, GRID)}
    for name, shape in shapes.items():
      array = np.asarray(getattr(priors, name), np.float64)
      if array.shape != shape or not ((array >= 0) & (array <= 1)).all():
        raise InputError(f"its {name} are no shares of {shape}")
    loss["box_priors"] = priors
  weights = np.asarray(loss["class_weights"], np.float64)
  if weights.shape != (num_classes,) or not ((weights > 0) & np.isfinite(weights)).all():
    raise InputError(f"its class_weights are no {num_classes} numbers above 0")
  settings = LossSettings(**loss)._replace(class_weights=tuple(weights.tolist()))
  for name, kind in LossSettings.__annotations__.items():
    if kind in (int, str) and type(getattr(settings, name)) is not kind:
      raise InputError(f"its {name} is {getattr(settings, name)!r}")
  if settings.num_classes != num_classes:
    raise InputError(f"its loss is of {settings.num_classes} classes, not of {num_classes}")
  return settings
