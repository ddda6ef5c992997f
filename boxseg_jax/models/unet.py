"""U-Net: an encoder's features, joined again from coarse to fine.

Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015 (arXiv 1505.04597).
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from boxseg_jax.errors import InputError
from boxseg_jax.models import choice, efficientnet, resnet
from boxseg_jax.models.layers import ConvNormAct, Style, blocks_of_four, double_to


class ConvEncoder(nn.Module):
  """Pairs of 3x3 convolutions between halvings; for training from scratch."""

  widths: tuple[int, ...]
  style: Style

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, 3] to features at strides 1, 2, 4, ..., finest first."""
    features = []
    for level, width in enumerate(self.widths):
      x = blocks_of_four(x).mean((2, 4)) if level else x
      x = ConvNormAct(width, self.style, name=f"level{level}_conv1")(x, train)
      x = ConvNormAct(width, self.style, name=f"level{level}_conv2")(x, train)
      features.append(x)
    return features


class Decoder(nn.Module):
  """From the coarsest feature up: to the next one's size, concatenate, two convolutions."""

  widths: tuple[int, ...]
  style: Style

  @nn.compact
  def __call__(self, features, train: bool):
    """Maps features, finest first, to [batch, height, width, widths[-1]] of the finest."""
    *skips, x = features
    for level, (width, skip) in enumerate(zip(self.widths, reversed(skips), strict=True)):
      x = jnp.concatenate([double_to(x, skip.shape[1:3]), skip], axis=-1)
      x = ConvNormAct(width, self.style, name=f"level{level}_conv1")(x, train)
      x = ConvNormAct(width, self.style, name=f"level{level}_conv2")(x, train)
    return x


def conv_encoder(*, style: Style, width: int = 16, levels: int = 4):
  """Plain encoder of `width`, 2 `width`, ... channels, and the decoder's channels."""
  if not (1 <= width <= 1024 and 1 <= levels <= 8):
    raise InputError(f"width {width} and levels {levels} of unet must be in 1 to 1024 and 1 to 8")
  widths = tuple(width * 2**level for level in range(levels))
  return ConvEncoder(widths, style), widths[-2::-1]


def resnet_encoder(depth: int, *, style: Style, stride_in_1x1=False, bn_epsilon=resnet.EPSILON):
  """ResNet encoder, and the decoder's channels."""
  encoder = resnet.build(depth, style=style, stride_in_1x1=stride_in_1x1, bn_epsilon=bn_epsilon)
  return encoder, (256, 128, 64, 32)


def lite0_encoder(*, style: Style, bn_epsilon=efficientnet.EPSILON):
  """EfficientNet-Lite0 encoder, and the decoder's channels."""
  return efficientnet.build(style=style, bn_epsilon=bn_epsilon), (128, 64, 48, 32)


ENCODERS = {
  "conv": conv_encoder,
  "resnet18": functools.partial(resnet_encoder, 18),
  "resnet34": functools.partial(resnet_encoder, 34),
  "resnet50": functools.partial(resnet_encoder, 50),
  "efficientnet_lite0": lite0_encoder,
}


def build(*, style: Style, encoder: str = "conv", **options):
  """Makes a U-Net's encoder and decoder.

  Args:
    style: of every layer.
    encoder: a key of `ENCODERS`.
    **options: of that encoder: "conv" has `width` and `levels`, the ResNets `stride_in_1x1` and
      `bn_epsilon`, EfficientNet `bn_epsilon`.

  Raises:
    InputError: for an unknown encoder or option.
  """
  constructor = choice.pick(ENCODERS, encoder, "encoder of unet")
  made, widths = choice.construct(constructor, options, f"unet on {encoder}", style=style)
  return made, Decoder(widths, style)
