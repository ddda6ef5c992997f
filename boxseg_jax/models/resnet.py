"""ResNet encoders, with the names and the arithmetic of torchvision's.

He et al., "Deep residual learning for image recognition", CVPR 2016 (arXiv 1512.03385).
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

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
    y = nn.relu(normalise(y, self.style, train, name="bn1"))
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
    y = nn.relu(normalise(y, self.style, train, name="bn1"))
    y = convolution(self.width, self.style, stride=strides[1], dilation=dilation, name="conv2")(y)
    y = nn.relu(normalise(y, self.style, train, name="bn2"))
    y = convolution(4 * self.width, self.style, kernel=(1, 1), name="conv3")(y)
    y = normalise(y, self.style, train, name="bn3")
    return nn.relu(y + shortcut(x, y.shape[-1], self.stride, self.style, train))


def shortcut(x, features: int, stride: int, style: Style, train: bool):
  """`x` itself, or projected where the block changes its shape."""
  if stride == 1 and x.shape[-1] == features:
    return x
  x = convolution(features, style, kernel=(1, 1), stride=stride, name="downsample_0")(x)
  return normalise(x, style, train, name="downsample_1")


def max_pool(x):
  """Maximum over 3x3 windows at stride 2, padded on both sides.

  Written as maxima of strided slices: the gradient of a pooling window is a scatter, which is
  slow on CPUs.
  """
  rows, columns = (-(-size // 2) * 2 - 1 for size in x.shape[1:3])
  # The border is repeated, which no maximum notices: each window holds the pixel that is repeated.
  # As padding, it could not be exported to ONNX for any number of images.
  x = jnp.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
  x = jnp.concatenate([x[:, :, :1], x, x[:, :, -1:]], axis=2)
  x = jnp.maximum(jnp.maximum(x[:, :, 0:columns:2], x[:, :, 1 : columns + 1 : 2]), x[:, :, 2::2])
  return jnp.maximum(jnp.maximum(x[:, 0:rows:2], x[:, 1 : rows + 1 : 2]), x[:, 2::2])


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
    x = convolution(64, self.style, kernel=(7, 7), stride=2, name="conv1")(x)
    features = [nn.relu(normalise(x, self.style, train, name="bn1"))]
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
