"""Encoders from safetensors files under torchvision's (ResNet) or timm's (EfficientNet) names."""

import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from boxseg_jax.errors import InputError

HUB = "hf://"
# What such files also hold and no encoder here uses: classifiers and what only feeds them.
UNUSED = {
  "resnet": re.compile(r"fc\..*|.*\.num_batches_tracked"),
  "efficientnet": re.compile(r"classifier\..*|conv_head\..*|bn2\..*|.*\.num_batches_tracked"),
}
LEAVES = {
  ("params", "kernel"): "weight",
  ("params", "scale"): "weight",
  ("params", "bias"): "bias",
  ("batch_stats", "mean"): "running_mean",
  ("batch_stats", "var"): "running_var",
}
_PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
LISTED = 8  # names per kind of difference in a message


def read_metadata(path: str) -> dict[str, bool | float]:
  """Reads from a weights file how the network has to be built for it.

  Args:
    path: as for `load_encoder`.

  Returns:
    Options for `models.build`: `stride_in_1x1` (bool) and `bn_epsilon` (float), each only if the
    file's metadata says so.

  Raises:
    InputError: for a file that is missing or no safetensors file, or a value that makes no sense.
  """
  with _open(path) as file:
    metadata = file.metadata() or {}
  options = {}
  if "stride_in_1x1" in metadata:
    options["stride_in_1x1"] = _boolean(path, metadata["stride_in_1x1"])
  if "bn_eps" in metadata:
    options["bn_epsilon"] = _positive(path, metadata["bn_eps"])
  return options


def load_encoder(variables: Mapping, path: str, *, encoder: str) -> dict:
  """Replaces a network's encoder by the one in a file.

  Args:
    variables: "params" and "batch_stats" as from `init`, the encoder under "encoder".
    path: a local file, or "hf://owner/repository/file" on the Hugging Face hub.
    encoder: "resnet18", "resnet34", "resnet50", "resnet101" or "efficientnet_lite0".

  Returns:
    `variables` with every array of the encoder, parameters and statistics, from the file, float32.

  Raises:
    InputError: if the file is missing or no safetensors file, or if names or shapes differ; the
      message lists the differences.
  """
  family = next((f for f in UNUSED if encoder.startswith(f)), None)
  if family is None:
    raise InputError(f"{path}: there are no pretrained weights for the encoder {encoder!r}")
  stored = {
    name: array.astype(np.float32)
    for name, array in read_file(path)[1].items()
    if not UNUSED[family].fullmatch(name)
  }
  flat = traverse_util.flatten_dict(dict(variables))
  wanted = {name_in_file(keys): keys for keys in flat if keys[1] == "encoder"}
  arrays = {name: _from_torch(array) for name, array in stored.items()}
  _compare(path, encoder, {n: flat[k].shape for n, k in wanted.items()}, arrays)
  flat.update({keys: jnp.asarray(arrays[name]) for name, keys in wanted.items()})
  return traverse_util.unflatten_dict(flat)


def name_in_file(keys: tuple[str, ...]) -> str:
  """The PyTorch name of an encoder's array.

  Args:
    keys: its path in the variables, as ("params", "encoder", "layer1_0", "conv1", "kernel").

  Returns:
    As "layer1.0.conv1.weight".
  """
  modules = [re.sub(r"_(\d+)", r".\1", key) for key in keys[2:-1]]
  return ".".join([*modules, LEAVES[keys[0], keys[-1]]])


def _from_torch(array):
  # Convolutions: [out, in, height, width] -> [height, width, in, out].
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _compare(path, encoder, shapes, arrays):
  differences = {
    "missing in the file": sorted(shapes.keys() - arrays.keys()),
    "unexpected in the file": sorted(arrays.keys() - shapes.keys()),
    "of another shape": [
      f"{name}: file {arrays[name].shape}, network {shape}"
      for name, shape in sorted(shapes.items())
      if name in arrays and arrays[name].shape != shape
    ],
  }
  if not any(differences.values()):
    return
  lines = [f"{path} does not fit the encoder {encoder!r}:"]
  for kind, names in differences.items():
    lines += [f"  {len(names)} {kind}:"] if names else []
    lines += [f"    {name}" for name in names[:LISTED]]
    lines += [f"    ... and {len(names) - LISTED} more"] if len(names) > LISTED else []
  raise InputError("\n".join(lines))


def read_file(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """Reads a safetensors file, the only kind of file that parameters are read from.

  Args:
    path: as for `load_encoder`.

  Returns:
    Its metadata, and its arrays by name.

  Raises:
    InputError: no such file, no or a damaged safetensors file.
  """
  with _open(path) as file:
    try:
      return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever an array of a kind that NumPy lacks makes it raise
      raise InputError(f"{path}: cannot be read as a safetensors file: {error}") from error


def _open(path):
  local = download(path) if str(path).startswith(HUB) else path
  try:
    return safe_open(local, framework="numpy")
  except FileNotFoundError as error:
    raise InputError(f"{path}: there is no such file") from error
  except (OSError, SafetensorError) as error:
    pickled = Path(str(path)).suffix.lower() in _PICKLES
    hint = "; files of pickles can run any code and are never opened" if pickled else ""
    raise InputError(f"{path}: cannot be read as a safetensors file: {error}{hint}") from error


def download(path: str) -> str:
  """Fetches a file from the Hugging Face hub, once.

  Args:
    path: "hf://owner/repository/file".

  Returns:
    Path of the local copy.

  Raises:
    InputError: huggingface_hub is not installed, or the file cannot be had.
  """
  owner, repository, file = _hub_parts(path)
  try:
    from huggingface_hub import hf_hub_download, utils
  except ImportError as error:
    raise InputError(f"{path}: needs huggingface_hub: pip install boxseg_jax[hub]") from error
  try:
    return hf_hub_download(f"{owner}/{repository}", file)
  except (OSError, ValueError, utils.HfHubHTTPError) as error:
    raise InputError(f"{path}: cannot be had from the hub: {error}") from error


def _hub_parts(path):
  parts = path.removeprefix(HUB).split("/", 2)
  if len(parts) < 3 or not all(parts):
    raise InputError(f"{path}: wanted hf://owner/repository/file")
  return parts


def _boolean(path, text):
  values = {"true": True, "1": True, "false": False, "0": False}
  if text.lower() not in values:
    raise InputError(f"{path}: metadata stride_in_1x1 is {text!r}, wanted true or false")
  return values[text.lower()]


def _positive(path, text):
  try:
    value = float(text)
  except ValueError:
    value = 0.0
  if not value > 0:
    raise InputError(f"{path}: metadata bn_eps is {text!r}, wanted a positive number")
  return value
