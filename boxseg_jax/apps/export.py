"""A trained network as a file for others: parameters, a program for any device, a shared folder."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export as jax_export
from ml_collections import ConfigDict

from boxseg_jax.apps import model_card
from boxseg_jax.errors import InputError
from boxseg_jax.losses import uncertainty
from boxseg_jax.training import saved
from boxseg_jax.training.run import write_bytes, write_json, write_text

PLATFORMS = ("cpu", "cuda", "tpu")
_SUFFIXES = ".safetensors, .stablehlo"


def run(config: ConfigDict, workdir, *, to: str, report: Callable[[str], None] = print) -> str:
  """Writes the best checkpoint of a run in another form.

  Args:
    config: of it, `export` is used.
    workdir: of the run, or a file that was exported as `.safetensors`.
    to: "*.safetensors" (the parameters and how the network is built, for `boxseg_jax.load`),
      "*.stablehlo" (the network as a program, for `jax.export`), or "hub" (a folder as the Hugging
      Face hub has it, `<workdir>/hub`, pushed where `export.repository` and a token are given).
    report: takes lines of text for the person who waits.

  Returns:
    Where it is, and the lines that use it.

  Raises:
    InputError: no network there, or another form is asked for.
  """
  if not to:
    raise InputError(f"--mode=export needs --to=FILE ({_SUFFIXES}) or --to=hub")
  network = saved.load(workdir)
  if to == "hub":
    return _hub_folder(config, network, Path(workdir), report)
  path = Path(to)
  if path.suffix == ".safetensors":
    saved.save(network, path)
    return f'{path}\n\n  import boxseg_jax\n  model = boxseg_jax.load("{path}")'
  if path.suffix == ".stablehlo":
    write_bytes(path, stablehlo(network))
    return f"{path}\n\n{_STABLEHLO_USE.format(path=path)}"
  raise InputError(f"--to={to}: the form is told by the suffix, one of {_SUFFIXES}, or is hub")


_STABLEHLO_USE = """\
  from jax import export
  program = export.deserialize(open("{path}", "rb").read())
  probability, certainty = program.call(images)  # uint8 [batch, height, width, 3], RGB
  program.fun_name                               # JSON: class names, height and width"""


def predict_function(network: saved.Network) -> Callable:
  """The network with its preprocessing: what is exported.

  Args:
    network: the network.

  Returns:
    images uint8 [batch, *network.canvas, 3], RGB -> (probability float32 [batch, *network.canvas,
    num_classes], which sums to 1, and certainty float32 [batch, *network.canvas] in (0, 1]).
  """

  def predict(images):
    outputs = network.model.apply(network.variables, images.astype(jnp.float32) / 255, train=False)
    probability = jax.nn.softmax(uncertainty.class_logits(outputs.logits), axis=-1)
    return probability, uncertainty.certainty(outputs.sigma)

  return predict


def stablehlo(network: saved.Network) -> bytes:
  """The network as a program for any device: StableHLO, the parameters inside.

  Args:
    network: the network.

  Returns:
    What `jax.export.deserialize` takes, for CPU, CUDA and TPU, of any batch size. What a program
    must know beside is in its name, JSON: "class_names", "height", "width".
  """
  height, width = network.canvas
  function = predict_function(network)
  known = {"class_names": network.class_names, "height": height, "width": width}
  function.__name__ = json.dumps(known)
  (batch,) = jax_export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
  return jax_export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize()


def _hub_folder(config, network, workdir, report):
  folder = (workdir if workdir.is_dir() else workdir.parent) / "hub"
  saved.save(network, folder / "model.safetensors")
  write_json(folder / "config.json", network.description)
  card = model_card.card(network, workdir, data_license=config.export.data_license)
  write_text(folder / "README.md", card)
  if not config.export.data_license:
    report("The licence of the data is not known: config.export.data_license; the card says so.")
  if not config.export.repository:
    return f"{folder}: not pushed, config.export.repository names no repository"
  return model_card.push(folder, config.export.repository)
