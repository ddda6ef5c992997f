"""Boxes -> what they say about each pixel."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class BoxLabels(NamedTuple):
  """What the boxes of an image say about its pixels.

  Attributes:
    inside: bool [batch, height, width], inside at least one box that is no crowd.
    crowd: bool [batch, height, width], inside a crowd box and no other.
    box_class: int32 [batch, height, width], class of the smallest box, 0 outside.
    allowed: bool [batch, height, width, num_classes], background and the classes
      of all boxes over the pixel; background alone outside.
  """

  inside: jax.Array
  crowd: jax.Array
  box_class: jax.Array
  allowed: jax.Array


def spans(boxes, canvas):
  """Rows bool [batch, n, height] and columns bool [batch, n, width] whose centres a box holds."""
  height, width = canvas
  ymin, xmin, ymax, xmax = jnp.split(boxes, 4, axis=-1)
  row_centres = (jnp.arange(height) + 0.5) / height
  column_centres = (jnp.arange(width) + 0.5) / width
  rows = (row_centres >= ymin) & (row_centres < ymax)
  columns = (column_centres >= xmin) & (column_centres < xmax)
  return rows, columns


def _cover(rows, columns, chosen):
  """Pixels [batch, height, width] that at least one of the chosen [batch, n] boxes covers.

  A matrix product instead of painting box after box: with hundreds of boxes an
  image it costs next to nothing. Only "more than zero" is asked of the sums, so
  rounding cannot matter.
  """
  weighted = (rows & chosen[..., None]).astype(jnp.float32)
  return jnp.einsum("bnh,bnw->bhw", weighted, columns.astype(jnp.float32)) > 0


def _smallest_box_class(boxes, box_classes, rows, columns, chosen, num_classes):
  """Class of the smallest chosen box over each pixel, 0 where there is none."""
  area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
  # One integer carries both the rank by area and the class, so that a plain
  # minimum over the boxes gives the class of the smallest.
  rank = jnp.argsort(jnp.argsort(area, axis=-1), axis=-1)
  key = rank * num_classes + box_classes
  none = boxes.shape[1] * num_classes  # larger than every key, and of class 0
  covers = (rows & chosen[..., None])[:, :, :, None] & columns[:, :, None, :]
  return jnp.where(covers, key[..., None, None], none).min(axis=1) % num_classes


def box_labels(boxes, box_classes, box_is_crowd, *, canvas, num_classes) -> BoxLabels:
  """Turns boxes into per-pixel labels.

  A pixel belongs to a box if its centre does, the rule by which labels are
  sampled too: so a tight box never leaves a pixel of its object outside.

  Args:
    boxes: float32 [batch, max_boxes, 4], (ymin, xmin, ymax, xmax) in [0, 1] of the canvas.
    box_classes: int32 [batch, max_boxes], 0 = padding.
    box_is_crowd: bool [batch, max_boxes].
    canvas: (height, width) in pixels.
    num_classes: number of classes with the background.

  Returns:
    BoxLabels at the canvas's resolution.
  """
  chex.assert_rank([boxes, box_classes, box_is_crowd], [3, 2, 2])
  rows, columns = spans(boxes, canvas)
  real = (box_classes > 0) & ~box_is_crowd
  covered = [
    _cover(rows, columns, real & (box_classes == label)) for label in range(1, num_classes)
  ]
  inside = jnp.any(jnp.stack(covered), axis=0)
  allowed = jnp.stack([jnp.ones_like(inside), *covered], axis=-1)
  if num_classes == 2:  # one class: which box is the smallest makes no difference
    box_class = inside.astype(jnp.int32)
  else:
    box_class = _smallest_box_class(boxes, box_classes, rows, columns, real, num_classes)
  crowd = _cover(rows, columns, (box_classes > 0) & box_is_crowd) & ~inside
  return BoxLabels(inside, crowd, box_class, allowed)


def object_priors(boxes, box_classes, box_is_crowd, mean_masks, *, canvas):
  """How likely each pixel is of an object, by nothing but its place in the boxes over it.

  Args:
    boxes: as for `box_labels`.
    box_classes: as for `box_labels`.
    box_is_crowd: as for `box_labels`.
    mean_masks: float32 [num_classes, g, g] in (0, 1), how often each part of a box is object.
    canvas: (height, width) in pixels.

  Returns:
    float32 [batch, height, width] in [0, 1), 0 outside of boxes. Linear between the parts' centres
    (of the background's logarithm); boxes over the same pixel are taken to be independent.
  """
  height, width = canvas
  grid = mean_masks.shape[-1]
  ymin, xmin, ymax, xmax = jnp.split(boxes, 4, axis=-1)
  rows, columns = spans(boxes, canvas)
  rows &= ((box_classes > 0) & ~box_is_crowd)[..., None]
  of_rows = between_parts((jnp.arange(height) + 0.5) / height, ymin, ymax, grid)
  of_columns = between_parts((jnp.arange(width) + 0.5) / width, xmin, xmax, grid)
  log_background = jnp.log1p(-mean_masks)[box_classes]
  # Matrix products for the reason that `_cover` has.
  along = jnp.einsum("bnij,bnwj->bniw", log_background, of_columns * columns[..., None])
  return 1.0 - jnp.exp(jnp.einsum("bnhi,bniw->bhw", of_rows * rows[..., None], along))


def between_parts(points, low, high, grid):
  """Where points lie among the parts of boxes, along one axis.

  Args:
    points: float32 [points].
    low: float32 [..., n, 1], where the boxes begin.
    high: float32 [..., n, 1], where they end.
    grid: parts of a box.

  Returns:
    float32 [..., n, points, grid], weights of linear interpolation between the parts' centres.
  """
  place = (points - low) / jnp.maximum(high - low, 1e-6) * grid - 0.5
  place = jnp.clip(place, 0.0, grid - 1.0)
  return jnp.maximum(1.0 - jnp.abs(place[..., None] - jnp.arange(grid)), 0.0)


def box_maps(boxes, box_classes, box_is_crowd, allowed):
  """Draws the boxes as an image, for a network that is shown them.

  Args:
    boxes: as for `box_labels`.
    box_classes: as for `box_labels`.
    box_is_crowd: as for `box_labels`.
    allowed: bool [batch, height, width, num_classes], what `box_labels` gave for them.

  Returns:
    float32 [batch, height, width, 2 * (num_classes - 1)]: for each class its boxes
    filled with 1, and a tent over each box, 1 at its centre and 0 at its edges, which
    keeps boxes that touch or overlap apart (tents add up). Crowds are not drawn.
  """
  height, width, num_classes = allowed.shape[1:]
  ymin, xmin, ymax, xmax = jnp.split(boxes, 4, axis=-1)
  rows = _tent((jnp.arange(height) + 0.5) / height, ymin, ymax)
  columns = _tent((jnp.arange(width) + 0.5) / width, xmin, xmax)
  # Padding and crowds are in no class.
  of_class = jax.nn.one_hot(jnp.where(box_is_crowd, 0, box_classes) - 1, num_classes - 1)
  tents = jnp.einsum("bnh,bnw,bnc->bhwc", rows, columns, of_class)
  filled = allowed[..., 1:].astype(jnp.float32)
  return jnp.stack([filled, tents], axis=-1).reshape(*filled.shape[:3], -1)


def _tent(points, low, high):
  """1 in the middle of [low, high], falling to 0 at its ends, 0 if empty: [batch, n, points]."""
  half = jnp.maximum(high - low, 1e-6) / 2
  tent = jnp.maximum(1.0 - jnp.abs(points - (low + high) / 2) / half, 0.0)
  return jnp.where(high > low, tent, 0.0)
