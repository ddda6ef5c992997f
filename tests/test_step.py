"""The training step: the same numbers however it is run, and nothing that leaks."""

from functools import partial

import jax
import numpy as np
import pytest

from boxseg_jax import augment, models
from boxseg_jax.batch import VOID
from boxseg_jax.data.box_priors import BoxPriors
from boxseg_jax.evaluation.serving import make_serving_fn
from boxseg_jax.models import depthwise
from boxseg_jax.parallel import AXIS, Parallel
from boxseg_jax.training import optimizer as optimizers
from boxseg_jax.training.state import create_state
from boxseg_jax.training.step import (
  LossSettings,
  example_keys,
  make_predict_fn,
  make_target_fn,
  make_train_step,
)

CANVAS, BATCH, BOXES = (16, 24), 8, 3
MEAN_MASKS = np.random.default_rng(1).uniform(0.1, 0.9, (3, 4, 4)).tolist()


def a_batch(seed=0, void=0.1):
  """Three mask images with some void, five box images."""
  rng = np.random.default_rng(seed)
  low = rng.uniform(0, 0.6, (BATCH, BOXES, 2))
  boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, low.shape)], axis=-1)
  has_mask = np.arange(BATCH) < 3
  labels = rng.integers(0, 3, (BATCH, *CANVAS))
  labels[rng.uniform(size=labels.shape) < void] = VOID
  labels[~has_mask] = VOID
  return {
    "image": rng.integers(0, 256, (BATCH, *CANVAS, 3)).astype(np.uint8),
    "labels": labels.astype(np.uint8),
    "boxes": boxes.astype(np.float32),
    "box_classes": rng.integers(0, 3, (BATCH, BOXES)).astype(np.int32),
    "box_is_crowd": rng.uniform(size=(BATCH, BOXES)) < 0.1,
    "has_mask": has_mask,
    "valid": np.ones(BATCH, bool),
    "extent": np.tile(np.float32([1.0, 0.75]), (BATCH, 1)),
    "image_id": np.arange(BATCH, dtype=np.int32),
  }


def settings(**changes):
  base = LossSettings(
    num_classes=3,
    inside_boxes="separate",
    bootstrap="posterior",
    teacher="boxes",
    mask_images=3,
    box_images=5,
    bootstrap_start=1,
    bootstrap_ramp=2,
    class_weights=(1.0, 2.0, 3.0),
    box_priors=BoxPriors(((0.4, 0.9), (0.6, 0.7), (0.8, 0.9)), MEAN_MASKS),
    projection_weight=0.3,
  )
  return base._replace(**changes)


def a_model(norm="batch"):
  return models.build(
    "unet", num_classes=3, encoder="conv", width=4, levels=2, norm=norm, axis_name=AXIS
  )


def first_variables(model):
  image, maps = (np.zeros((1, *CANVAS, channels), np.float32) for channels in (3, 4))
  return model.init(jax.random.key(0), image, maps, train=False, method="with_teacher")


def a_step(model, *, clip_norm=0.0, accumulate=1, **changes):
  """(training step, optimizer): SGD, which shows differences in gradients undamped."""
  optimizer = optimizers.make_optimizer(
    "sgd",
    schedule=lambda step: 0.02,
    weight_decay=1e-3,
    momentum=0.9,
    clip_norm=clip_norm,
    encoder_rate=1.0,
  )
  step = make_train_step(
    model,
    optimizer,
    partial(augment.augment, geometry=augment.Geometry(), photometry=augment.Photometry()),
    settings(**changes),
    ema_decay=0.9,
    key=jax.random.key(3),
    accumulate=accumulate,
    axis_name=AXIS,
  )
  return step, optimizer


def train(kind="pmap", devices=1, steps=2, norm="batch", accumulate=1, batches=None, **changes):
  """A few steps; (params, metrics)."""
  parallel = Parallel(kind, jax.devices()[:devices])
  model = a_model(norm)
  step, optimizer = a_step(model, accumulate=accumulate, **changes)
  state = parallel.replicate(create_state(first_variables(model), optimizer=optimizer))
  run = parallel.compile(step, donate_state=True)
  history = []
  for batch in batches or [a_batch(seed) for seed in range(steps)]:
    state, metrics = run(state, parallel.put_batch(batch))
    history.append(jax.device_get(metrics))
  return jax.device_get(state), history


def assert_close(one, other, *, rtol=2e-4):
  """Equal up to the order of float32 sums, relative to the size of each array."""
  for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
    scale = np.abs(a).max() + 1e-3
    np.testing.assert_allclose(a, b, atol=rtol * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def reference():
  return train()


@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("pmap", 8), ("jit", 8), ("jit", 2)])
def test_same_training_on_any_number_of_devices(reference, kind, devices):
  state, history = train(kind, devices)
  assert_close(reference[1], history)
  assert_close(reference[0], state)


def test_pmap_and_jit_are_equal_to_the_bit(reference):
  state, _ = train("jit", 1)
  jax.tree.map(np.testing.assert_array_equal, reference[0], state)


def test_micro_batches_add_up_to_the_whole():
  # Group norm, because batch statistics are by design those of a micro-batch.
  assert_close(train(norm="group"), train(norm="group", accumulate=4))


def test_uneven_void_is_weighed_over_all_devices():
  batch = a_batch()
  batch["valid"][1:] = False  # seven of eight devices count nothing
  one, _ = train("jit", 1, norm="group", batches=[batch])
  eight, _ = train("jit", 8, norm="group", batches=[batch])
  assert_close(one.params, eight.params)


