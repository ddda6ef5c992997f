"""The training step: a pure function of state and batch.

Written over a named axis: each device sees its part of the global batch, and
sums are taken with psum before the one division, so that the result does not
depend on how the batch is split.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from boxseg_jax.data.box_priors import BoxPriors
from boxseg_jax.losses import bootstrap, crf, objective, uncertainty
from boxseg_jax.training.state import TrainState, update_ema


class LossSettings(NamedTuple):
  """What the objective needs to know.

  Attributes:
    num_classes: number of classes with the background.
    inside_boxes: loss inside boxes, see `objective`.
    bootstrap: "none", "posterior", "soft", "predicted" or "hard".
    teacher: whose prediction bootstrapped targets take: that of the network "self", or of
      its decoder that is shown the "boxes" ("posterior": the mean of both).
    mask_images: mask images in the global batch; they come first, in every part of it too.
    box_images: box images in the global batch; they come last.
    bootstrap_start: first step with bootstrapped targets; also the steps over which the
      colour affinity beside the projection comes in.
    bootstrap_ramp: steps until they count fully.
    class_weights: one weight per class.
    box_priors: how objects lie in their boxes, of "posterior".
    projection_weight: of the terms of BoxInst inside boxes (networks of earlier runs have none).
  """

  num_classes: int
  inside_boxes: str
  bootstrap: str
  teacher: str
  mask_images: int
  box_images: int
  bootstrap_start: int
  bootstrap_ramp: int
  class_weights: tuple[float, ...]
  box_priors: BoxPriors | None
  projection_weight: float = 0.0


def example_keys(key, step, local_batch: int, axis_name: str):
  """One PRNG key per example, from its position in the global batch.

  Args:
    key: PRNG key of the run.
    step: int32 scalar.
    local_batch: examples on this device.
    axis_name: axis over the devices.

  Returns:
    Keys [local_batch]; the same whatever the number of devices.
  """
  key = jax.random.fold_in(key, step)
  position = jax.lax.axis_index(axis_name) * local_batch + jnp.arange(local_batch)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, position)


def _object_priors(batch, settings: LossSettings):
  """[batch, height, width], or None where targets do not know of them."""
  if settings.bootstrap != "posterior":
    return None
  assert settings.box_priors is not None, "a posterior has priors"
  return objective.read_object_priors(batch, settings.box_priors.mean_masks)


def _seen(model, variables, batch, boxes, settings: LossSettings):
  """(`Outputs` of the network, unweighted logits of it and its teacher, what decoders gave).

  Were targets made of weighted ones, the loss would weight them once more, and each round of
  bootstrapping make objects of rare classes fatter.
  """
  apply = partial(
    model.apply,
    variables,
    batch["image"],
    train=False,
    capture_intermediates=lambda module, _: module.name == "decoder",
    mutable=["intermediates"],
  )
  if settings.teacher != "boxes":
    outputs, kept = apply()
    return outputs, _unweighted(outputs.logits, settings), jax.tree.leaves(kept)
  maps = objective.read_box_maps(batch, boxes)
  (outputs, logits), kept = apply(maps, method="with_teacher")
  if settings.bootstrap == "posterior":  # what either knows: the geometric mean of both
    logits = (logits + outputs.logits) / 2.0
  return outputs, _unweighted(logits, settings), jax.tree.leaves(kept)


def _unweighted(logits, settings: LossSettings):
  """`uncertainty.unweighted` logits of all classes, [batch, height, width, num_classes]."""
  return uncertainty.class_logits(uncertainty.unweighted(logits, settings.class_weights))


def bootstrapped(model, variables, batch, boxes, settings: LossSettings, *, strength):
  """Targets inside boxes by what the network and its teacher see.

  Args:
    model: the network.
    variables: {"params", "batch_stats"}.
    batch: augmented batch.
    boxes: losses.boxes.BoxLabels of the batch.
    settings: of the loss.
    strength: see `bootstrap.targets`.

  Returns:
    (target float32 [batch, height, width, num_classes], sigma float32 [batch, height, width]).
  """
  outputs, logits, _ = _seen(model, variables, batch, boxes, settings)
  fill = smooth = None
  if settings.bootstrap == "posterior":
    assert settings.box_priors is not None, "a posterior has priors"
    smooth = partial(crf.mean_field, image=batch["image"])
    fill = partial(objective.fill_boxes, batch=batch, bands=settings.box_priors.fill_bands)
  target = bootstrap.targets(
    settings.bootstrap,
    logits,
    outputs.sigma,
    boxes,
    strength=strength,
    prior=_object_priors(batch, settings),
    smooth=smooth,
    fill=fill,
  )
  return target, outputs.sigma


def box_targets(model, ema, batch, boxes, step, settings: LossSettings):
  """Targets inside boxes while training, by the moving average of the network.

  Args:
    model: the network.
    ema: {"params", "batch_stats"}.
    batch: augmented batch, mask images first.
    boxes: losses.boxes.BoxLabels of the batch.
    step: int32 scalar.
    settings: of the loss.

  Returns:
    float32 [batch, height, width, num_classes], of use on box images only.
  """
  count = min(len(boxes.inside), settings.box_images)
  if not count:
    return bootstrap.box_target(boxes, settings.num_classes)
  prior = _object_priors(batch, settings)
  of_box = bootstrap.box_target(boxes, settings.num_classes, prior)
  if settings.bootstrap == "none":
    return of_box
  strength = bootstrap.strength_at(
    step, start=settings.bootstrap_start, ramp=settings.bootstrap_ramp
  )

  def teach():
    last, their_boxes = jax.tree.map(lambda x: x[-count:], (batch, boxes))
    target, _ = bootstrapped(model, ema, last, their_boxes, settings, strength=strength)
    return jnp.concatenate([of_box[:-count], target])

  # Before its start bootstrapping costs nothing: the teacher is not even run.
  return jax.lax.cond(strength > 0, teach, lambda: of_box)


def _train_outputs(model, variables, batch, boxes, settings: LossSettings):
  """((`Outputs`, the teacher's logits of the first images or None), new batch statistics)."""
  train = partial(model.apply, variables, batch["image"], train=True, mutable=["batch_stats"])
  if settings.teacher == "boxes":
    first = jax.tree.map(lambda x: x[: settings.mask_images], (batch, boxes))
    maps = objective.read_box_maps(*first)
    outputs, updated = train(maps, method="with_teacher")
  else:
    alone, updated = train()
    outputs = alone, None
  return outputs, updated.get("batch_stats", variables["batch_stats"])


def _mask_overlap(logits, labels, in_mask, settings: LossSettings):
  """Intersection and union [num_classes - 1] of foreground classes on mask pixels."""
  predicted = jnp.argmax(_unweighted(logits, settings), axis=-1)
  pairs = [(predicted == c, labels == c) for c in range(1, settings.num_classes)]
  return {
    "intersection": jnp.stack([jnp.sum(p & l & in_mask, dtype=jnp.float32) for p, l in pairs]),
    "union": jnp.stack([jnp.sum((p | l) & in_mask, dtype=jnp.float32) for p, l in pairs]),
  }


def make_loss(model, settings: LossSettings) -> Callable:
  """Binds the network and the settings.

  Args:
    model: the network.
    settings: of the loss.

  Returns:
    `(params, batch_stats, ema, step, batch) -> (total, (sums, batch_stats))`, where
    total and sums are those of `objective.objective`, to be divided by sums["weight"].
  """
  class_weights = jnp.asarray(settings.class_weights, jnp.float32)

  def loss(params, batch_stats, ema, step, batch):
    boxes = objective.read_boxes(batch, settings.num_classes)
    target = box_targets(model, ema, batch, boxes, step, settings)
    variables = {"params": params, "batch_stats": batch_stats}
    (outputs, taught), batch_stats = _train_outputs(model, variables, batch, boxes, settings)
    total, sums = objective.objective(
      outputs.logits,
      outputs.sigma,
      batch,
      boxes,
      target,
      inside_boxes=settings.inside_boxes,
      class_weights=class_weights,
    )
    if settings.projection_weight:
      of_boxes = objective.boxinst_loss(
        outputs.logits,
        batch,
        boxes,
        target,
        class_weights=class_weights,
        affinity_weight=jnp.minimum(step / max(settings.bootstrap_start, 1), 1.0),
      )
      sums["loss_projection"] = settings.projection_weight * of_boxes
      total += sums["loss_projection"]
    labels, in_mask = batch["labels"], objective.pixel_roles(batch, boxes).in_mask
    if taught is not None:
      shown = len(taught)
      first = jax.tree.map(lambda x: x[:shown], batch)
      sums["loss_teacher"] = objective.teacher_loss(
        taught,
        first["labels"],
        in_mask[:shown],
        class_weights=class_weights,
        prior=_object_priors(first, settings),
      )
      total += sums["loss_teacher"]
    sums |= _mask_overlap(outputs.logits, labels, in_mask, settings)
    return total, (sums, batch_stats)

  return loss


def _accumulated_gradients(loss, state: TrainState, batch, accumulate: int):
  """Summed gradients and sums over micro-batches, and the last batch statistics."""
  gradient = jax.grad(loss, has_aux=True)

  def add(carry, micro):
    batch_stats, totals = carry
    grads, (sums, batch_stats) = gradient(state.params, batch_stats, state.ema, state.step, micro)
    return (batch_stats, jax.tree.map(jnp.add, totals, (grads, sums))), None

  if accumulate == 1:
    grads, (sums, stats) = gradient(state.params, state.batch_stats, state.ema, state.step, batch)
    return grads, sums, stats
  # Every `accumulate`-th example, because a batch has its mask images first and each
  # micro-batch shall have its share of them.
  micros = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
  first = jax.tree.map(lambda x: x[0], micros)
  shapes = jax.eval_shape(gradient, state.params, state.batch_stats, state.ema, state.step, first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0]))
  (stats, (grads, sums)), _ = jax.lax.scan(add, (state.batch_stats, zeros), micros)
  return grads, sums, stats


