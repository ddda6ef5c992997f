"""ResNet encoders, with the names and the arithmetic of torchvision's.

He et al., "Deep residual learning for image recognition", CVPR 2016 (arXiv 1512.03385).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from boxseg_jax.errors import InputError
from boxseg_jax.models.layers import Style, convolution, normalise

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_DEPTHS = (50, 101)
EPSILON = 1e-5  # of torchvision's networks
WIDTHS = (64, 128, 256, 512)


class Basic(nn.Module):
  """Two 3x3 convolutions and a shortcut."""

  width: int
  stride: int
  dilations: tuple[int, int]  # on the grid that comes in, on the one that goes out
  style: Style

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, in] to [batch, ceil(height / stride), ..., width]."""
    before, after = ((dilation, dilation) for dilation in self.dilations)
    y = convolution(self.width, self.style, stride=self.stride, dilation=before, name="conv1")(x)
    y = normalise(y, self.style, train, act=nn.relu, name="bn1")
    y = convolution(self.width, self.style, dilation=after, name="conv2")(y)
    y = normalise(y, self.style, train, name="bn2")
    return nn.relu(y + shortcut(x, y.shape[-1], self.stride, self.style, train))


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolution and a shortcut; four times `width` channels come out."""

  width: int
  stride: int
  dilations: tuple[int, int]  # on the grid that comes in, on the one that goes out
  style: Style
  stride_in_1x1: bool

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, in] to [batch, ceil(height / stride), ..., 4 * width]."""
    strides = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
    dilation = (self.dilations[self.stride_in_1x1],) * 2
    y = convolution(self.width, self.style, kernel=(1, 1), stride=strides[0], name="conv1")(x)
    y = normalise(y, self.style, train, act=nn.relu, name="bn1")
    y = convolution(self.width, self.style, stride=strides[1], dilation=dilation, name="conv2")(y)
    y = normalise(y, self.style, train, act=nn.relu, name="bn2")
    y = convolution(4 * self.width, self.style, kernel=(1, 1), name="conv3")(y)
    y = normalise(y, self.style, train, name="bn3")
    return nn.relu(y + shortcut(x, y.shape[-1], self.stride, self.style, train))


def shortcut(x, features: int, stride: int, style: Style, train: bool):
  """`x` itself, or projected where the block changes its shape."""
  if stride == 1 and x.shape[-1] == features:
    return x
  x = convolution(features, style, kernel=(1, 1), stride=stride, name="downsample_0")(x)
  return normalise(x, style, train, name="downsample_1")


def convolve_stem(x, kernel, strides, padding, **options):
  """`jax.lax.conv_general_dilated`, for `nn.Conv`'s argument of that name; of the first layer only.

  On GPUs 2x2 blocks of pixels become pixels of four times the channels, which no longer are too few
  for the matrix units: half the time there.

  Args:
    x: [batch, height, width, 3].
    kernel: [7, 7, 3, out], of the same dtype.
    strides: (2, 2).
    padding: ((3, 3), (3, 3)).
    **options: what `nn.Conv` passes on besides, at its defaults.

  Returns:
    [batch, ceil(height / 2), ceil(width / 2), out].
  """
  if jax.default_backend() == "gpu":
    return convolve_blocks(x, kernel)
  return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def convolve_blocks(x, kernel):
  """The 7x7 convolution at stride 2 as a 4x4 one of 2x2 blocks; arguments as `convolve_stem`."""
  batch, height, width, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
  blocks = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels)
  blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(*blocks.shape[:2], -1, 4 * channels)
  # Window i reaches from three pixels before 2 i, the middle of four blocks, to three after it.
  kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
  kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, -1)
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(blocks, kernel, (1, 1), [(2, 1)] * 2, dimension_numbers=layout)


def max_pool(x):
  """Maximum over 3x3 windows at stride 2, padded on both sides.

  Written as maxima of every second row and column: the gradient of a pooling window is a scatter,
  which is slow on CPUs.
  """
  return _max_along(_max_along(x, 1), 2)


def _max_along(x, axis: int):
  """Maximum of every second row or column and its neighbours."""
  if x.shape[axis] == 1:
    return x
  even, odd = (lax.slice_in_dim(x, first, None, 2, axis) for first in (0, 1))
  count = even.shape[axis]
  # A place beyond the border holds one of its window once more, which no maximum notices. As
  # padding, it could not be exported to ONNX for any number of images.
  before, after = lax.slice_in_dim(even, 0, 1, axis=axis), odd
  if count > 1:
    before = jnp.concatenate([before, lax.slice_in_dim(odd, 0, count - 1, axis=axis)], axis)
  if odd.shape[axis] < count:
    after = jnp.concatenate([odd, lax.slice_in_dim(even, count - 1, count, axis=axis)], axis)
  return jnp.maximum(jnp.maximum(before, even), after)


def strides_and_dilations(output_stride: int) -> list[tuple[int, tuple[int, int]]]:
  """Per stage: stride, dilations on the grid that it gets and on the one that it gives.

  A stage beyond `output_stride` keeps the resolution and spreads its kernels instead, so that
  it computes what the strided one would, only at more places.
  """
  stages, reached, dilation = [(1, (1, 1))], 4, 1
  for _ in WIDTHS[1:]:
    if reached < output_stride:
      reached *= 2
      stages.append((2, (dilation, dilation)))
    else:
      stages.append((1, (dilation, 2 * dilation)))
      dilation *= 2
  return stages


class ResNet(nn.Module):
  """A ResNet without its classifier.

  Attributes:
    depth: 18, 34, 50 or 101.
    style: as everywhere; torchvision's epsilon is 1e-5.
    stride_in_1x1: a bottleneck's stride sits on its first 1x1 convolution (the paper's network)
      instead of on the 3x3 (torchvision's "v1.5").
    output_stride: 32, 16 or 8.
  """

  depth: int
  style: Style
  stride_in_1x1: bool = False
  output_stride: int = 32

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, 3] to the features of stem and four stages, finest first.

    Their strides are 2, 4, 8, 16 and 32, none above `output_stride`.
    """
    x = convolution(64, self.style, kernel=(7, 7), stride=2, by=convolve_stem, name="conv1")(x)
    features = [normalise(x, self.style, train, act=nn.relu, name="bn1")]
    x = max_pool(features[0])
    for stage, (stride, dilations) in enumerate(strides_and_dilations(self.output_stride)):
      for block in range(STAGES[self.depth][stage]):
        step = (1, dilations[1:] * 2) if block else (stride, dilations)
        x = self._block(WIDTHS[stage], *step, name=f"layer{stage + 1}_{block}")(x, train)
      features.append(x)
    return features

  def _block(self, width, stride, dilations, name):
    if self.depth in BOTTLENECK_DEPTHS:
      return Bottleneck(width, stride, dilations, self.style, self.stride_in_1x1, name=name)
    return Basic(width, stride, dilations, self.style, name=name)


def build(
  depth: int,
  *,
  style: Style,
  stride_in_1x1: bool = False,
  bn_epsilon: float = EPSILON,
  output_stride: int = 32,
) -> ResNet:
  """Makes a ResNet encoder; see `ResNet`.

  Raises:
    InputError: for `stride_in_1x1` with a depth that has no 1x1 convolution to put it on.
  """
  if stride_in_1x1 and depth not in BOTTLENECK_DEPTHS:
    raise InputError(f"stride_in_1x1 does not apply to resnet{depth}: its blocks have no 1x1")
  style = dataclasses.replace(style, epsilon=bn_epsilon)
  return ResNet(depth, style, stride_in_1x1, output_stride)
