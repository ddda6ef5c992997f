"""Encoders against PyTorch's arithmetic on the same weights.

With torch installed its functional operations are the reference; without it, numbers that such a
run printed. The files of `../shared/weights` are optional as well.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from boxseg_jax import models
from boxseg_jax.errors import InputError
from boxseg_jax.models import pretrained

try:
  import torch
  from torch.nn import functional
except ImportError:
  torch = None

WEIGHTS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "weights"
RESNET50 = WEIGHTS / "resnet50_v1_imagenet.safetensors"
LITE0 = WEIGHTS / "efficientnet_lite0_imagenet.safetensors"

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")
needs_resnet50 = pytest.mark.skipif(not RESNET50.exists(), reason=f"no {RESNET50.name}")
needs_lite0 = pytest.mark.skipif(not LITE0.exists(), reason=f"no {LITE0.name}")

# Per level, finest first: mean, standard deviation and maximum of the reference's features of
# `photograph((65, 78, 3))`, from torch 2.13.
PINNED = {
  "resnet50": [
    [1.427908, 1.472932, 7.347751],
    [0.9403551, 0.8872709, 6.125628],
    [0.7719644, 1.117911, 12.1224],
    [0.5114091, 0.9354619, 10.94868],
    [0.2042785, 0.9275276, 21.68464],
  ],
  "lite0": [
    [-0.419907, 3.838263, 29.85555],
    [-0.3301966, 9.812308, 60.7229],
    [0.04079946, 8.228784, 35.06477],
    [-0.01548206, 6.105605, 20.62179],
    [-0.1086695, 1.830711, 7.950771],
  ],
}


def photograph(shape):
  """Smooth waves and some noise, so that features are neither flat nor white."""
  rows, columns, channel = np.meshgrid(*map(np.arange, shape), indexing="ij")
  waves = np.sin(rows / 5 + channel) * np.cos(columns / 7 - channel)
  noise = np.random.RandomState(0).rand(*shape)
  return (0.5 + 0.35 * waves + 0.15 * (noise - 0.5)).astype(np.float32)[None]


def features(path, *, encoder, image):
  options = {"encoder": encoder, **pretrained.read_metadata(str(path))}
  module = models.build("unet", num_classes=3, **options)
  variables = pretrained.load_encoder(blank(module), str(path), encoder=encoder)
  inner = {kind: variables[kind]["encoder"] for kind in variables}
  return jax.jit(lambda v, x: module.encoder.apply(v, x, train=False))(inner, jnp.asarray(image))


def blank(module):
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
  )
  return jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), shapes)


def assert_close(mine, reference):
  assert len(mine) == len(reference) == 5
  for level, (ours, theirs) in enumerate(zip(mine, reference, strict=True)):
    assert ours.shape == theirs.shape
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error <= 1e-4, f"level {level}: {error}"


def summary(feature):
  feature = np.asarray(feature, np.float64)
  return [feature.mean(), feature.std(), feature.max()]


def assert_pinned(mine, name):
  got = np.array([summary(feature) for feature in mine])
  scale = got[:, 1:2]
  np.testing.assert_array_less(np.abs(got - PINNED[name]) / scale, 1e-4)


# The reference: the published networks, a few lines each, on a dict of tensors.


def batch_norm(weights, name, x, eps):
  parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
  return functional.batch_norm(x, *parts, eps=eps)


def torch_resnet(weights, x, *, blocks, stride_in_1x1, eps):
  def conv_norm(name, norm, x, **options):
    return batch_norm(
      weights, norm, functional.conv2d(x, weights[f"{name}.weight"], **options), eps
    )

  def block(name, x, stride):
    last = 3 if f"{name}.conv3.weight" in weights else 2
    at = 1 if last == 2 or stride_in_1x1 else 2
    y = x
    for i in range(1, last + 1):
      padding = weights[f"{name}.conv{i}.weight"].shape[-1] // 2
      step = stride if i == at else 1
      y = conv_norm(f"{name}.conv{i}", f"{name}.bn{i}", y, stride=step, padding=padding)
      y = functional.relu(y) if i < last else y
    if f"{name}.downsample.0.weight" in weights:
      x = conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", x, stride=stride)
    return functional.relu(x + y)

  levels = [functional.relu(conv_norm("conv1", "bn1", x, stride=2, padding=3))]
  x = functional.max_pool2d(levels[0], 3, 2, 1)
  for stage, count in enumerate(blocks):
    for i in range(count):
      x = block(f"layer{stage + 1}.{i}", x, 2 if stage and not i else 1)
    levels.append(x)
  return levels


def torch_lite0(weights, x, *, eps=1e-3):
  def conv(name, x, stride=1):
    kernel = weights[f"{name}.weight"]
    side = kernel.shape[-1]
    total = [max((-(-size // stride) - 1) * stride + side - size, 0) for size in x.shape[2:]]
    pads = [half for t in reversed(total) for half in (t // 2, t - t // 2)]
    groups = x.shape[1] // kernel.shape[1]
    return functional.conv2d(functional.pad(x, pads), kernel, stride=stride, groups=groups)

  def block(name, x, stride):
    y, convs = x, ["conv_pw", "conv_dw", "conv_pwl"]
    if f"{name}.conv_pwl.weight" not in weights:
      convs = ["conv_dw", "conv_pw"]
    for i, part in enumerate(convs):
      y = conv(f"{name}.{part}", y, stride if part == "conv_dw" else 1)
      y = batch_norm(weights, f"{name}.bn{i + 1}", y, eps)
      y = functional.relu6(y) if i < len(convs) - 1 else y
    return x + y if x.shape == y.shape else y

  x = functional.relu6(batch_norm(weights, "bn1", conv("conv_stem", x, 2), eps))
  levels = []
  for stage, (count, stride) in enumerate(zip((1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1))):  # noqa: B905
    for i in range(count):
      x = block(f"blocks.{stage}.{i}", x, 1 if i else stride)
    if stage in (0, 1, 2, 4, 6):
      levels.append(x)
  return levels


def reference(network, tensors, image, **options):
  weights = {name: torch.from_numpy(array).float() for name, array in tensors.items()}
  with torch.no_grad():
    levels = network(weights, torch.from_numpy(image).permute(0, 3, 1, 2), **options)
  return [level.permute(0, 2, 3, 1).numpy() for level in levels]


def random_resnet(blocks, expansion=1):
  """Weights of a ResNet of basic blocks or bottlenecks in torchvision's names."""
  random = np.random.default_rng(0)
  tensors = {}

  def conv_norm(conv, norm, features, inputs, side):
    scale = np.sqrt(2 / (inputs * side * side))
    kernel = random.standard_normal((features, inputs, side, side)) * scale
    tensors[f"{conv}.weight"] = kernel
    tensors[f"{norm}.weight"] = random.uniform(0.5, 1.0, features)
    tensors[f"{norm}.bias"] = random.uniform(-0.2, 0.2, features)
    tensors[f"{norm}.running_mean"] = random.uniform(-0.2, 0.2, features)
    tensors[f"{norm}.running_var"] = random.uniform(0.5, 1.5, features)
    tensors[f"{norm}.num_batches_tracked"] = np.array(7)

  conv_norm("conv1", "bn1", 64, 3, 7)
  inputs = 64
  for stage, count in enumerate(blocks):
    width = 64 * 2**stage
    for i in range(count):
      name = f"layer{stage + 1}.{i}"
      shapes = [(width, inputs, 3), (width, width, 3)]
      if expansion == 4:
        shapes = [(width, inputs, 1), (width, width, 3), (4 * width, width, 1)]
      for j, shape in enumerate(shapes):
        conv_norm(f"{name}.conv{j + 1}", f"{name}.bn{j + 1}", *shape)
      if inputs != expansion * width:
        conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", expansion * width, inputs, 1)
      inputs = expansion * width
  tensors["fc.weight"] = random.standard_normal((1000, inputs))
  tensors["fc.bias"] = np.zeros(1000)
  return {n: a.astype(np.float32) if a.ndim else a for n, a in tensors.items()}


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
  save_file(random_resnet((2, 2, 2, 2)), path)
  return path