def make_train_step(
  model,
  optimizer: optax.GradientTransformation,
  augment: Callable,
  settings: LossSettings,
  *,
  ema_decay: float,
  key,
  accumulate: int,
  axis_name: str,
) -> Callable:
  """Binds everything static once.

  Args:
    model: the network, `apply(variables, image, train=...) -> models.Outputs`.
    optimizer: optax transformation.
    augment: `(batch, keys) -> augmented batch`.
    settings: of the loss.
    ema_decay: of the moving average.
    key: PRNG key of the augmentation.
    accumulate: micro-batches per device and step.
    axis_name: axis over the devices.

  Returns:
    `(state, batch) -> (state, metrics)`. A batch without a pixel to learn from counts as a step
    and changes nothing else. Metrics are float32 sums over the global batch or its means: "loss"
    and its terms, "certainty_box" (mean inside boxes), "grad_norm", "param_norm",
    "intersection" and "union" [num_classes - 1].
  """
  loss = make_loss(model, settings)

  def learn(state: TrainState, grads, batch_stats) -> TrainState:
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, batch_stats, step=state.step, decay=ema_decay)
    return TrainState(state.step, params, batch_stats, ema, opt_state)

  def train_step(state: TrainState, batch):
    keys = example_keys(key, state.step, batch["image"].shape[0], axis_name)
    batch = augment(batch, keys)
    grads, sums, batch_stats = _accumulated_gradients(loss, state, batch, accumulate)
    grads, sums = jax.lax.psum((grads, sums), axis_name)
    counted = sums.pop("weight")
    # The floor keeps a batch without a single counted pixel finite.
    weight = jnp.maximum(counted, 1.0)
    grads = jax.tree.map(lambda g: g / weight, grads)
    # Without a pixel to learn from the gradient is 0, but decay and momentum would go on, and
    # statistics be those of black images. A choice of each number would copy the state.
    state = jax.lax.cond(counted > 0, learn, lambda state, *_: state, state, grads, batch_stats)

    metrics = {name: sums.pop(name) / weight for name in list(sums) if name.startswith("loss_")}
    metrics["loss"] = sum(metrics.values())
    metrics["certainty_box"] = sums.pop("certainty_box") / jnp.maximum(sums.pop("box_pixels"), 1.0)
    metrics["grad_norm"] = optax.global_norm(grads)
    metrics["param_norm"] = optax.global_norm(state.params)
    return state.replace(step=state.step + 1), metrics | sums

  return train_step


