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


class Head(nn.Module):
  """Per-pixel linear maps to logits and to s, sigma = softplus(s), in full float32."""

  num_outputs: int

  @nn.compact
  def __call__(self, x, size: tuple[int, int]) -> Outputs:
    """Maps [batch, h, w, channels] to `Outputs` at `size` = (height, width)."""
    x = x.astype(jnp.float32)
    # TPUs and GPUs would otherwise round float32 operands before they multiply.
    exact = jax.lax.Precision.HIGHEST
    logits = nn.Dense(self.num_outputs, precision=exact, name="logits")(x)
    scale = nn.Dense(1, precision=exact, name="sigma")(x)
    return Outputs(resize(logits, size), nn.softplus(resize(scale, size)[..., 0]))
