"""Metrics against numbers computed by hand and against independent references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from boxseg_jax.evaluation import metrics

# Two images: predictions and labels with a void pixel and an id that is no class of three.
PREDICTED = np.array([[[0, 1], [1, 2]], [[0, 0], [1, 1]]], np.int32)
LABELS = np.array([[[0, 1], [0, 255]], [[0, 1], [1, 3]]], np.int32)
COUNTS = [[2, 1, 0], [1, 2, 0], [0, 0, 0]]


def test_confusion_by_hand():
  counts = metrics.confusion(PREDICTED, LABELS, 3)
  np.testing.assert_array_equal(counts, COUNTS)
  assert counts.dtype == jnp.int32


def test_confusion_counts_no_foreign_labels():
  labels = np.array([-1, 3, 255, 2], np.int32)
  counts = metrics.confusion(np.array([0, 1, 2, 2], np.int32), labels, 3)
  np.testing.assert_array_equal(counts, [[0, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_confusion_counts_no_label_that_overflows():
  """2^30 times four classes is 0 in int32."""
  counts = metrics.confusion(np.zeros(1, np.int32), np.array([2**30], np.int32), 4)
  assert not np.any(counts)


@pytest.mark.parametrize("num_classes", [2, 5, 20])
def test_confusion_equals_numpy_eager_and_compiled(num_classes):
  rng = np.random.RandomState(num_classes)
  predicted = rng.randint(0, num_classes, (3, 41, 37)).astype(np.int32)
  labels = rng.randint(0, num_classes, (3, 41, 37)).astype(np.int32)
  labels[rng.rand(*labels.shape) < 0.2] = 255
  known = labels != 255
  expected = np.zeros((num_classes, num_classes), int)
  np.add.at(expected, (labels[known], predicted[known]), 1)
  compiled = jax.jit(functools.partial(metrics.confusion, num_classes=num_classes))
  np.testing.assert_array_equal(metrics.confusion(predicted, labels, num_classes), expected)
  np.testing.assert_array_equal(compiled(predicted, labels), expected)
  over_images = jax.vmap(compiled)(predicted, labels)
  np.testing.assert_array_equal(over_images.sum(0), expected)


def test_confusion_is_exact_beyond_the_integers_of_float32():
  shape = (1, 2**12, 2**12 + 1)  # 2^24 + 2^12 pixels of one class
  zeros = jnp.zeros(shape, jnp.int32)
  # An odd number, which float32 cannot hold: one pixel is void.
  labels = zeros.at[0, 0, 0].set(255)
  counts = jax.jit(functools.partial(metrics.confusion, num_classes=2))(zeros, labels)
  assert int(counts[0, 0]) == 2**24 + 2**12 - 1


def test_summary_by_hand():
  values = metrics.summary(np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
  # Class 2 has a label but no hit (0), class 3 nothing at all (left out).
  np.testing.assert_allclose(values["iou"], [6 / 9, 3 / 7, 0.0, np.nan])
  assert values["miou"] == pytest.approx((6 / 9 + 3 / 7 + 0) / 3)
  assert values["foreground_iou"] == pytest.approx((3 / 7 + 0) / 2)
  assert values["pixel_accuracy"] == pytest.approx(9 / 13)


def test_summary_of_a_class_that_is_only_predicted():
  values = metrics.summary(np.array([[3, 1], [0, 0]]))
  np.testing.assert_allclose(values["iou"], [0.75, 0.0])
  assert values["miou"] == pytest.approx(0.375)


@pytest.mark.filterwarnings("error")
def test_summary_of_nothing_is_unknown_not_zero():
  values = metrics.summary(np.zeros((2, 2), np.int64))
  assert np.isnan(values["iou"]).all()
  assert all(np.isnan(values[name]) for name in ("miou", "foreground_iou", "pixel_accuracy"))


def test_summary_of_more_pixels_than_int32_holds():
  billions = 3 * 2**31
  values = metrics.summary(np.array([[billions, 0], [billions, billions]], np.int64))
  np.testing.assert_allclose(values["iou"], [0.5, 0.5])


def test_histogram_by_hand():
  bins = metrics.UNCERTAINTY_BINS
  certainty = np.array([1.0, 1.0, 0.5 / bins, 1.5 / bins, 0.3, 1e-9, 0.0], np.float32)
  wrong = np.array([False, True, True, False, True, True, True])
  counted = np.array([True, True, True, True, False, True, True])
  histogram = np.asarray(metrics.uncertainty_histogram(certainty, wrong, counted))
  expected = np.zeros((2, bins), int)
  expected[0, -1] = 1
  expected[1, -1] = 1
  expected[1, 0] = 3
  expected[0, 1] = 1
  np.testing.assert_array_equal(histogram, expected)


@pytest.mark.parametrize(
  ("histogram", "expected"),
  [
    ([[0, 0, 5], [3, 0, 0]], 1.0),  # every wrong pixel is the less certain one
    ([[4, 0, 0], [0, 0, 2]], 0.0),
    ([[2, 2, 2], [7, 7, 7]], 0.5),
    ([[1, 1], [2, 1]], (2 * (1 + 0.5) + 1 * 0.5) / 6),
  ],
)
def test_auroc_by_hand(histogram, expected):
  assert metrics.auroc(np.array(histogram)) == pytest.approx(expected)


def test_auroc_needs_right_and_wrong_pixels():
  assert np.isnan(metrics.auroc(np.array([[1, 2], [0, 0]])))


def test_auroc_equals_the_rank_statistic():
  rng = np.random.RandomState(0)
  wrong = rng.rand(5000) < 0.3
  sigma = np.abs(rng.normal(np.where(wrong, 2.0, 0.8), 1.0))
  certainty = 1 / np.sqrt(1 + np.pi / 8 * sigma**2)
  histogram = metrics.uncertainty_histogram(
    certainty.astype(np.float32), wrong, np.ones_like(wrong)
  )
  exact = stats.mannwhitneyu(sigma[wrong], sigma[~wrong]).statistic
  exact /= wrong.sum() * (~wrong).sum()
  assert 0.7 < exact < 0.9
  assert metrics.auroc(np.asarray(histogram)) == pytest.approx(exact, abs=1e-3)


def test_calibration_error_by_hand():
  # Certainties 0.125, 0.375 | 0.625, 0.875 in two bins of two.
  right, wrong = [1, 3, 0, 4], [1, 1, 4, 0]
  error = abs(4 - (0.125 * 2 + 0.375 * 4)) + abs(4 - (0.625 * 4 + 0.875 * 4))
  found = metrics.calibration_error(np.array([right, wrong]), bins=2)
  assert found == pytest.approx(error / 14)


def test_calibration_error_of_honest_certainty_is_small():
  rng = np.random.RandomState(1)
  certainty = rng.uniform(0.05, 1, 200_000).astype(np.float32)
  wrong = rng.uniform(size=certainty.shape) > certainty
  histogram = metrics.uncertainty_histogram(certainty, wrong, np.ones_like(wrong))
  assert metrics.calibration_error(np.asarray(histogram)) < 0.01
  inverted = metrics.uncertainty_histogram(certainty, ~wrong, np.ones_like(wrong))
  assert metrics.calibration_error(np.asarray(inverted)) > 0.3
  assert np.isnan(metrics.calibration_error(np.zeros((2, 1024))))


def test_reliability_by_hand():
  """Four pixels in the lowest of two bins, none above."""
  histogram = np.array([[0, 1, 0, 0], [2, 1, 0, 0]])
  certainty, right, pixels = metrics.reliability(histogram, bins=2)
  np.testing.assert_allclose(certainty, [(2 * 0.125 + 2 * 0.375) / 4, np.nan])
  np.testing.assert_allclose(right, [0.25, np.nan])
  np.testing.assert_array_equal(pixels, [4, 0])
  assert metrics.calibration_error(histogram, bins=2) == 0.0
  assert np.isnan(metrics.calibration_error(0 * histogram))


def test_reliability_has_sixteen_bins_or_as_many_as_are_counted():
  certainty, right, pixels = metrics.reliability(np.ones((2, 1024)))
  np.testing.assert_allclose(certainty, (np.arange(16) + 0.5) / 16)
  np.testing.assert_array_equal(right, np.full(16, 0.5))
  np.testing.assert_array_equal(pixels, np.full(16, 128))
  assert len(metrics.reliability(np.ones((2, 4))).pixels) == 4
  uneven = np.zeros((2, 1024))
  uneven[0, [0, 63, 64]] = 1  # two certainties near 0 and 1/16 in the first bin, all right
  expected = (2 - (0.5 + 63.5) / 1024 + 1 - 64.5 / 1024) / 3
  assert metrics.calibration_error(uneven) == pytest.approx(expected)
