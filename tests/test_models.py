import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from boxseg_jax import models
from boxseg_jax.errors import InputError
from boxseg_jax.models import depthwise, erfnet, layers, resnet
from boxseg_jax.models.heads import Head
from boxseg_jax.models.layers import Style

ODD = (2, 45, 61, 3)

# Encoders: torchvision's and timm's counts without their classifiers (timm's Lite0, 3,371,008,
# also without its last 1x1 convolution of 412,160). ERFNet's paper: 2.1 million.
NETWORKS = [
  ("unet", {"encoder": "conv"}, 294_000, 488_069),
  ("unet", {"encoder": "conv", "width": 8, "levels": 3}, 18_296, 29_957),
  ("unet", {"encoder": "resnet18"}, 11_176_512, 14_321_253),
  ("unet", {"encoder": "resnet34"}, 21_284_672, 24_429_413),
  ("unet", {"encoder": "resnet50"}, 23_508_032, 32_514_149),
  ("unet", {"encoder": "efficientnet_lite0"}, 2_958_848, 3_825_253),
  ("erfnet", {}, 1_871_231, 2_060_884),
  ("deeplabv3plus", {"encoder": "resnet50"}, 23_508_032, 40_348_069),
  ("deeplabv3plus", {"encoder": "resnet101", "output_stride": 8}, 42_500_160, 59_340_197),
]


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def with_gradients(function, *arguments):
  """[value, gradients of its sum weighted by no two alike]."""
  value, pull = jax.vjp(function, *arguments)
  return [value, *pull(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))]


def init_shapes(module, shape=ODD):
  image = jnp.zeros(shape)
  return jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))


def small_unet(**kwargs):
  return models.build("unet", **{"num_classes": 3, "width": 4, "levels": 3, **kwargs})


def random_image(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def initialise(module, image):
  key = jax.random.key(1, impl="rbg")  # compiles five times as fast as the default
  return jax.jit(lambda key: module.init(key, image, train=False))(key)


@pytest.mark.parametrize(("name", "options", "encoder", "total"), NETWORKS)
def test_parameter_counts(name, options, encoder, total):
  params = init_shapes(models.build(name, num_classes=4, **options))["params"]
  assert set(params) == {"encoder", "decoder", "head"}
  assert (count(params["encoder"]), count(params)) == (encoder, total)


@pytest.mark.parametrize(("name", "options"), [row[:2] for row in NETWORKS])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_have_the_size_of_the_input_in_float32(name, options, train, dtype):
  module = models.build(name, num_classes=4, dtype=dtype, **options)
  variables = init_shapes(module)
  apply = lambda v: module.apply(v, jnp.zeros(ODD), train=train, mutable=["batch_stats"])  # noqa: E731
  outputs, state = jax.eval_shape(apply, variables)
  assert outputs.logits.shape == (2, 45, 61, 4) and outputs.sigma.shape == (2, 45, 61)
  assert {leaf.dtype for leaf in jax.tree.leaves((outputs, variables, state))} == {
    jnp.dtype("float32")
  }
  assert jax.tree.structure(state["batch_stats"]) == jax.tree.structure(variables["batch_stats"])


@pytest.mark.parametrize(("name", "options"), [row[:2] for row in NETWORKS])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_network_can_have_a_teacher(name, options, norm):
  module = models.build(name, num_classes=4, norm=norm, **options)
  image, maps = jnp.zeros(ODD), jnp.zeros((1, *ODD[1:3], 6))

  def both(key):
    variables = module.init(key, image, maps, train=False, method="with_teacher")
    outputs = module.apply(
      variables, image, maps, train=True, method="with_teacher", mutable=["batch_stats"]
    )
    return variables, outputs

  variables, ((outputs, logits), _) = jax.eval_shape(both, jax.random.key(0))
  assert outputs.logits.shape == (2, 45, 61, 4)
  assert logits.shape == (1, 45, 61, 4) and logits.dtype == jnp.float32
  # The network is the same with and without it, and it keeps no statistics.
  alone = init_shapes(module)
  teacher = variables["params"].pop("teacher")
  assert jax.tree.structure(variables) == jax.tree.structure(alone)
  assert set(teacher) >= {"decoder", "logits", "boxes0"}
  assert "teacher" not in variables.get("batch_stats", {})


def test_the_teacher_sees_the_boxes_and_the_network_does_not():
  module = small_unet()
  image = random_image((2, 24, 32, 3))
  maps = jnp.zeros((2, 24, 32, 4)).at[:, 4:12, 8:16].set(1.0)
  key = jax.random.key(1, impl="rbg")
  variables = module.init(key, image, maps, train=False, method="with_teacher")
  look = jax.jit(lambda m: module.apply(variables, image, m, train=False, method="with_teacher"))
  alone, told = look(maps)
  other, told_nothing = look(0 * maps)
  jax.tree.map(np.testing.assert_array_equal, alone, other)
  np.testing.assert_allclose(
    alone.logits, module.apply(variables, image, train=False).logits, atol=1e-5
  )
  assert np.abs(told - told_nothing).max() > 1e-3
  first, of_first = look(maps[:1])  # the boxes of the first image alone
  np.testing.assert_allclose(of_first, told[:1], atol=1e-5)
  np.testing.assert_allclose(first.logits, alone.logits, atol=1e-5)


def test_two_classes_share_one_logit():
  assert init_shapes(small_unet(num_classes=2))["params"]["head"]["logits"]["bias"].shape == (1,)
  assert init_shapes(small_unet(num_classes=5))["params"]["head"]["logits"]["bias"].shape == (5,)


@pytest.mark.parametrize("options", [{"encoder": "conv"}, {"encoder": "resnet18"}])
def test_group_norm_keeps_no_statistics_and_ignores_the_rest_of_the_batch(options):
  module = models.build("unet", num_classes=3, norm="group", **options)
  assert set(init_shapes(module)) == {"params"}
  if options["encoder"] != "conv":
    return
  image = random_image((2, 20, 24, 3))
  variables = initialise(module, image)
  apply = jax.jit(lambda x: module.apply(variables, x, train=True).logits)
  np.testing.assert_allclose(apply(image)[:1], apply(image[:1]), atol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (16, 4), (24, 6), (112, 28), (320, 32)])
