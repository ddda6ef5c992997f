"""Building blocks that every network shares: convolution, normalisation, resizing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from boxseg_jax.batch import IMAGE_MEAN
from boxseg_jax.models.batch_norm import BatchNorm
from boxseg_jax.models.kernel_gradient import convolve, multiply

IMAGE_STD = (0.229, 0.224, 0.225)
BATCH_NORM_MOMENTUM = 0.9

kernel_init = nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class Style:
  """What all layers of one network have in common.

  Attributes:
    norm: "batch" or "group".
    dtype: compute dtype; parameters and statistics stay float32.
    axis_name: mapped axis over which batch statistics are averaged in training; None: not.
    epsilon: added to the variance.
  """

  norm: str = "batch"
  dtype: Any = jnp.float32
  axis_name: str | None = None
  epsilon: float = 1e-5


def group_count(channels: int) -> int:
  """The most groups, at most 32, that divide `channels` and hold 4 or more channels each."""
  fitting = [n for n in range(1, 33) if channels % n == 0 and channels // n >= 4]
  return max(fitting, default=1)


def normalise(x, style: Style, train: bool, *, name: str):
  """Batch or group normalisation, for use inside a compact module.

  Group normalisation keeps no running statistics, so a network that uses it has no
  `batch_stats` and behaves alike in training and prediction.

  Args:
    x: [batch, height, width, channels].
    style: chooses the kind and its constants.
    train: batch normalisation by the batch's statistics instead of the running ones.
    name: of the submodule that holds scale, bias and statistics.

  Returns:
    [batch, height, width, channels] in the style's dtype.
  """
  if style.norm == "group":
    groups = group_count(x.shape[-1])
    return nn.GroupNorm(groups, epsilon=style.epsilon, dtype=style.dtype, name=name)(x)
  norm = BatchNorm(BATCH_NORM_MOMENTUM, style.epsilon, style.dtype, style.axis_name, name=name)
  return norm(x, train)


class Pointwise(nn.Module):
  """A 1x1 convolution as the matrix product that it is, the kernel laid out as `nn.Conv`'s.

  Written as a convolution, the gradient of its kernel takes 3 to 8 times as long on CPUs.
  """

  features: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    """Maps [batch, height, width, in] to [batch, ceil(height / stride), ..., features]."""
    kernel = self.param("kernel", kernel_init, (1, 1, x.shape[-1], self.features))
    x = x[:, :: self.stride, :: self.stride].astype(self.dtype)
    return multiply(x, kernel[0, 0].astype(self.dtype))


def convolution(
  features: int,
  style: Style,
  *,
  kernel: tuple[int, int] = (3, 3),
  stride: int = 1,
  dilation: tuple[int, int] = (1, 1),
  padding: str = "symmetric",
  name: str,
) -> nn.Module:
  """A convolution without bias, of which ceil(size / stride) remains; the caller applies it.

  Args:
    features: channels of the result.
    style: gives the compute dtype.
    kernel: (height, width), odd.
    stride: in both directions.
    dilation: (vertical, horizontal) distance between taps.
    padding: "symmetric", PyTorch's habit, or "SAME", TensorFlow's: the odd cell at the end.
    name: of the submodule.
  """
  if kernel == (1, 1):
    return Pointwise(features, stride, style.dtype, name=name)
  cells: str | list[tuple[int, int]] = padding
  if padding == "symmetric":
    halves = [(k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True)]
    cells = [(half, half) for half in halves]
  plain = kernel == (3, 3) and stride == 1 and dilation == (1, 1)
  return nn.Conv(
    features,
    kernel,
    strides=stride,
    kernel_dilation=dilation,
    padding=cells,
    use_bias=False,
    dtype=style.dtype,
    kernel_init=kernel_init,
    conv_general_dilated=convolve if plain else None,
    name=name,
  )


class ConvNormAct(nn.Module):
  """Convolution without bias, normalisation, activation."""

  features: int
  style: Style
  kernel: tuple[int, int] = (3, 3)
  stride: int = 1
  dilation: tuple[int, int] = (1, 1)
  act: Callable[[jax.Array], jax.Array] = nn.relu

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, in] to [batch, ceil(height / stride), ..., features]."""
    x = convolution(
      self.features,
      self.style,
      kernel=self.kernel,
      stride=self.stride,
      dilation=self.dilation,
      name="conv",
    )(x)
    return self.act(normalise(x, self.style, train, name="norm"))


def standardise_image(image, dtype):
  """RGB in [0, 1] -> mean 0 and variance 1 over ImageNet, computed in float32, in `dtype`."""
  return ((image - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_STD)).astype(dtype)


def double_to(x, size: tuple[int, int]):
  """Doubles height and width by repetition and cuts to `size`.

  A stride of 2 leaves ceil(size / 2) rows, so twice as many always suffice.

  Args:
    x: [batch, height, width, channels].
    size: (height, width) wanted, each at most twice that of `x`.
  """
  batch, height, width, channels = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
  return x.reshape(batch, 2 * height, 2 * width, channels)[:, : size[0], : size[1]]


def resize(x, size: tuple[int, int]):
  """Bilinear interpolation of [batch, height, width, channels] to `size` = (height, width)."""
  if x.shape[1:3] == tuple(size):
    return x
  return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)


def blocks_of_four(x):
  """The 2x2 blocks, [batch, h, w, c] -> [batch, ceil(h / 2), 2, ceil(w / 2), 2, c].

  The last row or column of an odd size is repeated. A mean or maximum over axes 2 and 4 is
  pooling whose gradient is elementwise; that of a pooling window is a scatter, slow on CPUs.
  """
  # Not jnp.pad: its edge mode adds empty parts to even sizes, and ONNX knows no empty shapes.
  x = jnp.concatenate([x, x[:, -1:]], axis=1) if x.shape[1] % 2 else x
  x = jnp.concatenate([x, x[:, :, -1:]], axis=2) if x.shape[2] % 2 else x
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2, channels)
