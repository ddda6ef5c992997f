"""What a network gives: logits and one uncertainty per pixel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from boxseg_jax.models.layers import resize


class Outputs(NamedTuple):
  """A network's answer at the resolution of its input.

  Attributes:
    logits: float32 [batch, height, width, K], mu; K = 1 for a binary task (sigmoid).
    sigma: float32 [batch, height, width], >= 0, the scale of the logits' noise in box labels.
  """

  logits: jax.Array
  sigma: jax.Array


class Scores(nn.Module):
  """A linear map per pixel in full float32, interpolated to the image's size."""

  num_outputs: int

  @nn.compact
  def __call__(self, x, size: tuple[int, int]):
    """Maps [batch, h, w, channels] to float32 [batch, *size, num_outputs]."""
    # TPUs and GPUs would otherwise round float32 operands before they multiply.
    exact = jax.lax.Precision.HIGHEST
    shape = (x.shape[-1], self.num_outputs)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, shape[-1:])
    return resize(jnp.matmul(x.astype(jnp.float32), kernel, precision=exact) + bias, size)


class Head(nn.Module):
  """Logits, and s with sigma = softplus(s)."""

  num_outputs: int

  @nn.compact
  def __call__(self, x, size: tuple[int, int]) -> Outputs:
    """Maps [batch, h, w, channels] to `Outputs` at `size` = (height, width)."""
    logits = Scores(self.num_outputs, name="logits")(x, size)
    scale = Scores(1, name="sigma")(x, size)
    return Outputs(logits, nn.softplus(scale[..., 0]))
