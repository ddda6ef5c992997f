"""DeepLabV3+: parallel dilated convolutions over a dilated ResNet, joined with early features.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018 (arXiv 1802.02611).
"""

import jax.numpy as jnp
from flax import linen as nn

from boxseg_jax.models import choice, resnet
from boxseg_jax.models.layers import ConvNormAct, Style, resize

RATES = {16: (6, 12, 18), 8: (12, 24, 36)}  # by output stride
DEPTHS = {"resnet50": 50, "resnet101": 101}


class SpatialPyramid(nn.Module):
  """ASPP: a 1x1, three dilated 3x3 convolutions and the image's mean, joined by a 1x1."""

  rates: tuple[int, int, int]
  style: Style
  features: int = 256

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, in] to [batch, height, width, features]."""

    def layer(y, name, kernel=1, rate=1):
      module = ConvNormAct(
        self.features, self.style, (kernel, kernel), dilation=(rate, rate), name=name
      )
      return module(y, train)

    branches = [layer(x, "point")]
    branches += [layer(x, f"rate{i}", 3, rate) for i, rate in enumerate(self.rates)]
    mean = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    mean = layer(mean, "image")
    branches.append(jnp.broadcast_to(mean, branches[0].shape))
    return layer(jnp.concatenate(branches, axis=-1), "join")


class Decoder(nn.Module):
  """Pyramid, upsampled to stride 4, joined with the first stage's features."""

  rates: tuple[int, int, int]
  style: Style

  @nn.compact
  def __call__(self, features, train: bool):
    """Maps a ResNet's features to [batch, ceil(height / 4), ceil(width / 4), 256]."""
    early, late = features[1], features[-1]
    early = ConvNormAct(48, self.style, (1, 1), name="early")(early, train)
    x = SpatialPyramid(self.rates, self.style, name="pyramid")(late, train)
    x = jnp.concatenate([resize(x, early.shape[1:3]), early], axis=-1)
    x = ConvNormAct(256, self.style, name="conv1")(x, train)
    return ConvNormAct(256, self.style, name="conv2")(x, train)


def build(
  *,
  style: Style,
  encoder: str = "resnet50",
  output_stride: int = 16,
  stride_in_1x1: bool = False,
  bn_epsilon: float = resnet.EPSILON,
):
  """Makes DeepLabV3+'s encoder and decoder.

  Args:
    style: of every layer.
    encoder: "resnet50" or "resnet101".
    output_stride: 16 or 8, of the last features.
    stride_in_1x1: see `resnet.ResNet`.
    bn_epsilon: of the encoder.

  Raises:
    InputError: for an unknown encoder or output stride.
  """
  depth = choice.pick(DEPTHS, encoder, "encoder of deeplabv3plus")
  rates = choice.pick(RATES, output_stride, "output stride of deeplabv3plus")
  made = resnet.build(
    depth,
    style=style,
    stride_in_1x1=stride_in_1x1,
    bn_epsilon=bn_epsilon,
    output_stride=output_stride,
  )
  return made, Decoder(rates, style)