def test_group_count_divides_and_leaves_four_channels(channels, groups):
  assert layers.group_count(channels) == groups


def predict(module, variables, image):
  return jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, image)


def test_every_parameter_and_pixel_matters():
  module = small_unet()
  image = random_image((2, 13, 18, 3))
  variables = initialise(module, image)
  weights = random_image((2, 13, 18, 4), seed=1) - 0.5

  @jax.jit
  def gradients(params, image):
    def score(params, image):
      variables_ = {**variables, "params": params}
      outputs, _ = module.apply(variables_, image, train=True, mutable=["batch_stats"])
      joined = jnp.concatenate([outputs.logits, outputs.sigma[..., None]], -1)
      return jnp.sum(joined * weights)

    return jax.grad(score, argnums=(0, 1))(params, image)

  to_params, to_image = gradients(variables["params"], image)
  assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(to_params))
  assert jnp.all(jnp.any(to_image != 0, -1))


def test_bfloat16_is_close_to_float32():
  image = random_image((2, 32, 32, 3))
  variables = initialise(small_unet(), image)
  exact = predict(small_unet(), variables, image)
  rounded = predict(small_unet(dtype="bfloat16"), variables, image)
  error = jnp.abs(rounded.logits - exact.logits).max() / jnp.abs(exact.logits).max()
  assert 1e-6 < error < 0.05


def test_synchronised_statistics_are_those_of_the_whole_batch():
  image = random_image((4, 16, 20, 3))
  together, apart = small_unet(), small_unet(axis_name="devices")
  variables = initialise(apart, image[:2])

  def step(module, image):
    return module.apply(variables, image, train=True, mutable=["batch_stats"])

  whole, whole_state = jax.jit(lambda x: step(together, x))(image)
  split = image.reshape(2, 2, 16, 20, 3)
  parts, part_state = jax.jit(jax.vmap(lambda x: step(apart, x), axis_name="devices"))(split)
  np.testing.assert_allclose(parts.logits.reshape(whole.logits.shape), whole.logits, atol=2e-4)
  for part, full in zip(jax.tree.leaves(part_state), jax.tree.leaves(whole_state), strict=True):
    np.testing.assert_allclose(part[0], part[1])
    np.testing.assert_allclose(part[0], full, rtol=1e-4, atol=1e-5)
  alone, _ = jax.jit(lambda x: step(together, x))(
    image[:2]
  )  # without it the halves would differ visibly
  assert jnp.abs(alone.logits - whole.logits[:2]).max() > 1e-2