@needs_torch
@needs_resnet50
def test_resnet50_v1_equals_torch():
  image = photograph((65, 78, 3))
  mine = features(RESNET50, encoder="resnet50", image=image)
  options = {"blocks": (3, 4, 6, 3), "stride_in_1x1": True, "eps": 1e-3}
  theirs = reference(torch_resnet, load_file(RESNET50), image, **options)
  assert_close(mine, theirs)
  np.testing.assert_allclose([summary(x) for x in theirs], PINNED["resnet50"], rtol=2e-3)


@needs_torch
@needs_lite0
def test_lite0_equals_torch():
  image = photograph((65, 78, 3))
  mine = features(LITE0, encoder="efficientnet_lite0", image=image)
  theirs = reference(torch_lite0, load_file(LITE0), image)
  assert_close(mine, theirs)
  np.testing.assert_allclose([summary(x) for x in theirs], PINNED["lite0"], rtol=2e-3)


@pytest.mark.skipif(torch is not None, reason="torch itself is the reference")
@needs_resnet50
def test_resnet50_v1_equals_pinned_numbers():
  mine = features(RESNET50, encoder="resnet50", image=photograph((65, 78, 3)))
  assert_pinned(mine, "resnet50")


@pytest.mark.skipif(torch is not None, reason="torch itself is the reference")
@needs_lite0
def test_lite0_equals_pinned_numbers():
  mine = features(LITE0, encoder="efficientnet_lite0", image=photograph((65, 78, 3)))
  assert_pinned(mine, "lite0")


