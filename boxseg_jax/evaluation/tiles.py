"""Prediction of an image of any size at its own resolution, window by window.

The host cuts windows of the canvas's size and puts together what belongs to each
(`data.windows`); the device only ever sees batches of one shape. Evaluation judges
the same windows as examples of their own, see `data.feed.tile_batches`.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import jax
import numpy as np

from boxseg_jax import augment
from boxseg_jax.batch import Batch
from boxseg_jax.data.windows import Window, cut, extent, windows
from boxseg_jax.losses import uncertainty

PredictFn = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


class Band(NamedTuple):
  """What is predicted for some rows of an image.

  Attributes:
    top: the first row, in pixels of the image.
    logits: float32 [rows, width, num_classes], num_classes >= 2.
    sigma: float32 [rows, width], >= 0.
  """

  top: int
  logits: np.ndarray
  sigma: np.ndarray

  @property
  def classes(self) -> np.ndarray:
    """The most likely class, uint8 [rows, width]."""
    return np.argmax(self.logits, axis=-1).astype(np.uint8)

  @property
  def probability(self) -> np.ndarray:
    """Of each class, as mask images teach it: softmax, float32 [rows, width, num_classes]."""
    odds = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def predict_bands(
  predict_tiles: Callable[[np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]],
  image: np.ndarray,
  *,
  canvas: tuple[int, int],
  overlap: float,
  batch_size: int,
) -> Iterator[Band]:
  """Predicts an image from the top down.

  Beside the image and two batches, three bands are in memory at most, the one that was yielded
  last among them: 12 (num_classes + 1) x canvas height x image width bytes. A whole class map
  is `np.concatenate([band.classes for band in predict_bands(...)])`.

  Args:
    predict_tiles: (images uint8 [batch, *canvas, 3], extents float32 [batch, 2]) -> (logits
      float32 [batch, *canvas, num_classes], sigma float32 [batch, *canvas]); see
      `tile_predictor`.
    image: uint8 [height, width, 3], RGB.
    canvas: (height, width) of a window in pixels.
    overlap: least share of a window that the next one sees too, in [0, 1).
    batch_size: windows at once, at least 1; fewer, a power of two, for a smaller image, so that
      there are few shapes to compile.

  Yields:
    Bands that together are the image.
  """
  plan = windows(image.shape[:2], canvas, overlap)
  batch_size = min(batch_size, 1 << (len(plan) - 1).bit_length())
  parts = _own_parts(predict_tiles, image, plan, canvas, batch_size)
  for top, row in groupby(zip(plan, parts, strict=True), lambda pair: pair[0].rows.own_start):
    yield Band(top, *_side_by_side([part for _, part in row]))


def tile_predictor(predict_fn: PredictFn) -> Callable:
  """Compiles a network for images of the canvas's size: windows, or whole photos fitted to it.

  Args:
    predict_fn: (state, batch as from `augment.prepare`) -> (logits float32 [batch, height,
      width, K], sigma float32 [batch, height, width]); K = 1 is the logit of class 1 of two.

  Returns:
    (state, images, extents) -> (logits, sigma) as `predict_bands` takes them, once the state
    is bound; compiled once per shape.
  """

  def predict(state, images, extents):
    batch = augment.prepare(augment.unlabelled(images, extents))
    logits, sigma = predict_fn(state, batch)
    return uncertainty.class_logits(logits), sigma

  return jax.jit(predict)


def mirrored_too(predict_fn: PredictFn) -> PredictFn:
  """Averages logits and sigma with those of the mirrored image, at twice the price.

  Args:
    predict_fn: (state, batch) -> (logits [batch, height, width, K], sigma [batch, height,
      width]).

  Returns:
    A function like it, whose predictions mirror with the image.
  """

  def predict(state, batch):
    there = predict_fn(state, batch)
    back = predict_fn(state, dict(batch) | {"image": batch["image"][:, :, ::-1]})
    return tuple((one + other[:, :, ::-1]) / 2 for one, other in zip(there, back, strict=True))

  return predict


def _own_parts(predict_tiles, image, plan, canvas, batch_size) -> Iterator[tuple]:
  """(logits, sigma) of what belongs to each window, in order."""
  running = None
  for start in range(0, len(plan), batch_size):
    batch = plan[start : start + batch_size]
    filled = batch + batch[-1:] * (batch_size - len(batch))
    tiles = np.stack([cut(image, window, canvas) for window in filled])
    extents = np.stack([extent(window, canvas) for window in filled])
    # One batch of look-ahead: the device works on this one while the host waits for the last.
    finished, running = running, (batch, predict_tiles(tiles, extents))
    yield from _cropped(finished)
  yield from _cropped(running)


def _cropped(predicted: tuple[list[Window], tuple] | None) -> Iterator[tuple]:
  if predicted is None:
    return
  batch, outputs = predicted
  logits, sigma = map(np.asarray, outputs)
  for (rows, columns), *tile in zip(batch, logits, sigma, strict=False):
    # Copied, or the whole batch would stay as long as any part of it.
    yield tuple(output[rows.own_inside, columns.own_inside].copy() for output in tile)


def _side_by_side(parts: list[tuple]) -> tuple[np.ndarray, ...]:
  return tuple(np.concatenate(outputs, axis=1) for outputs in zip(*parts, strict=True))
