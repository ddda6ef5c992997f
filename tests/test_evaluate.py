"""Evaluation of a whole set: what counts, what does not, and that nothing depends on batching."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import evaluate

CANVAS = (6, 8)
FULL = (12, 16)
NAMES = ("background", "car", "person")


def predict(state, batch):
  """The 'network' of these tests: logits that the batch carries, shifted by the state."""
  return batch["logits"] + state, jnp.zeros(batch["logits"].shape[:3])


def judge(state, batch):
  return batch["target"], batch["sigma"] + state, batch["inside"], batch["box_class"]


def make_batch(size, seed=0, channels=3):
  """Random evaluation batch with different sizes and shares of the canvas, void included."""
  rng = np.random.RandomState(seed)
  full_size = np.stack([rng.randint(4, FULL[0] + 1, size), rng.randint(4, FULL[1] + 1, size)], 1)
  full_labels = rng.choice([0, 1, 2, 255], (size, *FULL)).astype(np.uint8)
  for image, (height, width) in enumerate(full_size):
    full_labels[image, height:] = 255
    full_labels[image, :, width:] = 255
  return {
    "logits": rng.randn(size, *CANVAS, channels).astype(np.float32),
    "extent": rng.uniform(0.4, 1.0, (size, 2)).astype(np.float32),
    "full_labels": full_labels,
    "full_size": full_size.astype(np.int32),
    "labels": rng.choice([0, 1, 2, 255], (size, *CANVAS)).astype(np.uint8),
    "valid": np.ones(size, bool),
    "target": rng.dirichlet(np.ones(3), (size, *CANVAS)).astype(np.float32),
    "sigma": rng.exponential(2.0, (size, *CANVAS)).astype(np.float32),
    "inside": rng.rand(size, *CANVAS) < 0.6,
    "box_class": rng.randint(1, 3, (size, *CANVAS)).astype(np.int32),
  }


SEGMENTATION = functools.partial(evaluate.segmentation_sums, predict_fn=predict, num_classes=3)
BOXES = functools.partial(evaluate.box_sums, target_fn=judge, num_classes=3)


def both_sums(state, batch, axis_name=None):
  return SEGMENTATION(state, batch, axis_name=axis_name) | BOXES(state, batch, axis_name=axis_name)


def assert_same(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_segmentation_by_hand():
  """One image at the canvas' own size: logits are one-hot, so the prediction is known."""
  predicted = np.array([[[0, 1, 2], [1, 1, 0]]])
  labels = np.array([[[0, 1, 1], [1, 255, 2]]], np.int32)
  batch = {
    "logits": np.eye(3, dtype=np.float32)[predicted],
    "extent": np.ones((1, 2), np.float32),
    "full_labels": labels,
    "full_size": np.array([[2, 3]], np.int32),
    "valid": np.ones(1, bool),
  }
  sums = SEGMENTATION(0.0, batch)
  np.testing.assert_array_equal(sums["confusion"], [[1, 0, 0], [0, 2, 1], [1, 0, 0]])


def test_binary_logit_is_resized_before_the_decision():
  """Logits -1 and 3 at two canvas pixels, eight label pixels.

  Between the centres the logit rises by 1 a pixel: -1, -1, -0.5, 0.5, 1.5, 2.5, 3, 3. Deciding
  on the canvas first would give four pixels of each class instead of three and five.
  """
  batch = {
    "logits": np.array([-1.0, 3.0], np.float32).reshape(1, 1, 2, 1),
    "extent": np.ones((1, 2), np.float32),
    "full_labels": np.zeros((1, 1, 8), np.uint8),
    "full_size": np.array([[1, 8]], np.int32),
    "valid": np.ones(1, bool),
  }
  sums = evaluate.segmentation_sums(0.0, batch, predict_fn=predict, num_classes=2)
  np.testing.assert_array_equal(sums["confusion"], [[3, 5], [0, 0]])


def test_two_classes_by_one_logit_or_by_two_are_the_same():
  batch = make_batch(2, channels=1)
  two = batch | {"logits": np.concatenate([0 * batch["logits"], batch["logits"]], -1)}
  sums = functools.partial(evaluate.segmentation_sums, predict_fn=predict, num_classes=2)
  assert_same(sums(0.0, batch), sums(0.0, two))


def test_box_sums_by_hand():
  """Six pixels in a row: right, wrong, outside, void, right but mistaken, wrong."""
  target = np.eye(3, dtype=np.float32)[[1, 0, 1, 1, 2, 2]].reshape(1, 1, 6, 3)
  batch = {
    "target": target,
    "sigma": np.array([0, 100, 100, 100, 0, 0], np.float32).reshape(1, 1, 6),
    "inside": np.array([1, 1, 0, 1, 1, 1], bool).reshape(1, 1, 6),
    "box_class": np.array([1, 1, 0, 1, 1, 2], np.int32).reshape(1, 1, 6),
    "labels": np.array([1, 0, 1, 255, 1, 0], np.uint8).reshape(1, 1, 6),
    "valid": np.ones(1, bool),
  }
  sums = jax.device_get(BOXES(0.0, batch))
  np.testing.assert_array_equal(sums["box_confusion"], [[1, 0, 1], [0, 1, 1], [0, 0, 0]])
  right, wrong = sums["sigma_histogram"]
  assert (right.sum(), wrong.sum()) == (2, 2)
  assert right[-1] == 2  # sigma 0 is certainty 1
  assert wrong[-1] == 1
  # kappa(100) = sqrt(1 + pi * 10000 / 8) = 62.7: certainty 0.016.
  assert wrong[: int(0.017 * wrong.size)].sum() == 1


