"""Batch normalisation and activation whose gradient is written out.

Ioffe and Szegedy 2015 (arXiv 1502.03167). Derived automatically, the gradient makes several more
passes over the activations than the two of this one, which reads what was normalised and never what
became of it. Back with a ReLU, 8x176x240x16 in float32 on one CPU core, jax 0.12.0.1, the median of
five times the best of 20: 26 ms by flax, 23 by this. On GPUs: launch/results/gpu-profile.md.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

_OF_PIXELS = (0, 1, 2)


class BatchNorm(nn.Module):
  """Does what `nn.BatchNorm` does, with variables of the same names.

  Attributes:
    momentum: of the running statistics.
    epsilon: added to the variance.
    dtype: of the result; statistics are taken in float32.
    axis_name: mapped axis over which batch statistics are averaged; None: not.
    act: elementwise function of what is normalised, in float32; None: none.
  """

  momentum: float
  epsilon: float
  dtype: Any
  axis_name: str | None
  act: Callable[[jax.Array], jax.Array] | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    """Normalises each channel of [batch, height, width, channels], to the same shape."""
    channels, act = x.shape[-1], self.act or _as_it_is
    mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
    var = self.variable("batch_stats", "var", jnp.ones, channels)
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    if not train:
      factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
      return act(_scaled(x, mean.value, factor, bias)).astype(self.dtype)
    axis_name = None if self.is_initializing() else self.axis_name
    y, of_batch = normalise_batch(x, scale, bias, act, self.epsilon, self.dtype, axis_name)
    if not self.is_initializing():
      for running, current in zip((mean, var), of_batch, strict=True):
        running.value = self.momentum * running.value + (1 - self.momentum) * current
    return y


def _as_it_is(x):
  return x


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def normalise_batch(x, scale, bias, act, epsilon, dtype, axis_name):
  """Normalises by the batch's own statistics; the gradient comes by way of the result alone.

  Args:
    x: [batch, height, width, channels].
    scale: float32 [channels].
    bias: float32 [channels].
    act: elementwise function of what is normalised, in float32.
    epsilon: added to the variance.
    dtype: of the result.
    axis_name: mapped axis over which the statistics are averaged; None: not.

  Returns:
    ([batch, height, width, channels], (mean, variance) of the channels, float32).
  """
  return _forward(x, scale, bias, act, epsilon, dtype, axis_name)[0]


def _moments(x):
  """Means of [batch, height, width, channels] and its squares over the pixels: [2, channels]."""
  if jax.default_backend() != "gpu":
    return jnp.stack([x.mean(_OF_PIXELS), jnp.square(x).mean(_OF_PIXELS)])
  # As two sums, XLA reads x twice on GPUs; as one of pairs, it is several times slower on CPUs.
  pairs, zeros = (x, jnp.square(x)), (jnp.float32(0), jnp.float32(0))
  sums = jax.lax.reduce(pairs, zeros, lambda a, b: tuple(map(jnp.add, a, b)), _OF_PIXELS)
  return jnp.stack(sums) / (x.size // x.shape[-1])


def _forward(x, scale, bias, act, epsilon, dtype, axis_name):
  moments = _moments(x.astype(jnp.float32))
  mean, square = jax.lax.pmean(moments, axis_name) if axis_name else moments
  var = jnp.maximum(square - jnp.square(mean), 0.0)
  rate = jax.lax.rsqrt(var + epsilon)
  y = act(_scaled(x, mean, scale * rate, bias)).astype(dtype)
  return (y, (mean, var)), (x, mean, rate, scale, bias)


def _backward(act, epsilon, dtype, axis_name, saved, gradients):
  del epsilon, dtype
  x, mean, rate, scale, bias = saved
  # What the activation saw is computed once more, which costs no reading of its result.
  of_act = jax.vjp(act, _scaled(x, mean, scale * rate, bias))[1]
  (to_y,) = of_act(gradients[0].astype(jnp.float32))
  centred = x.astype(jnp.float32) - mean
  sums = jnp.stack([to_y.sum(_OF_PIXELS), (to_y * centred).sum(_OF_PIXELS)])
  to_bias, to_scale = sums[0], sums[1] * rate
  # Mean and variance are of all devices' pixels, scale and bias of this one's share of the loss.
  means = jax.lax.pmean(sums, axis_name) if axis_name else sums
  means = means / (x.size // x.shape[-1])
  to_x = scale * rate * (to_y - means[0] - centred * (means[1] * jnp.square(rate)))
  return to_x.astype(x.dtype), to_scale, to_bias


normalise_batch.defvjp(_forward, _backward)


def _scaled(x, mean, factor, bias):
  return (x.astype(jnp.float32) - mean) * factor + bias
