"""Scores at an image's own size against JAX's own resize."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boxseg_jax.evaluation import resize
from boxseg_jax.evaluation.resize import highest, in_strips, joined


def own_size(scores, extent, size, full_shape):
  strips = in_strips(lambda strip: jnp.moveaxis(strip, 1, -1), scores, extent, size, full_shape)
  return joined(strips)


@pytest.mark.parametrize("full_shape", [(20, 33), (13, 7), (5, 4), (256, 9)])
def test_resize_of_a_covered_canvas_equals_jax_image(full_shape):
  scores = jax.random.normal(jax.random.key(0), (2, 13, 7, 3))
  size = jnp.tile(jnp.array([full_shape]), (2, 1))
  resized = own_size(scores, jnp.ones((2, 2)), size, full_shape=full_shape)
  expected = jax.image.resize(scores, (2, *full_shape, 3), "bilinear", antialias=False)
  np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_resize_gives_every_image_its_own_size_and_share():
  """The covered parts alone, resized one by one, are the reference; the rest is poison."""
  scores = jax.random.normal(jax.random.key(1), (3, 12, 16, 2))
  covered = [(12, 16), (9, 16), (12, 5)]
  sizes = [(30, 40), (18, 32), (24, 10)]
  extent = jnp.array([(h / 12, w / 16) for h, w in covered])
  poisoned = np.full(scores.shape, 1e6, np.float32)
  for image, (h, w) in enumerate(covered):
    poisoned[image, :h, :w] = scores[image, :h, :w]
  at_own_size = functools.partial(own_size, full_shape=(30, 40))
  eager = at_own_size(jnp.asarray(poisoned), extent, jnp.array(sizes))
  compiled = jax.jit(at_own_size)(jnp.asarray(poisoned), extent, jnp.array(sizes))
  for image, ((h, w), (full_h, full_w)) in enumerate(zip(covered, sizes, strict=True)):
    part = scores[image, :h, :w]
    expected = jax.image.resize(part, (full_h, full_w, 2), "bilinear", antialias=False)
    for resized in (eager, compiled):
      np.testing.assert_allclose(resized[image, :full_h, :full_w], expected, atol=1e-4)


@pytest.mark.parametrize("axis", [2, 3])
def test_accelerators_resize_to_the_same_scores_as_cpus(axis):
  planes = jax.random.normal(jax.random.key(2), (2, 3, 9, 11))
  last = planes.shape[axis] - 1.0
  centre = jnp.stack([jnp.linspace(0.0, last, 40), jnp.linspace(0.3, 4.0, 40)])
  by_taps = resize._by_taps(axis, planes, centre)
  np.testing.assert_allclose(by_taps, resize._by_matrix(axis, planes, centre), atol=1e-5)


def test_the_highest_channel_is_the_first_of_equals():
  scores = jax.random.randint(jax.random.key(3), (2, 4, 8, 8), 0, 3)
  np.testing.assert_array_equal(highest(scores), np.argmax(scores, axis=1))


def test_strips_come_with_the_rows_of_what_else_is_given():
  scores = jnp.zeros((2, 4, 4, 1))
  rows = jnp.broadcast_to(jnp.arange(256)[None, :, None], (2, 256, 5))
  size = jnp.full((2, 2), 256)
  firsts = in_strips(
    lambda strip, part: part[:, 0, 0], scores, jnp.ones((2, 2)), size, (256, 5), rows
  )
  np.testing.assert_array_equal(firsts, [[top, top] for top in range(0, 256, 16)])
