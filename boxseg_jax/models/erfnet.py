"""ERFNet: factorised residual convolutions, fast without pretraining.

Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic
Segmentation", IEEE T-ITS 2018. Two differences: no dropout, so that `apply` needs no random
numbers, and the last transposed convolution keeps its 16 channels for the shared heads.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from boxseg_jax.models.layers import Style, blocks_of_four, convolution, kernel_init, normalise

# Along one axis: which tap of a transposed convolution's kernel reaches each of a pixel's two
# outputs (rows) from the pixel itself and from the next one.
PLACES = {
  2: [[[1, 0]], [[0, 1]]],
  3: [[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]],
}
DILATIONS = (2, 4, 8, 16, 2, 4, 8, 16)


class Downsampler(nn.Module):
  """A strided convolution beside a maximum over 2x2 blocks."""

  features: int
  style: Style

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, in] to [batch, ceil(height / 2), ..., features]."""
    filtered = convolution(self.features - x.shape[-1], self.style, stride=2, name="conv")(x)
    x = jnp.concatenate([filtered, blocks_of_four(x).max((2, 4))], axis=-1)
    return normalise(x, self.style, train, act=nn.relu, name="norm")


class NonBottleneck1D(nn.Module):
  """Two 3x3 convolutions, each split into 3x1 and 1x3, and a shortcut; the second pair dilated."""

  dilation: int
  style: Style

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, channels] to the same shape."""
    y = self._pair(x, 1, train, "1")
    y = self._pair(nn.relu(y), self.dilation, train, "2")
    return nn.relu(x + y)

  def _pair(self, x, dilation, train, name):
    convolve = partial(nn.Conv, x.shape[-1], dtype=self.style.dtype, kernel_init=kernel_init)
    down, across = (dilation, 1), (1, dilation)
    x = nn.relu(convolve((3, 1), kernel_dilation=down, name=f"conv3x1_{name}")(x))
    x = convolve((1, 3), kernel_dilation=across, use_bias=False, name=f"conv1x3_{name}")(x)
    return normalise(x, self.style, train, name=f"norm_{name}")


def transposed_convolution(x, kernel):
  """Transposed convolution that doubles the size, PyTorch's of stride 2.

  Each of the four outputs of an input pixel sees only it and its next neighbours, so this is an
  ordinary convolution with the four outputs as channels, which are then spread out. As a
  transposed convolution, its gradient takes many times as long on CPUs.

  Args:
    x: [batch, height, width, in].
    kernel: [side, side, in, out]; side 3 (PyTorch's padding 1, output padding 1) or 2 (none).

  Returns:
    [batch, 2 * height, 2 * width, out].
  """
  placed = jnp.asarray(PLACES[kernel.shape[0]], kernel.dtype)  # [output, neighbour, tap]
  big = jnp.einsum("apk,bql,klio->pqiabo", placed, placed, kernel)
  reach, features = big.shape[0], kernel.shape[-1]
  y = lax.conv_general_dilated(
    x,
    big.reshape(reach, reach, x.shape[-1], 4 * features),
    (1, 1),
    [(0, reach - 1)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  batch, height, width, _ = x.shape
  y = y.reshape(batch, height, width, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
  return y.reshape(batch, 2 * height, 2 * width, features)


class Upsampler(nn.Module):
  """A transposed convolution that doubles the size, cut to the wanted one."""

  features: int
  kernel: int
  style: Style

  @nn.compact
  def __call__(self, x, size: tuple[int, int], train: bool):
    """Maps [batch, h, w, in] to [batch, *size, features], `size` at most twice (h, w)."""
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    kernel = self.param("kernel", kernel_init, shape).astype(self.style.dtype)
    x = transposed_convolution(x, kernel)[:, : size[0], : size[1]]
    return normalise(x, self.style, train, act=nn.relu, name="norm")


class Encoder(nn.Module):
  """Three halvings with 5 plain and 8 dilated blocks."""

  style: Style

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, 3] to itself and features at strides 2, 4 and 8."""
    features = [x, Downsampler(16, self.style, name="down1")(x, train)]
    x = Downsampler(64, self.style, name="down2")(features[-1], train)
    for block in range(5):
      x = NonBottleneck1D(1, self.style, name=f"block2_{block}")(x, train)
    features.append(x)
    x = Downsampler(128, self.style, name="down3")(x, train)
    for block, dilation in enumerate(DILATIONS):
      x = NonBottleneck1D(dilation, self.style, name=f"block3_{block}")(x, train)
    return [*features, x]


class Decoder(nn.Module):
  """Three doublings; of the finer features only the sizes count."""

  style: Style

  @nn.compact
  def __call__(self, features, train: bool):
    """Maps features, finest first, to [batch, height, width, 16] of the finest."""
    *finer, x = features
    full, half, quarter = (feature.shape[1:3] for feature in finer)
    for stage, (channels, size) in enumerate(((64, quarter), (16, half))):
      x = Upsampler(channels, 3, self.style, name=f"up{stage}")(x, size, train)
      for block in range(2):
        x = NonBottleneck1D(1, self.style, name=f"block{stage}_{block}")(x, train)
    return Upsampler(16, 2, self.style, name="up2")(x, full, train)


def build(*, style: Style):
  """Makes ERFNet's encoder and decoder."""
  return Encoder(style), Decoder(style)