def test_head_by_hand():
  params = {
    "logits": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([0.0, -1.0])},
    "sigma": {"kernel": jnp.array([[-3.0]]), "bias": jnp.array([0.0])},
  }
  x = jnp.array([0.0, 1.0, -2.0]).reshape(1, 1, 3, 1).astype(jnp.bfloat16)
  outputs = Head(2).apply({"params": params}, x, (1, 3))
  np.testing.assert_allclose(outputs.logits[0, 0], [[0, -1], [1, 1], [-2, -5]])
  np.testing.assert_allclose(outputs.sigma[0, 0], np.log1p(np.exp([0, -3, 6])), rtol=1e-5)
  assert outputs.logits.dtype == outputs.sigma.dtype == jnp.float32


def test_sigma_is_never_negative():
  image = random_image((1, 9, 9, 3))
  module = small_unet()
  variables = initialise(module, image)
  variables["params"]["head"]["sigma"]["bias"] = jnp.array([-200.0])
  sigma = predict(module, variables, image).sigma
  assert jnp.all(sigma >= 0) and sigma.max() < 1e-6


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"name": "unett"}, "unknown network 'unett'; did you mean 'unet'"),
    ({"norm": "batchnorm"}, "norm 'batchnorm'; did you mean 'batch'"),
    ({"dtype": "float16"}, "dtype 'float16'; did you mean 'bfloat16'"),
    ({"num_classes": 1}, "num_classes is 1"),
    ({"encoder": "resnet51"}, "encoder of unet 'resnet51'; did you mean 'resnet50'"),
    ({"widht": 8}, "option of unet on conv 'widht'; did you mean 'width'"),
    ({"encoder": "resnet18", "width": 8}, "option of unet on resnet18 'width'"),
    ({"encoder": "resnet18", "stride_in_1x1": True}, "does not apply to resnet18"),
    ({"name": "erfnet", "width": 8}, "option of erfnet 'width'"),
    ({"name": "deeplabv3plus", "encoder": "resnet18"}, "encoder of deeplabv3plus 'resnet18'"),
    ({"name": "deeplabv3plus", "output_stride": 4}, "output stride of deeplabv3plus 4"),
  ],
)
def test_build_refuses_what_it_does_not_know(kwargs, message):
  with pytest.raises(InputError, match=message):
    models.build(**{"name": "unet", "num_classes": 3, **kwargs})


@pytest.mark.parametrize(("output_stride", "last"), [(16, (4, 7)), (8, (8, 13))])
def test_deeplab_features_keep_their_output_stride(output_stride, last):
  module = models.build("deeplabv3plus", num_classes=3, output_stride=output_stride)
  image = jnp.zeros((1, 60, 100, 3))
  shapes = jax.eval_shape(lambda: module.encoder.init_with_output(jax.random.key(0), image, False))
  sizes = [feature.shape[1:3] for feature in shapes[0]]
  assert sizes[:3] == [(30, 50), (15, 25), (8, 13)] and sizes[-1] == last


@pytest.mark.parametrize(("depth", "stride_in_1x1"), [(18, False), (50, False), (50, True)])
def test_dilation_computes_the_strided_features_at_more_places(monkeypatch, depth, stride_in_1x1):
  monkeypatch.setitem(resnet.STAGES, depth, (1, 1, 2, 2))
  monkeypatch.setattr(resnet, "WIDTHS", (4, 4, 8, 12))
  image = random_image((1, 67, 49, 3))
  make = lambda stride: resnet.build(  # noqa: E731
    depth, style=Style(), stride_in_1x1=stride_in_1x1, output_stride=stride
  )
  variables = initialise(make(32), image)
  coarse, fine = (predict(make(stride), variables, image) for stride in (32, 8))
  assert [f.shape[1] for f in fine[2:]] == [9, 9, 9] and coarse[4].shape[1] == 3
  np.testing.assert_allclose(fine[3][:, ::2, ::2], coarse[3], atol=1e-5)
  np.testing.assert_allclose(fine[4][:, ::4, ::4], coarse[4], atol=1e-5)


