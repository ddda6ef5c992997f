"""The objective: the one place that joins masks, boxes and uncertainty.

    mask image                       cross entropy of mu with the label
    box image, outside every box     cross entropy of mu with background
    box image, inside a box          cross entropy of mu / kappa with the target of
                                     `bootstrap.targets` (of mu where `uncertain` is off)
    void, crowd, padding             weight 0

Sums and weights are returned instead of a mean: they add up over micro-batches
and devices, and are divided once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.losses import uncertainty
from boxseg_jax.losses.boxes import BoxLabels, box_labels, box_maps


class PixelRoles(NamedTuple):
  """Which rule of the objective each pixel [batch, height, width] falls under (bool)."""

  in_mask: jax.Array
  outside_boxes: jax.Array
  inside_box: jax.Array


def pixel_roles(batch, boxes: BoxLabels) -> PixelRoles:
  """Sorts the pixels of an augmented batch; void, crowd and padding are in no role.

  Args:
    batch: augmented batch, see `augment.augment`.
    boxes: what its boxes say.

  Returns:
    PixelRoles, each pixel in at most one.
  """
  counts = batch["visible"] & batch["valid"][:, None, None]
  has_mask = batch["has_mask"][:, None, None]
  in_mask = counts & has_mask & (batch["labels"] != VOID)
  of_boxes = counts & ~has_mask
  return PixelRoles(
    in_mask=in_mask,
    outside_boxes=of_boxes & ~boxes.inside & ~boxes.crowd,
    inside_box=of_boxes & boxes.inside,
  )


def read_boxes(batch, num_classes) -> BoxLabels:
  """`boxes.box_labels` of an augmented batch (boxes in units of the canvas)."""
  canvas = batch["labels"].shape[1:]
  return box_labels(
    batch["boxes"],
    batch["box_classes"],
    batch["box_is_crowd"],
    canvas=canvas,
    num_classes=num_classes,
  )


def read_box_maps(batch, num_classes):
  """`boxes.box_maps` of an augmented batch (boxes in units of the canvas)."""
  canvas = batch["labels"].shape[1:]
  return box_maps(
    batch["boxes"],
    batch["box_classes"],
    batch["box_is_crowd"],
    canvas=canvas,
    num_classes=num_classes,
  )


def objective(logits, sigma, batch, boxes, box_target, *, uncertain, class_weights):
  """Weighted cross entropy of one batch, as sums.

  Args:
    logits: float32 [batch, height, width, K], K = 1 for a binary task.
    sigma: float32 [batch, height, width], >= 0.
    batch: augmented batch, see `augment.augment`.
    boxes: losses.boxes.BoxLabels of the batch.
    box_target: float32 [batch, height, width, num_classes], target inside boxes.
    uncertain: whether the loss inside boxes is that of the expected probability;
      otherwise a box is taken at its word.
    class_weights: float32 [num_classes], > 0, weight of each class in the target.

  Returns:
    (total, sums): total is the summed weighted cross entropy in nats, to be
    divided by sums["weight"]; sums holds each term ("loss_mask",
    "loss_outside", "loss_box"), the weight, and "certainty_box" with
    "box_pixels" for the mean certainty inside boxes.
  """
  logits = uncertainty.class_logits(logits)
  num_classes = logits.shape[-1]
  roles = pixel_roles(batch, boxes)
  # Sigma takes part inside boxes only: elsewhere it would learn to be 0 everywhere.
  shrunk = uncertainty.expected_logits(logits, sigma) if uncertain else logits
  used_logits = jnp.where(roles.inside_box[..., None], shrunk, logits)
  label = jnp.where(roles.in_mask, batch["labels"], BACKGROUND)
  certain_target = jax.nn.one_hot(label, num_classes)
  target = jnp.where(roles.inside_box[..., None], box_target, certain_target)
  weights = jnp.sum(target * class_weights, axis=-1)  # a matmul would round on TPUs
  loss = weights * uncertainty.cross_entropy(used_logits, target)

  terms = {
    "loss_mask": jnp.sum(loss, where=roles.in_mask),
    "loss_outside": jnp.sum(loss, where=roles.outside_boxes),
    "loss_box": jnp.sum(loss, where=roles.inside_box),
  }
  counted = roles.in_mask | roles.outside_boxes | roles.inside_box
  sums = {
    **terms,
    "weight": jnp.sum(weights, where=counted),
    "certainty_box": jnp.sum(uncertainty.certainty(sigma), where=roles.inside_box),
    "box_pixels": jnp.sum(roles.inside_box, dtype=jnp.float32),
  }
  return sum(terms.values()), sums


def teacher_loss(logits, batch, *, class_weights):
  """Weighted cross entropy of the teacher on mask pixels, as a sum.

  Args:
    logits: float32 [batch, height, width, K], of the teacher.
    batch: the augmented batch that it was shown; box images in it count nothing.
    class_weights: as for `objective`.

  Returns:
    float32 scalar in nats, to be divided like `objective`'s total.
  """
  known = batch["visible"] & (batch["valid"] & batch["has_mask"])[:, None, None]
  known &= batch["labels"] != VOID
  logits = uncertainty.class_logits(logits)
  target = jax.nn.one_hot(jnp.where(known, batch["labels"], BACKGROUND), logits.shape[-1])
  weights = jnp.sum(target * class_weights, axis=-1)
  return jnp.sum(weights * uncertainty.cross_entropy(logits, target), where=known)
