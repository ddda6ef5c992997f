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


def scores(x, num_outputs: int, size: tuple[int, int], *, name: str):
  """A linear map per pixel in full float32, interpolated to `size`; for use in a compact module."""
  # TPUs and GPUs would otherwise round float32 operands before they multiply.
  layer = nn.Dense(num_outputs, precision=jax.lax.Precision.HIGHEST, name=name)
  return resize(layer(x.astype(jnp.float32)), size)


class Head(nn.Module):
  """Logits, and s with sigma = softplus(s)."""

  num_outputs: int

  @nn.compact
  def __call__(self, x, size: tuple[int, int]) -> Outputs:
    """Maps [batch, h, w, channels] to `Outputs` at `size` = (height, width)."""
    logits = scores(x, self.num_outputs, size, name="logits")
    return Outputs(logits, nn.softplus(scores(x, 1, size, name="sigma")[..., 0]))