@needs_torch
def test_resnet18_equals_torch(resnet18_file):
  image = photograph((49, 66, 3))
  mine = features(resnet18_file, encoder="resnet18", image=image)
  tensors = load_file(resnet18_file)
  options = {"blocks": (2, 2, 2, 2), "stride_in_1x1": False, "eps": 1e-5}
  assert_close(mine, reference(torch_resnet, tensors, image, **options))


@needs_torch
def test_resnet50_v15_equals_torch(tmp_path):
  path = tmp_path / "resnet50.safetensors"
  save_file(random_resnet((3, 4, 6, 3), expansion=4), path)
  image = photograph((33, 50, 3))
  mine = features(path, encoder="resnet50", image=image)
  options = {"blocks": (3, 4, 6, 3), "stride_in_1x1": False, "eps": 1e-5}
  assert_close(mine, reference(torch_resnet, load_file(path), image, **options))


def test_load_replaces_the_encoder_and_nothing_else(resnet18_file):
  module = models.build("unet", num_classes=3, encoder="resnet18")
  before = blank(module)
  after = pretrained.load_encoder(before, str(resnet18_file), encoder="resnet18")
  tensors = load_file(resnet18_file)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  encoder = after["params"]["encoder"]
  kernel = encoder["layer2_0"]["downsample_0"]["kernel"]
  np.testing.assert_array_equal(kernel[0, 0].T, tensors["layer2.0.downsample.0.weight"][..., 0, 0])
  np.testing.assert_array_equal(
    encoder["conv1"]["kernel"][2, 5, 1], tensors["conv1.weight"][:, 1, 2, 5]
  )
  statistics = after["batch_stats"]["encoder"]["layer4_1"]["bn2"]
  np.testing.assert_array_equal(statistics["var"], tensors["layer4.1.bn2.running_var"])
  assert not any(np.isnan(x).any() for x in jax.tree.leaves((encoder, statistics)))
  for part in ("decoder", "head"):
    assert all(np.isnan(x).all() for x in jax.tree.leaves(after["params"][part]))


