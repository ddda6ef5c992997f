"""From the canvas to an image's own size, strip by strip, so that any size fits into memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_STRIP = 128  # rows at most


def in_strips(
  use: Callable[..., Any],
  scores: jax.Array,
  extent: jax.Array,
  full_size: jax.Array,
  full_shape: tuple[int, int],
  *others: jax.Array,
) -> Any:
  """Hands out bilinear scores at the images' own size, some rows at a time.

  Every image of the batch has its own size and covers its own share of the
  canvas, so there is one matrix per image and axis: a resize is two matrix
  products, which accelerators do better than gathers. Half-pixel centres, edges repeated, no
  antialiasing: the numbers of `jax.image.resize(..., "bilinear", antialias=False)` where the
  canvas is covered.

  Args:
    use: (scores float32 [batch, rows, full_width, channels], rows of `others`) -> what is
      wanted of them, a pytree; pixels beyond an image's `full_size` are arbitrary.
    scores: float32 [batch, height, width, channels] on the canvas.
    extent: float32 [batch, 2], (height, width) share of the canvas that the image covers, (0, 1].
    full_size: int32 [batch, 2], (height, width) of each image in pixels, at most `full_shape`.
    full_shape: (full_height, full_width), static; images lie at the top left.
    *others: [batch, full_height, ...], given to `use` along with the scores.

  Returns:
    What `use` gave for each strip from the top down, stacked: [strips, ...].
  """
  rows = max(count for count in range(1, _STRIP + 1) if full_shape[0] % count == 0)
  # HIGHEST: the default of TPUs and new GPUs would round scores to 8-10 bits.
  highest = jax.lax.Precision.HIGHEST
  columns = _interpolation(
    scores.shape[2], extent[:, 1], full_size[:, 1], jnp.arange(full_shape[1])
  )
  wide = jnp.einsum("bxw,bhwc->bhxc", columns, scores, precision=highest)

  def strip(top):
    heights = _interpolation(scores.shape[1], extent[:, 0], full_size[:, 0], top + jnp.arange(rows))
    resized = jnp.einsum("byh,bhxc->byxc", heights, wide, precision=highest)
    return use(resized, *(jax.lax.dynamic_slice_in_dim(x, top, rows, axis=1) for x in others))

  return jax.lax.map(strip, jnp.arange(0, full_shape[0], rows))


def joined(strips: jax.Array) -> jax.Array:
  """[strips, batch, rows, ...], as of `in_strips` -> [batch, strips * rows, ...]."""
  by_image = jnp.moveaxis(strips, 0, 1)
  return by_image.reshape(by_image.shape[0], -1, *by_image.shape[3:])


def _interpolation(canvas: int, extent: jax.Array, size: jax.Array, pixels: jax.Array) -> jax.Array:
  """Weights of canvas pixels for an image's pixels on one axis, float32 [batch, pixels, canvas]."""
  covered = (extent * canvas)[:, None]
  centre = (pixels + 0.5) * covered / size[:, None] - 0.5
  # Never beyond the covered part: the canvas goes on there with padding.
  centre = jnp.clip(centre, 0.0, jnp.maximum(covered - 1.0, 0.0))
  return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, :, None] - jnp.arange(canvas)))
