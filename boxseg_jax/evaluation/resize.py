"""From the canvas to an image's own size, strip by strip, so that any size fits into memory."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

_STRIP = 16  # rows at most: what is resized stays in a CPU's cache


def in_strips(
  use: Callable[..., Any],
  scores: jax.Array,
  extent: jax.Array,
  full_size: jax.Array,
  full_shape: tuple[int, int],
  *others: jax.Array,
) -> Any:
  """Hands out bilinear scores at the images' own size, some rows at a time.

  Every image of the batch has its own size and covers its own share of the canvas. Half-pixel
  centres, edges repeated, no antialiasing: the numbers of `jax.image.resize(..., "bilinear",
  antialias=False)` where the canvas is covered.

  Args:
    use: (scores float32 [batch, channels, rows, full_width], rows of `others`) -> what is
      wanted of them, a pytree; pixels beyond an image's `full_size` are arbitrary. Channels come
      first, so that what is done with them runs along whole rows of pixels.
    scores: float32 [batch, height, width, channels] on the canvas.
    extent: float32 [batch, 2], (height, width) share of the canvas that the image covers, (0, 1].
    full_size: int32 [batch, 2], (height, width) of each image in pixels, at most `full_shape`.
    full_shape: (full_height, full_width), static; images lie at the top left.
    *others: [batch, full_height, ...], given to `use` along with the scores.

  Returns:
    What `use` gave for each strip from the top down, stacked: [strips, ...].
  """
  rows = max(count for count in range(1, _STRIP + 1) if full_shape[0] % count == 0)
  planes = jnp.moveaxis(scores, -1, 1)
  wide = _resized(planes, 3, extent, full_size, jnp.arange(full_shape[1]))

  def strip(top):
    resized = _resized(wide, 2, extent, full_size, top + jnp.arange(rows))
    # Or XLA would resize anew for each channel that `use` takes.
    resized = jax.lax.optimization_barrier(resized)
    return use(resized, *(jax.lax.dynamic_slice_in_dim(x, top, rows, axis=1) for x in others))

  return jax.lax.map(strip, jnp.arange(0, full_shape[0], rows))


def joined(strips: jax.Array) -> jax.Array:
  """[strips, batch, rows, ...], as of `in_strips` -> [batch, strips * rows, ...]."""
  by_image = jnp.moveaxis(strips, 0, 1)
  return by_image.reshape(by_image.shape[0], -1, *by_image.shape[3:])


def highest(scores: jax.Array) -> jax.Array:
  """Which channel has the highest score, the first of equals: an argmax that CPUs do by rows.

  Args:
    scores: [batch, channels, rows, width], as `in_strips` hands them out.

  Returns:
    int32 [batch, rows, width].
  """

  def better(best, channel):
    value, index = best
    new = scores[:, channel]
    return jnp.maximum(value, new), jnp.where(new > value, channel, index)

  first = scores[:, 0], jnp.zeros_like(scores[:, 0], jnp.int32)
  return reduce(better, range(1, scores.shape[1]), first)[1]


def _resized(planes, axis, extent, size, pixels):
  """Planes [batch, channels, height, width] at an image's own `pixels` of one axis, 2 or 3."""
  covered = (extent[:, axis - 2] * planes.shape[axis])[:, None]
  centre = (pixels + 0.5) * covered / size[:, axis - 2, None] - 0.5
  # Never beyond the covered part: the canvas goes on there with padding.
  centre = jnp.clip(centre, 0.0, jnp.maximum(covered - 1.0, 0.0))
  return jax.lax.platform_dependent(
    planes, centre, cpu=partial(_by_taps, axis), default=partial(_by_matrix, axis)
  )


def _by_matrix(axis, planes, centre):
  """A resize as a matrix product, which accelerators do better than gathers."""
  weights = jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, :, None] - jnp.arange(planes.shape[axis])))
  # HIGHEST: the default of TPUs and new GPUs would round scores to 8-10 bits.
  product = "bph,bchw->bcpw" if axis == 2 else "bpw,bchw->bchp"
  return jnp.einsum(product, weights, planes, precision=jax.lax.Precision.HIGHEST)


def _by_taps(axis, planes, centre):
  """The same from the two neighbours alone: on two CPU cores a third of the time or less."""
  low = jnp.floor(centre).astype(jnp.int32)
  share = jnp.expand_dims(centre - low, (1, 5 - axis))
  take = jax.vmap(partial(jnp.take, axis=axis - 1, mode="clip"))
  return (1.0 - share) * take(planes, low) + share * take(planes, low + 1)
