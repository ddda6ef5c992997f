"""Evaluation over a whole set: sums on the devices, totals on the host, named numbers.

`segmentation_sums` and `box_sums` are pure and work on one device's share of a
batch; the caller binds their keyword arguments once and runs them under the
same named axis as the training step. They know predictions, not training: all
they are given is a function from (state, batch) to what is to be judged.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from boxseg_jax.batch import VOID, Batch
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import metrics
from boxseg_jax.evaluation.resize import highest, in_strips
from boxseg_jax.losses import uncertainty

Sums = dict[str, jax.Array]


def segmentation_sums(
  state: Any,
  batch: Batch,
  *,
  predict_fn: Callable[[Any, Batch], tuple[jax.Array, jax.Array]],
  num_classes: int,
  axis_name: str | None = None,
) -> Sums:
  """Compares predictions with labels at the labels' own resolution.

  Logits are resized, not probabilities: it is the network's own last step (its
  decoder ends in a bilinear resize of logits) carried on to the labels, and a
  confident pixel keeps its margin over a doubtful neighbour, where saturated
  probabilities would put every boundary halfway.

  Args:
    state: whatever `predict_fn` takes.
    batch: prepared evaluation batch, `full_labels` and `full_size` included.
    predict_fn: (state, batch) -> (logits float32 [batch, height, width, K], sigma float32
      [batch, height, width]); K = num_classes, or 1 for the logit of class 1 of two.
    num_classes: number of classes, background included.
    axis_name: named axis over which the sums are added up, if there is one.

  Returns:
    `confusion` int32 [num_classes, num_classes], of `metrics.confusion`. Void and the padding
    examples (`valid` False) count nowhere.
  """
  logits, _ = predict_fn(state, batch)
  logits = uncertainty.class_logits(logits)
  labels = _valid_labels(batch["full_labels"], batch["valid"])

  def compare(logits, labels):
    return metrics.confusion(highest(logits), labels, num_classes)

  _, height, width = labels.shape
  full = (height, width)
  strips = in_strips(compare, logits, batch["extent"], batch["full_size"], full, labels)
  return _add_up({"confusion": jnp.sum(strips, axis=0)}, axis_name)


def box_sums(
  state: Any,
  batch: Batch,
  *,
  target_fn: Callable[[Any, Batch], tuple[jax.Array, jax.Array, jax.Array, jax.Array]],
  num_classes: int,
  axis_name: str | None = None,
) -> Sums:
  """Judges, on images whose masks are known, what the network makes of their boxes.

  Args:
    state: whatever `target_fn` takes.
    batch: prepared batch whose `labels` [batch, height, width] are the true ones.
    target_fn: (state, batch) -> (target float32 [batch, height, width, num_classes], the
      bootstrapped target; sigma float32 [batch, height, width]; inside bool [batch, height,
      width], the pixel lies in a box that is no crowd; box_class int32 [batch, height, width],
      the class of the smallest such box). It sees boxes, not labels.
    num_classes: number of classes, background included.
    axis_name: named axis over which the sums are added up, if there is one.

  Returns:
    `box_confusion` int32 [num_classes, num_classes], labels against the most likely class of the
    target, and `sigma_histogram` int32 [2, bins] of certainty where the box's class is right (row
    0) and wrong (row 1). Both over pixels inside boxes at the canvas' resolution whose label is
    known.
  """
  target, sigma, inside, box_class = target_fn(state, batch)
  labels = jnp.where(inside, _valid_labels(batch["labels"], batch["valid"]), VOID)
  sums = {
    "box_confusion": metrics.confusion(jnp.argmax(target, axis=-1), labels, num_classes),
    "sigma_histogram": metrics.uncertainty_histogram(
      uncertainty.certainty(sigma), wrong=labels != box_class, counted=labels < num_classes
    ),
  }
  return _add_up(sums, axis_name)


def most_likely_class(logits: jax.Array) -> jax.Array:
  """Class ids int32 [...] of logits float32 [..., K]; K = 1 is the logit of class 1 of two."""
  return jnp.argmax(uncertainty.class_logits(logits), axis=-1).astype(jnp.int32)


def _valid_labels(labels: jax.Array, valid: jax.Array) -> jax.Array:
  """Labels int32 [batch, height, width], void in the examples that only fill up the batch."""
  return jnp.where(valid[:, None, None], labels.astype(jnp.int32), VOID)


def _add_up(sums: Sums, axis_name: str | None) -> Sums:
  return jax.lax.psum(sums, axis_name) if axis_name else sums


def evaluate(
  sums_fn: Callable[[Any, Any], Sums],
  state: Any,
  batches: Iterable[Batch],
  put: Callable[[Batch], Any] = lambda batch: batch,
) -> dict[str, np.ndarray]:
  """Adds up the sums of all batches on the host.

  Args:
    sums_fn: (state, batch) -> sums over all devices, compiled by the caller.
    state: passed on to `sums_fn`.
    batches: host batches; every image once, `valid` False on what fills up the last ones.
    put: host batch -> device batch.

  Returns:
    The totals, int64 arrays by the names of the sums.

  Raises:
    InputError: there is no batch.
  """
  totals: dict[str, np.ndarray] = {}
  running = None
  for batch in batches:
    # One batch of look-ahead: the device works on this one while the host waits for the last.
    finished, running = running, sums_fn(state, put(batch))
    _accumulate(totals, finished)
  if running is None:
    raise InputError("nothing to evaluate: the evaluation split has no image")
  _accumulate(totals, running)
  return totals


def _accumulate(totals: dict[str, np.ndarray], sums: Sums | None) -> None:
  """Adds device sums to the host's totals, in int64 because a large set overflows int32."""
  for name, value in jax.device_get(sums or {}).items():
    totals[name] = totals.get(name, 0) + np.asarray(value).astype(np.int64)


def results(totals: dict[str, np.ndarray], class_names: Sequence[str]) -> dict[str, float]:
  """Turns totals into named metrics.

  Args:
    totals: of `evaluate`, one run's or several merged.
    class_names: names by class id, background first.

  Returns:
    From `confusion`: "iou/<class>", "miou", "foreground_iou", "pixel_accuracy". From
    `box_confusion`: "boxes/mask_iou/<class>" for the foreground classes and their mean
    "boxes/mask_iou", inside boxes. From `sigma_histogram`: "boxes/sigma_auroc" and
    "boxes/sigma_calibration_error". All in [0, 1], NaN where there is nothing to measure.
  """
  named: dict[str, float] = {}
  if "confusion" in totals:
    whole = metrics.summary(totals["confusion"])
    per_class = whole.pop("iou")
    named |= {f"iou/{name}": float(iou) for name, iou in zip(class_names, per_class, strict=True)}
    named |= whole
  if "box_confusion" in totals:
    inside = metrics.summary(totals["box_confusion"])
    foreground = zip(class_names[1:], inside["iou"][1:], strict=True)
    named |= {f"boxes/mask_iou/{name}": float(iou) for name, iou in foreground}
    named["boxes/mask_iou"] = inside["foreground_iou"]
  if "sigma_histogram" in totals:
    named["boxes/sigma_auroc"] = metrics.auroc(totals["sigma_histogram"])
    named["boxes/sigma_calibration_error"] = metrics.calibration_error(totals["sigma_histogram"])
  return named