def test_differences_are_listed_by_name(resnet18_file, tmp_path):
  tensors = load_file(resnet18_file)
  del tensors["layer1.0.bn1.weight"]
  tensors["layer5.0.conv1.weight"] = np.zeros((1,), np.float32)
  tensors["conv1.weight"] = np.zeros((64, 4, 7, 7), np.float32)
  path = tmp_path / "broken.safetensors"
  save_file(tensors, path)
  variables = blank(models.build("unet", num_classes=3, encoder="resnet18"))
  with pytest.raises(InputError) as raised:
    pretrained.load_encoder(variables, str(path), encoder="resnet18")
  assert str(raised.value).splitlines() == [
    f"{path} does not fit the encoder 'resnet18':",
    "  1 missing in the file:",
    "    layer1.0.bn1.weight",
    "  1 unexpected in the file:",
    "    layer5.0.conv1.weight",
    "  1 of another shape:",
    "    conv1.weight: file (7, 7, 4, 64), network (7, 7, 3, 64)",
  ]


def test_a_file_for_another_network_or_norm_is_refused(resnet18_file):
  deeper = blank(models.build("unet", num_classes=3, encoder="resnet34"))
  with pytest.raises(InputError, match="80 missing in the file:(.|\n)*and 72 more"):
    pretrained.load_encoder(deeper, str(resnet18_file), encoder="resnet34")
  grouped = blank(models.build("unet", num_classes=3, encoder="resnet18", norm="group"))
  with pytest.raises(InputError, match="unexpected in the file:\n    bn1.running_mean"):
    pretrained.load_encoder(grouped, str(resnet18_file), encoder="resnet18")
  with pytest.raises(InputError, match="no pretrained weights for the encoder 'conv'"):
    pretrained.load_encoder(grouped, str(resnet18_file), encoder="conv")


def test_metadata_gives_build_options(tmp_path):
  path = str(tmp_path / "weights.safetensors")
  array = {"a": np.zeros(1, np.float32)}
  save_file(array, path)
  assert pretrained.read_metadata(path) == {}
  save_file(array, path, metadata={"stride_in_1x1": "true", "bn_eps": "1e-3", "origin": "x"})
  assert pretrained.read_metadata(path) == {"stride_in_1x1": True, "bn_epsilon": 1e-3}
  for wrong in ({"stride_in_1x1": "maybe"}, {"bn_eps": "small"}, {"bn_eps": "-1"}):
    save_file(array, path, metadata=wrong)
    with pytest.raises(InputError, match=f"{path}: metadata {next(iter(wrong))} is"):
      pretrained.read_metadata(path)


def test_unreadable_files_are_named(tmp_path):
  with pytest.raises(InputError, match="absent.safetensors: there is no such file"):
    pretrained.read_metadata(str(tmp_path / "absent.safetensors"))
  path = tmp_path / "model.pth"
  path.write_bytes(b"not a tensor in here, whatever the name says")
  with pytest.raises(InputError, match="model.pth: cannot be read as a safetensors file"):
    pretrained.read_metadata(str(path))


def test_hub_paths(monkeypatch, resnet18_file):
  hub = pytest.importorskip("huggingface_hub")
  asked = []

  def download(repository, file):
    asked.append((repository, file))
    if repository != "timm/resnet18":
      raise OSError("404")
    return str(resnet18_file)

  monkeypatch.setattr(hub, "hf_hub_download", download)
  assert pretrained.read_metadata("hf://timm/resnet18/sub/model.safetensors") == {}
  assert asked == [("timm/resnet18", "sub/model.safetensors")]
  with pytest.raises(InputError, match="hf://timm/resnet19/x: cannot be had from the hub: 404"):
    pretrained.read_metadata("hf://timm/resnet19/x")
  with pytest.raises(InputError, match="wanted hf://owner/repository/file"):
    pretrained.read_metadata("hf://model.safetensors")