@pytest.mark.parametrize("size", [(8, 11), (9, 6), (1, 2), (3, 1)])
def test_max_pool_is_the_windowed_one(size):
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *size, 3)), jnp.float32)

  def window(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

  for mine, theirs in zip(
    *(with_gradients(by, x) for by in (resnet.max_pool, window)), strict=True
  ):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 11), (9, 6), (2, 3)])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_stem_is_the_same_convolution_everywhere(backend, size, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  x = random_image((2, *size, 3))
  kernel = jnp.asarray(np.random.default_rng(1).standard_normal((7, 7, 3, 5)), jnp.float32)
  options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

  def along(by):
    return with_gradients(lambda x, k: by(x, k, (2, 2), [(3, 3)] * 2, **options), x, kernel)

  ways = (resnet.convolve_stem, jax.lax.conv_general_dilated)
  for mine, theirs in zip(*map(along, ways), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(10, 12), (5, 4), (15, 4), (7, 9)])
@pytest.mark.parametrize(("backend", "channels"), [("cpu", 20), ("gpu", 20), ("gpu", 2)])
def test_resizing_is_that_of_jax(backend, channels, size, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  x = random_image((2, 5, 4, channels))

  def theirs(x):
    return jax.image.resize(x, (2, *size, channels), "bilinear", antialias=False)

  ways = (lambda x: layers.resize(x, size), theirs)
  for mine, other in zip(*(with_gradients(by, x) for by in ways), strict=True):
    np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_is_a_convolution(stride):
  x = random_image((2, 7, 8, 5))
  mine = layers.Pointwise(6, stride, jnp.float32)
  variables = mine.init(jax.random.key(0), x)
  theirs = nn.Conv(6, (1, 1), strides=stride, padding="VALID", use_bias=False)
  np.testing.assert_allclose(mine.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
def test_depthwise_ways_agree_in_value_and_gradient(side, stride, size):
  random = np.random.default_rng(0)
  x = jnp.asarray(random.standard_normal((2, *size, 6)), jnp.float32)
  kernel = jnp.asarray(random.standard_normal((side, side, 1, 6)), jnp.float32)

  def both(way):
    return jax.jit(lambda x, k: with_gradients(lambda x, k: way(x, k, stride), x, k))(x, kernel)

  by_taps, by_conv = both(depthwise.depthwise_by_taps), both(depthwise.depthwise_by_conv)
  for mine, theirs in zip(jax.tree.leaves(by_taps), jax.tree.leaves(by_conv), strict=True):
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize(("backend", "convolves"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_depthwise_takes_the_backends_faster_way(monkeypatch, backend, convolves):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  jaxpr = jax.make_jaxpr(lambda x, k: depthwise.depthwise(x, k, 1))(
    jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 1, 2))
  )
  assert ("conv_general_dilated" in str(jaxpr)) == convolves


def test_depthwise_bfloat16_sums_its_gradient_in_float32():
  x = jnp.ones((1, 40, 40, 1), jnp.bfloat16)
  kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16)
  grad = jax.grad(lambda k: depthwise.depthwise_by_taps(x, k, 1).astype(jnp.float32).sum())(kernel)
  assert grad.dtype == jnp.bfloat16 and grad[1, 1, 0, 0] == 1600  # bfloat16 sums stop at 256


def test_doubling_repeats_and_cuts():
  x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, ..., None]
  np.testing.assert_array_equal(
    layers.double_to(x, (3, 4))[0, ..., 0], [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]
  )


def test_blocks_of_four_repeat_the_edge_of_odd_sizes():
  x = jnp.arange(6.0).reshape(1, 2, 3, 1)
  blocks = layers.blocks_of_four(x)
  np.testing.assert_array_equal(blocks.mean((2, 4))[0, ..., 0], [[2, 3.5]])
  np.testing.assert_array_equal(blocks.max((2, 4))[0, ..., 0], [[4, 5]])


def test_standardised_image_by_hand():
  image = jnp.array([0.485, 0.456 + 0.224, 0.406 - 2 * 0.225]).reshape(1, 1, 1, 3)
  np.testing.assert_allclose(
    layers.standardise_image(image, jnp.float32)[0, 0, 0], [0, 1, -2], atol=1e-6
  )


@pytest.mark.parametrize(("side", "padding"), [(3, (1, 2)), (2, (1, 1))])
def test_transposed_convolution_is_the_dilated_one(side, padding):
  x = random_image((2, 5, 4, 3))
  kernel = random_image((side, side, 3, 6), seed=1) - 0.5
  expected = jax.lax.conv_general_dilated(
    x,
    kernel[::-1, ::-1],
    (1, 1),
    [padding] * 2,
    lhs_dilation=(2, 2),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  mine = erfnet.transposed_convolution(x, kernel)
  assert mine.shape == (2, 10, 8, 6)
  np.testing.assert_allclose(mine, expected, atol=1e-5)
