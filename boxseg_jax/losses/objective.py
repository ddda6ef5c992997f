"""The objective: the one place that joins masks, boxes and uncertainty.

    mask image                       cross entropy of mu with the label
    box image, outside every box     cross entropy of mu with background
    box image, inside a box          "separate": cross entropy of mu with the target of
                                     `bootstrap.targets`, and, for sigma alone, of mu / kappa
                                     with the box's class; to compare with,
                                     "uncertainty": cross entropy of mu / kappa with the target,
                                     "label": of mu with the target, sigma unused,
                                     "none": no cross entropy.
                                     Beside each: the terms of BoxInst (`boxinst_loss`)
    void, crowd, padding             weight 0

Sums and weights are returned instead of a mean: they add up over micro-batches
and devices, and are divided once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.losses import bootstrap, projection, uncertainty
from boxseg_jax.losses.boxes import BoxLabels, box_labels, box_maps, object_priors, spans


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


def read_box_maps(batch, boxes: BoxLabels):
  """`boxes.box_maps` of an augmented batch and of what `read_boxes` says of it."""
  return box_maps(batch["boxes"], batch["box_classes"], batch["box_is_crowd"], boxes.allowed)


def read_object_priors(batch, mean_masks):
  """`boxes.object_priors` of an augmented batch; mean_masks: [num_classes][g][g]."""
  return object_priors(
    batch["boxes"],
    batch["box_classes"],
    batch["box_is_crowd"],
    jnp.asarray(mean_masks, jnp.float32),
    canvas=batch["labels"].shape[1:],
  )


def fill_boxes(probabilities, batch, bands):
  """`bootstrap.fill_boxes` of an augmented batch; bands: (low, high) for each class."""
  classes = batch["box_classes"]
  low, high = jnp.moveaxis(jnp.asarray(bands, jnp.float32)[classes], -1, 0)
  real = (classes > 0) & ~batch["box_is_crowd"]
  limits = spans(batch["boxes"], probabilities.shape[1:3])
  return bootstrap.fill_boxes(probabilities, limits, (low, high), real)


def objective(
  logits,
  sigma,
  batch,
  boxes,
  box_target,
  *,
  inside_boxes,
  class_weights,
):
  """Weighted cross entropy of one batch, as sums.

  Args:
    logits: float32 [batch, height, width, K], K = 1 for a binary task.
    sigma: float32 [batch, height, width], >= 0.
    batch: augmented batch, see `augment.augment`.
    boxes: losses.boxes.BoxLabels of the batch.
    box_target: float32 [batch, height, width, num_classes], sums to 1, target inside boxes.
    inside_boxes: "separate", "uncertainty", "label" or "none", see above.
    class_weights: float32 [num_classes], > 0, weight of each class in the target; of a soft target,
      each class's part has its own (as in PyTorch's CrossEntropyLoss).

  Returns:
    (total, sums): total is the summed weighted cross entropy in nats, to be
    divided by sums["weight"]; sums holds each term ("loss_mask", "loss_outside",
    "loss_box"; with "separate" also "loss_sigma"), the weight, and "certainty_box" with
    "box_pixels" for the mean certainty inside boxes.
  """
  logits = uncertainty.class_logits(logits)
  num_classes = logits.shape[-1]
  roles = pixel_roles(batch, boxes)
  # Sigma takes part inside boxes only: elsewhere it would learn to be 0 everywhere.
  used_logits = logits
  if inside_boxes == "uncertainty":
    shrunk = uncertainty.expected_logits(logits, sigma)
    used_logits = jnp.where(roles.inside_box[..., None], shrunk, logits)
  label = jnp.where(roles.in_mask, batch["labels"], BACKGROUND)
  certain_target = jax.nn.one_hot(label, num_classes)
  target = jnp.where(roles.inside_box[..., None], box_target, certain_target)
  weights = jnp.sum(target * class_weights, axis=-1)  # a matmul would round on TPUs
  loss = uncertainty.cross_entropy(used_logits, target * class_weights)

  terms = {
    "loss_mask": jnp.sum(loss, where=roles.in_mask),
    "loss_outside": jnp.sum(loss, where=roles.outside_boxes),
    "loss_box": jnp.sum(loss, where=roles.inside_box & (inside_boxes != "none")),
  }
  if inside_boxes == "separate":
    doubt = _doubt(logits, sigma, boxes)
    terms["loss_sigma"] = jnp.sum(doubt, where=roles.inside_box)
  counted = roles.in_mask | roles.outside_boxes | roles.inside_box
  sums = {
    **terms,
    "weight": jnp.sum(weights, where=counted),
    "certainty_box": jnp.sum(uncertainty.certainty(sigma), where=roles.inside_box),
    "box_pixels": jnp.sum(roles.inside_box, dtype=jnp.float32),
  }
  return sum(terms.values()), sums


def _doubt(logits, sigma, boxes):
  """Cross entropy with the box's class that sigma alone can lower, [batch, height, width].

  Were mu to lower it too, sigma would be the cheaper way out of learning a rare class.
  """
  shrunk = uncertainty.expected_logits(jax.lax.stop_gradient(logits), sigma)
  of_box = bootstrap.box_target(boxes, logits.shape[-1])
  return uncertainty.cross_entropy(shrunk, of_box)


def boxinst_loss(logits, batch, boxes, box_target, *, class_weights, affinity_weight):
  """Projection and colour affinity in the boxes of a batch, as a sum; see `projection`.

  Each image's count as much as the pixels inside its boxes do in `objective`.

  Args:
    logits: float32 [batch, height, width, K], K = 1 for a binary task.
    batch: as for `objective`.
    boxes: as for `objective`.
    box_target: as for `objective`; it decides how much a pixel weighs.
    class_weights: as for `objective`.
    affinity_weight: float32 scalar, weight of the colour affinity beside the projection.

  Returns:
    float32 scalar in nats, to be divided like `objective`'s total.
  """
  inside = pixel_roles(batch, boxes).inside_box
  classes = batch["box_classes"]
  real = (classes > 0) & ~batch["box_is_crowd"]
  of_image = projection.image_losses(
    jax.nn.softmax(uncertainty.class_logits(logits), axis=-1),
    batch["image"],
    spans(batch["boxes"], inside.shape[1:]),
    inside,
    classes,
    jnp.where(real, class_weights[classes], 0.0),
    affinity_weight,
  )
  weights = jnp.sum(box_target * class_weights, axis=-1)
  return jnp.sum(of_image * jnp.sum(weights, axis=(1, 2), where=inside))


def teacher_loss(logits, labels, in_mask, *, class_weights, prior=None):
  """Weighted cross entropy of the teacher on mask pixels, as a sum.

  Args:
    logits: float32 [batch, height, width, K], of the teacher.
    labels: int32 [batch, height, width], of the images that it was shown.
    in_mask: bool [batch, height, width], see `PixelRoles`.
    class_weights: as for `objective`.
    prior: `read_object_priors` of these images; the teacher then learns what goes beyond them.

  Returns:
    float32 scalar in nats, to be divided like `objective`'s total.
  """
  logits = uncertainty.class_logits(logits)
  if prior is not None:
    logits = bootstrap.with_prior(logits, prior)
  target = jax.nn.one_hot(jnp.where(in_mask, labels, BACKGROUND), logits.shape[-1])
  loss = uncertainty.cross_entropy(logits, target * class_weights)
  return jnp.sum(loss, where=in_mask)