def test_padding_examples_count_nowhere():
  batch = make_batch(4)
  half = jax.tree.map(lambda leaf: leaf[:2], batch)
  padded = batch | {"valid": np.array([True, True, False, False])}
  compiled = jax.jit(both_sums)
  assert_same(compiled(0.5, padded), compiled(0.5, half))
  nothing = compiled(0.5, batch | {"valid": np.zeros(4, bool)})
  assert all(int(value.sum()) == 0 for value in nothing.values())


def test_eager_compiled_mapped_and_sharded_are_the_same():
  batch = jax.tree.map(jnp.asarray, make_batch(4))
  whole = both_sums(0.5, batch)
  assert int(whole["confusion"].sum()) > 0
  assert_same(jax.jit(both_sums)(0.5, batch), whole)

  shares = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), batch)
  over_axis = functools.partial(both_sums, axis_name="data")
  mapped = jax.vmap(over_axis, in_axes=(None, 0), out_axes=None, axis_name="data")(0.5, shares)
  assert_same(mapped, whole)

  mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
  specs = (PartitionSpec(), PartitionSpec("data"))
  sharded = jax.shard_map(over_axis, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
  assert_same(jax.jit(sharded)(0.5, batch), whole)


def test_totals_do_not_depend_on_the_batches():
  batch = make_batch(6)
  parts = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 2], batch) for at in (0, 2, 4)]
  compiled = jax.jit(both_sums)
  whole = evaluate.evaluate(compiled, 0.5, [batch])
  assert_same(evaluate.evaluate(compiled, 0.5, parts, put=jax.device_put), whole)
  assert all(value.dtype == np.int64 for value in whole.values())
  assert_same(evaluate.evaluate(compiled, 0.5, parts[:1]), jax.device_get(compiled(0.5, parts[0])))


def test_evaluation_looks_one_batch_ahead():
  """The device has batch n + 1 before the host waits for the sums of batch n."""
  events = []

  class OnDevice:
    def __init__(self, name):
      self.name = name

    def __array__(self, dtype=None, copy=None):
      events.append(f"wait {self.name}")
      return np.ones(1, np.int32)

  def sums_fn(_, batch):
    events.append(f"start {batch}")
    return {"count": OnDevice(batch)}

  totals = evaluate.evaluate(sums_fn, None, iter("abc"))
  assert events == ["start a", "start b", "wait a", "start c", "wait b", "wait c"]
  np.testing.assert_array_equal(totals["count"], [3])


def test_totals_beyond_int32():
  half = jnp.full((2, 2), 2**30, jnp.int32)
  totals = evaluate.evaluate(lambda state, batch: {"confusion": half}, None, range(4))
  np.testing.assert_array_equal(totals["confusion"], np.full((2, 2), 2**32))


def test_nothing_to_evaluate_is_refused():
  with pytest.raises(InputError, match="evaluation split has no image"):
    evaluate.evaluate(both_sums, 0.0, [])


def test_results_by_hand():
  totals = {
    "confusion": np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]),
    "box_confusion": np.array([[4, 1, 0], [1, 4, 0], [0, 1, 3]]),
    "sigma_histogram": np.array([[1, 1], [2, 1]]),
  }
  named = evaluate.results(totals, NAMES)
  expected = {
    "iou/background": 6 / 9,
    "iou/car": 3 / 6,
    "iou/person": np.nan,
    "miou": (6 / 9 + 3 / 6) / 2,
    "foreground_iou": 3 / 6,
    "pixel_accuracy": 9 / 12,
    "boxes/mask_iou/car": 4 / 7,
    "boxes/mask_iou/person": 3 / 4,
    "boxes/mask_iou": (4 / 7 + 3 / 4) / 2,
    "boxes/sigma_auroc": 3.5 / 6,
    "boxes/sigma_calibration_error": (abs(1 - 0.25 * 3) + abs(1 - 0.75 * 2)) / 5,
  }
  assert named.keys() == expected.keys()
  for name, value in expected.items():
    assert named[name] == pytest.approx(value, nan_ok=True), name
    assert type(named[name]) is float


def test_results_name_only_what_was_measured():
  named = evaluate.results({"confusion": np.eye(3, dtype=np.int64)}, NAMES)
  assert not any(name.startswith("boxes/") for name in named)
  with pytest.raises(ValueError, match="zip"):
    evaluate.results({"confusion": np.eye(3, dtype=np.int64)}, NAMES[:2])