def test_state_moves_and_counts(reference):
  state, history = reference
  assert int(state.step) == 2
  assert history[0]["loss"] != history[1]["loss"]
  for metrics in history:
    terms = metrics["loss_mask"] + metrics["loss_outside"] + metrics["loss_box"]
    terms += metrics["loss_sigma"] + metrics["loss_projection"] + metrics["loss_teacher"]
    np.testing.assert_allclose(metrics["loss"], terms, rtol=1e-6)
    assert 0 < metrics["certainty_box"] <= 1
    assert (metrics["intersection"] <= metrics["union"]).all()


def test_labels_of_box_images_are_never_looked_at(reference):
  """Masks of box images do not reach training: any labels there give the same bits."""
  rng = np.random.default_rng(9)
  batches = [a_batch(seed) for seed in range(2)]
  for batch in batches:
    hidden = ~batch["has_mask"]
    batch["labels"][hidden] = rng.integers(0, 3, batch["labels"][hidden].shape)
  state, _ = train(batches=batches)
  jax.tree.map(np.testing.assert_array_equal, reference[0], state)


def test_bootstrapping_changes_nothing_before_its_start(reference):
  soon, _ = train(steps=1)
  late, _ = train(steps=1, bootstrap_start=9)
  jax.tree.map(np.testing.assert_array_equal, soon, late)
  later, _ = train(bootstrap_start=9)
  different = [
    np.any(a != b)
    for a, b in zip(
      jax.tree.leaves(reference[0].params), jax.tree.leaves(later.params), strict=True
    )
  ]
  assert any(different)


def test_the_teacher_is_not_needed_where_the_network_teaches_itself():
  """Its parameters stay as they are but for weight decay, and it is not run."""
  state, history = train(teacher="self")
  assert "loss_teacher" not in history[0]
  first = first_variables(a_model())["params"]
  assert_close(first["teacher"], state.params["teacher"], rtol=1e-4)  # weight decay is 4e-5
  with pytest.raises(AssertionError):
    assert_close(first, state.params, rtol=1e-4)
  other, _ = train(teacher="self", mask_images=8)
  jax.tree.map(np.testing.assert_array_equal, state, other)


def test_the_teacher_learns_from_mask_images_alone():
  def teacher_after(inverted):
    batch = a_batch()
    batch["image"][inverted] = 255 - batch["image"][inverted]
    return train(steps=1, batches=[batch], norm="group")[0].params["teacher"]

  usual = teacher_after(slice(0, 0))
  assert_close(usual, teacher_after(slice(3, None)), rtol=1e-6)
  with pytest.raises(AssertionError):
    assert_close(usual, teacher_after(slice(0, 3)))


def test_each_example_has_a_key_of_its_position():
  def keys(devices):
    parallel = Parallel("jit", jax.devices()[:devices])

    def step(state, batch):
      own = jax.random.key_data(example_keys(jax.random.key(7), state, batch["x"].shape[0], AXIS))
      return jax.lax.all_gather(own, AXIS, tiled=True)

    return np.asarray(parallel.compile(step)(5, parallel.put_batch({"x": np.zeros(8)})))

  one, eight = keys(1), keys(8)
  np.testing.assert_array_equal(one, eight)
  assert len(np.unique(one, axis=0)) == 8


def test_ema_follows_by_hand():
  state, _ = train(steps=1)
  # At step 0 the warmed-up decay is min(0.9, 1 / 10).
  variables = first_variables(a_model())
  expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, variables["params"], state.params)
  assert_close(expected, state.ema["params"], rtol=1e-5)


class SayingAlways:
  """A network whose answer is known, whatever the image."""

  def __init__(self, logits):
    self.outputs = models.Outputs(logits, np.zeros(logits.shape[:-1], np.float32))

  def apply(self, variables, *images, train, method=None, capture_intermediates=None, mutable=()):
    answer = self.outputs if method is None else (self.outputs, self.outputs.logits)
    return (answer, {}) if mutable else answer


def test_class_weights_do_not_reach_what_is_predicted():
  """A network whose odds are the weights times another's predicts the same, live and exported."""
  weights = np.float32([1.0, 2.0, 3.0])
  seen = jax.random.normal(jax.random.key(1), (BATCH, *CANVAS, 3))
  batch = augment.prepare(a_batch())
  weighted = SayingAlways(seen + np.log(weights))
  logits, _ = make_predict_fn(weighted, settings(class_weights=tuple(weights)))({}, batch)
  np.testing.assert_allclose(logits, seen, atol=1e-5)
  serve = make_serving_fn(weighted, weights, depthwise_way=depthwise.depthwise_by_conv)
  probability = serve({}, a_batch()["image"])["probability"]
  np.testing.assert_allclose(probability, jax.nn.softmax(seen), atol=1e-5)


@pytest.mark.parametrize("teacher", ["boxes", "self"])
def test_class_weights_do_not_reach_targets_by_way_of_the_network(teacher):
  """A network whose odds are the weights times another's makes the same targets of boxes."""
  weights = np.float32([1.0, 2.0, 3.0])
  seen = jax.random.normal(jax.random.key(1), (BATCH, *CANVAS, 3))
  batch = augment.prepare(a_batch())
  plain = settings(teacher=teacher, class_weights=(1.0, 1.0, 1.0))
  expected, *_ = make_target_fn(SayingAlways(seen), plain)({}, batch)
  weighted = SayingAlways(seen + np.log(weights))
  target, *_ = make_target_fn(weighted, settings(teacher=teacher))({}, batch)
  np.testing.assert_allclose(target, expected, atol=1e-5)
  unaware, *_ = make_target_fn(weighted, plain)({}, batch)
  assert np.abs(unaware - expected).max() > 0.1
