"""Metrics as sums: counted on the device in integers, divided once on the host.

A metric of a whole set is not the mean of the metrics of its batches, so the
device only ever gives counts (confusion matrices, histograms). They add up over
batches, devices and processes in any order to the same numbers. The functions
down to `uncertainty_histogram` are pure JAX; `summary` and `auroc` are numpy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

UNCERTAINTY_BINS = 1024  # steps of certainty of 0.001: finer than sigma is learned


def confusion(predicted: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
  """Counts pixels by label and prediction.

  A scatter-add: exact in int32 (a matrix product of one-hots in float32 is not
  beyond 2^24), and on CPU 3 ns a pixel whatever the number of classes.

  Args:
    predicted: int32 [...], class ids in [0, num_classes).
    labels: int32 [...], class ids; 255 and all else outside [0, num_classes) counts nowhere.
    num_classes: number of classes, background included.

  Returns:
    int32 [num_classes, num_classes], rows = label, columns = predicted; exact below 2^31 pixels
    a batch.
  """
  known = (labels >= 0) & (labels < num_classes)
  return _count(labels * num_classes + predicted, known, (num_classes, num_classes))


def uncertainty_histogram(certainty: jax.Array, wrong: jax.Array, counted: jax.Array) -> jax.Array:
  """Counts right and wrong pixels by certainty.

  Args:
    certainty: float32 [...] in (0, 1], 1/kappa.
    wrong: bool [...], the box label of the pixel is wrong.
    counted: bool [...], pixels that count.

  Returns:
    int32 [2, UNCERTAINTY_BINS], row 0 = right, row 1 = wrong; bins of equal width from
    certainty 0 to 1.
  """
  level = jnp.ceil(certainty * UNCERTAINTY_BINS).astype(jnp.int32) - 1
  level = jnp.maximum(level, 0)  # where sigma is so large that none is left
  index = wrong.astype(jnp.int32) * UNCERTAINTY_BINS + level
  return _count(index, counted, (2, UNCERTAINTY_BINS))


def _count(index: jax.Array, counted: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Histogram of flat indices into `shape`, int32; what is not `counted` falls off the end."""
  cells = shape[0] * shape[1]
  index = jnp.where(counted, index, cells).ravel()
  return jnp.zeros(cells, jnp.int32).at[index].add(1, mode="drop").reshape(shape)


def summary(counts: np.ndarray) -> dict[str, Any]:
  """Divides a confusion matrix into the usual metrics.

  Args:
    counts: int [num_classes, num_classes], rows = label, columns = predicted.

  Returns:
    `iou` float64 [num_classes] (NaN for a class that is absent from labels and predictions),
    `miou` over the classes that are present, `foreground_iou` the same without class 0 (of a
    binary task: the IoU of class 1), `pixel_accuracy`; all in [0, 1], NaN where nothing counts.
  """
  counts = np.asarray(counts).astype(np.float64)  # exact up to 2^53 pixels
  right = np.diag(counts)
  union = counts.sum(0) + counts.sum(1) - right
  iou = _divide(right, union)
  return {
    "iou": iou,
    "miou": _mean_of_known(iou),
    "foreground_iou": _mean_of_known(iou[1:]),
    "pixel_accuracy": float(_divide(right.sum(), counts.sum())),
  }


def auroc(histogram: np.ndarray) -> float:
  """Area under the ROC curve of "the less certain, the more likely wrong".

  Args:
    histogram: int [2, bins], of `uncertainty_histogram`.

  Returns:
    The share of (wrong, right) pairs of pixels in which the wrong one is less certain, pixels of
    one bin counted half (Mann-Whitney U); 0.5 = no information, NaN if right or wrong is missing.
  """
  right, wrong = np.asarray(histogram).astype(np.float64)
  more_certain = right.sum() - np.cumsum(right)
  ordered = np.sum(wrong * (more_certain + 0.5 * right))
  return float(_divide(ordered, right.sum() * wrong.sum()))


class Reliability(NamedTuple):
  """Pixels by certainty, float64 [bins] each, the least certain first.

  Attributes:
    certainty: mean certainty of the bin's pixels; NaN where there is none.
    right: share of them whose box is right; NaN where there is none.
    pixels: their number.
  """

  certainty: np.ndarray
  right: np.ndarray
  pixels: np.ndarray


def reliability(histogram: np.ndarray, bins: int = 16) -> Reliability:
  """Certainty as the probability that the box's label is right, beside how often it is.

  Args:
    histogram: int [2, fine bins], of `uncertainty_histogram`.
    bins: number of bins of equal width, divides that of the fine ones.
  """
  histogram = np.asarray(histogram).astype(np.float64)
  fine = histogram.shape[1]
  bins = min(bins, fine)
  certainty = (np.arange(fine) + 0.5) / fine
  right, pixels, expected = (
    x.reshape(bins, -1).sum(1)
    for x in (histogram[0], histogram.sum(0), certainty * histogram.sum(0))
  )
  return Reliability(_divide(expected, pixels), _divide(right, pixels), pixels)


def calibration_error(histogram: np.ndarray, bins: int = 16) -> float:
  """Expected calibration error of the certainty as the probability that the box's label is right.

  That is how bootstrapping takes it: t = c * box + (1 - c) * q. Guo et al., "On Calibration of
  Modern Neural Networks", ICML 2017, equation 3, with bins of equal width.

  Args:
    histogram: int [2, fine bins], of `uncertainty_histogram`.
    bins: number of bins, divides that of the fine ones.

  Returns:
    Mean of |share of right pixels - certainty| over pixels, in [0, 1]; NaN without pixels.
  """
  certainty, right, pixels = reliability(histogram, bins)
  return float(_divide(np.nansum(np.abs(right - certainty) * pixels), pixels.sum()))


def _divide(numerator, denominator):
  """Share of counts; NaN, and no warning, of none among none."""
  with np.errstate(invalid="ignore"):
    return numerator / denominator


def _mean_of_known(values: np.ndarray) -> float:
  """Mean without the NaNs; NaN if there is nothing else."""
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else float("nan")
