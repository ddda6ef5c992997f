"""Files that predict by themselves: StableHLO, TensorFlow's SavedModel, ONNX.

Each holds the whole way from 8-bit images of the canvas's size to probabilities, for any number
of images at once, and says of what network it is ("class_names", "canvas", ...). All compute in
float32, whatever the network was trained in: compilers differ in where they round to bfloat16, so
that one file would give other numbers in each program.
"""

import contextlib
import json
import logging
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from boxseg_jax import __version__, models
from boxseg_jax.data import feed
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation.serving import make_serving_fn
from boxseg_jax.models import depthwise
from boxseg_jax.training.saved import Network

PLATFORMS = ("cpu", "cuda", "tpu")
_ABOUT = "network.json"


def about(network: Network) -> dict:
  """What a file says of itself, as JSON can hold it."""
  description = network.description
  shared = {name: description[name] for name in ("class_names", "canvas", "step", "model")}
  return shared | {"boxseg_jax": __version__}


def in_float32(network: Network) -> Network:
  """The same parameters, which are float32 always, computed with in float32."""
  options = network.description["model"] | {"dtype": "float32"}
  model = models.build(num_classes=len(network.class_names), **options)
  return network._replace(model=model)


def write_stablehlo(network: Network, path: Path) -> None:
  """Writes what `jax.export.deserialize` reads, with a zip archive of `network.json` behind it.

  A zip archive is found from a file's end and a program from its beginning, so that either reader
  finds its own.

  Args:
    network: what to write.
    path: of the file.
  """
  serve = partial(_serving(network, depthwise.depthwise_by_platform), _of_prediction(network))
  program = jax.export.export(jax.jit(serve), platforms=PLATFORMS)(_images(network))
  path.write_bytes(program.serialize())
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr(zipfile.ZipInfo(_ABOUT), json.dumps(about(network)))


def write_savedmodel(network: Network, path: Path) -> None:
  """Writes a SavedModel, with `network.json` in the folder that is meant for such.

  Args:
    network: what to write.
    path: of the folder.

  Raises:
    InputError: TensorFlow or orbax-export is not installed.
  """
  try:
    tf = feed.tensorflow()
    from orbax.export import ExportManager, JaxModule, ServingConfig
  except ImportError as error:
    raise _missing("a SavedModel", "export", error) from error
  image = tf.TensorSpec((None, *network.canvas, 3), tf.uint8, name="image")
  serving = ServingConfig("serving_default", input_signature=[image])
  with _readable_by_tensorflow():
    module = JaxModule(
      _of_prediction(network),
      _serving(network, depthwise.depthwise_by_platform),
      input_polymorphic_shape="b, ...",
      jax2tf_kwargs={"native_serialization_platforms": PLATFORMS},
    )
    ExportManager(module, [serving]).save(str(path))
  extra = path / "assets.extra"  # TensorFlow's name for what it leaves alone
  extra.mkdir(exist_ok=True)
  (extra / _ABOUT).write_text(json.dumps(about(network)))


@contextlib.contextmanager
def _readable_by_tensorflow():
  """Has jax write StableHLO no newer than TensorFlow's.

  It writes the StableHLO of four weeks ago and leaves no choice, while TensorFlow's last release
  may be older: 2.21 cannot read the check of the number of images of jax 0.12.
  """
  from jaxlib.mlir.dialects import stablehlo
  from tensorflow.compiler.mlir.stablehlo import stablehlo as of_tensorflow

  name = "get_version_from_compatibility_requirement"
  asked = getattr(stablehlo, name)

  def readable(requirement):
    known = of_tensorflow.get_current_version()
    return of_tensorflow.get_smaller_version(asked(requirement), known)

  setattr(stablehlo, name, readable)
  try:
    yield
  finally:
    setattr(stablehlo, name, asked)


def write_onnx(network: Network, path: Path) -> None:
  """Writes ONNX, with what it says of itself as JSON in its metadata.

  Args:
    network: what to write.
    path: of the file.

  Raises:
    InputError: jax2onnx is not installed.
  """
  try:
    import jax2onnx
    import onnx
  except ImportError as error:
    raise _missing("ONNX", "onnx", error) from error
  logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # tells of shapes it leaves out
  serve = partial(_serving(network, depthwise.depthwise_by_conv), _of_prediction(network))
  # Traced before jax2onnx sees it: what it puts in place of library functions when it traces
  # itself confuses the layouts of ERFNet's sums, and it cannot read calls of jitted functions.
  images = _images(network)
  names = ["certainty", "probability"]  # in the order of a dict's leaves
  with jax.disable_jit():
    graph = jax.make_jaxpr(serve)(images)
    model = jax2onnx.to_onnx(
      jaxpr_as_fun(graph), [images], input_names=["image"], output_names=names
    )
  del model.graph.value_info[:]  # its shapes of intermediate results are partly wrong
  facts = {name: json.dumps(value) for name, value in about(network).items()}
  onnx.helper.set_model_props(model, facts)
  onnx.save(model, path)


def _serving(network, depthwise_way):
  weights = network.settings.class_weights
  return make_serving_fn(in_float32(network).model, weights, depthwise_way=depthwise_way)


def _of_prediction(network):
  """The variables without the teacher's, which only training uses."""
  params = {name: value for name, value in network.variables["params"].items() if name != "teacher"}
  return network.variables | {"params": params}


def _images(network):
  (batch,) = jax.export.symbolic_shape("b")
  return jax.ShapeDtypeStruct((batch, *network.canvas, 3), jnp.uint8)


def _missing(what, extra, error):
  return InputError(f'{what} needs pip install "boxseg_jax[{extra}]" ({error})')
