"""Building blocks that every network shares: convolution, normalisation, resizing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from boxseg_jax.batch import IMAGE_MEAN
from boxseg_jax.models.batch_norm import BatchNorm
from boxseg_jax.models.kernel_gradient import convolve, convolve_dilated, multiply

IMAGE_STD = (0.229, 0.224, 0.225)
BATCH_NORM_MOMENTUM = 0.9
# Between 4, where sums interpolate faster on an H100, and 256, where matrix products do.
_FEW_CHANNELS = 16

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


def normalise(
  x, style: Style, train: bool, *, act: Callable[[jax.Array], jax.Array] | None = None, name: str
):
  """Batch or group normalisation and an activation, for use inside a compact module.

  Group normalisation keeps no running statistics, so a network that uses it has no
  `batch_stats` and behaves alike in training and prediction.

  Args:
    x: [batch, height, width, channels].
    style: chooses the kind and its constants.
    train: batch normalisation by the batch's statistics instead of the running ones.
    act: elementwise function; None: none.
    name: of the submodule that holds scale, bias and statistics.

  Returns:
    [batch, height, width, channels] in the style's dtype.
  """
  if style.norm == "group":
    groups = group_count(x.shape[-1])
    x = nn.GroupNorm(groups, epsilon=style.epsilon, dtype=style.dtype, name=name)(x)
    return act(x) if act else x
  constants = BATCH_NORM_MOMENTUM, style.epsilon, style.dtype, style.axis_name
  return BatchNorm(*constants, act, name=name)(x, train)


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
  by: Callable[..., jax.Array] | None = None,
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
    by: `nn.Conv`'s conv_general_dilated; None: the backend's faster way.
    name: of the submodule.
  """
  if kernel == (1, 1):
    return Pointwise(features, stride, style.dtype, name=name)
  cells: str | list[tuple[int, int]] = padding
  if padding == "symmetric":
    halves = [(k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True)]
    cells = [(half, half) for half in halves]
  if by is None and stride == 1:
    if dilation != (1, 1):
      by = convolve_dilated
    elif kernel == (3, 3):
      by = convolve
  return nn.Conv(
    features,
    kernel,
    strides=stride,
    kernel_dilation=dilation,
    padding=cells,
    use_bias=False,
    dtype=style.dtype,
    kernel_init=kernel_init,
    conv_general_dilated=by,
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
    return normalise(x, self.style, train, act=self.act, name="norm")


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
  # JAX interpolates by matrix products with one weight for each pair of rows, which pays only for
  # many channels on matrix units.
  whole = not any(large % small for small, large in zip(x.shape[1:3], size, strict=True))
  if whole and (jax.default_backend() == "cpu" or x.shape[-1] <= _FEW_CHANNELS):
    y = x.astype(jnp.float32)
    for axis, length in zip((1, 2), size, strict=True):
      y = _multiply_length(y, axis, length // x.shape[axis])
    return y.astype(x.dtype)
  return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)


def _multiply_length(x, axis: int, times: int):
  """Linear interpolation along one axis; pixels are areas, beyond a border's middle it is alone."""
  length = x.shape[axis]
  first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, length - 1))
  before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, length - 1, axis=axis)], axis)
  after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, length, axis=axis), last], axis)
  parts = []
  for i in range(times):
    offset = (i + 0.5) / times - 0.5  # from the middle of the pixel that it lies in
    parts.append((1 - abs(offset)) * x + abs(offset) * (before if offset < 0 else after))
  shape = *x.shape[:axis], length * times, *x.shape[axis + 1 :]
  return jnp.stack(parts, axis + 1).reshape(shape)


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