def make_predict_fn(model, settings: LossSettings) -> Callable:
  """`(variables, batch) -> (logits, sigma)`, for evaluation and use.

  Args:
    model: the network.
    settings: of the loss, whose class weights are taken off.

  Returns:
    A pure function of the moving average {"params", "batch_stats"}; batch as from
    `augment.prepare`, logits float32 [batch, height, width, K], sigma float32 [batch, height,
    width].
  """

  def predict(variables, batch):
    outputs = model.apply(variables, batch["image"], train=False)
    return uncertainty.unweighted(outputs.logits, settings.class_weights), outputs.sigma

  return predict


def make_target_fn(model, settings: LossSettings) -> Callable:
  """`(variables, batch, step=None) -> (target, sigma, inside, box_class)`: what boxes become.

  Args:
    model: the network.
    settings: of the loss.

  Returns:
    A pure function of the moving average: target float32 [batch, height, width, num_classes],
    inside boxes that of the bootstrapping and outside background; sigma float32, inside bool,
    box_class int32, each [batch, height, width]. Bootstrapping is at full strength, or, where a
    step (int32 scalar) is given, as far as it has come in then: what that step learns from.
  """

  def target(variables, batch, step=None):
    boxes = objective.read_boxes(batch, settings.num_classes)
    start, ramp = settings.bootstrap_start, settings.bootstrap_ramp
    strength = 1.0 if step is None else bootstrap.strength_at(step, start=start, ramp=ramp)
    inside, sigma = bootstrapped(model, variables, batch, boxes, settings, strength=strength)
    background = jax.nn.one_hot(jnp.zeros_like(boxes.box_class), settings.num_classes)
    whole = jnp.where(boxes.inside[..., None], inside, background)
    return whole, sigma, boxes.inside, boxes.box_class

  return target


def make_evidence_fn(model, settings: LossSettings) -> Callable:
  """`(variables, batch) -> (logits, own_logits, features)`: what is seen, with nothing added.

  Args:
    model: the network.
    settings: of the loss.

  Returns:
    A pure function of the moving average and a batch as from `augment.prepare`: logits of the
    network and its teacher, where it has one, and of the network alone, as they would be had the
    loss not weighted the classes, both float32 [batch, height, width, num_classes]; and the
    features from which they tell them, float32 [batch, h, w, f] at the decoders' resolution.
  """

  def evidence(variables, batch):
    boxes = objective.read_boxes(batch, settings.num_classes)
    outputs, logits, decoded = _seen(model, variables, batch, boxes, settings)
    features = jnp.concatenate(decoded, axis=-1).astype(jnp.float32)
    return logits, _unweighted(outputs.logits, settings), features

  return evidence
