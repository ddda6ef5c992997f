"""How objects lie in their boxes, by hand."""

import dataclasses

import numpy as np
import pytest
from data_cases import make_record

from boxseg_jax.data import box_priors


def _record(number, shares, label=1):
  """An image of boxes side by side, each filled from its left to the given share."""
  labels = np.zeros((10, 20 * len(shares)), np.uint8)
  boxes = []
  for position, share in enumerate(shares):
    start = 20 * position
    labels[:, start : start + round(20 * share)] = label
    boxes.append((0, position / len(shares), 1, (position + 1) / len(shares)))
  record = make_record(number, size=labels.shape, classes=(label,) * len(shares), boxes=boxes)
  return dataclasses.replace(record, read_labels=lambda: labels)


def test_percentiles_by_class():
  of_one = _record(0, [0.5] * 5 + [0.6] * 5 + [0.7])
  of_two = _record(1, [0.9] * 10, label=2)
  _, one, two = box_priors.box_priors([of_one, of_two], 3).fill_bands
  assert one == pytest.approx((0.5, 0.6)) and two == pytest.approx((0.9, 0.9))


def test_a_rare_class_is_taken_to_be_like_the_others():
  common, rare = _record(0, [0.5] * 20), _record(1, [0.9], label=2)
  _, one, two = box_priors.box_priors([common, rare], 3).fill_bands
  assert one == two == pytest.approx((0.5, 0.5))
  _, one, two = box_priors.box_priors([common, _record(1, [0.9] * 8, label=2)], 3).fill_bands
  assert one == pytest.approx((0.5, 0.5)) and two == pytest.approx((0.5, 0.9))


def test_without_masks_it_is_unknown():
  assert box_priors.box_priors([], 3).fill_bands == (box_priors.UNKNOWN,) * 3
  assert box_priors.box_priors([_record(0, [0.1] * 9)], 2).fill_bands == (box_priors.UNKNOWN,) * 2


def test_crowds_and_boxes_without_a_pixel_do_not_count():
  record = _record(0, [0.5] * 11 + [1.0] * 10)
  record.boxes[0, 3] = record.boxes[0, 1] + 1e-4
  crowd = np.arange(21) >= 11
  bands = box_priors.box_priors([dataclasses.replace(record, box_is_crowd=crowd)], 2).fill_bands
  assert bands[1] == pytest.approx((0.5, 0.5))


def test_void_is_not_counted():
  record = _record(0, [0.5] * 10)
  labels = record.read_labels()
  labels[:, 5:10] = 255  # half of the object in the first box
  labels[:, 30:40] = 255  # all of the background in the second
  low, high = box_priors.box_priors([record], 2).fill_bands[1]
  shares = np.percentile([5 / 15, 1.0, *[0.5] * 8], (10, 90))
  assert (low, high) == pytest.approx(tuple(shares))


def test_mean_masks_by_class():
  _, one, two = box_priors.box_priors([_record(0, [0.5] * 90)], 3).mean_masks
  ellipse = np.array(two)
  np.testing.assert_allclose(np.array(one)[:, :4], 0.9 + 0.1 * ellipse[:, :4], rtol=1e-6)
  np.testing.assert_allclose(np.array(one)[:, 4:], 0.1 * ellipse[:, 4:], rtol=1e-6)


def test_without_masks_the_mean_mask_is_an_ellipse():
  mean = np.array(box_priors.box_priors([], 2).mean_masks[1])
  np.testing.assert_allclose(mean, mean[::-1])
  np.testing.assert_allclose(mean, mean.T)
  assert mean[4, 4] > 0.95 and mean[0, 0] < 0.15 and 0.5 < mean[4, 0] < 0.75
  assert np.mean(mean > 0.5) == pytest.approx(np.pi / 4, abs=0.03)


def test_void_says_nothing_of_a_part():
  record = _record(0, [1.0] * 10)
  record.read_labels()[:5] = 255
  mean = np.array(box_priors.box_priors([record], 2).mean_masks[1])
  ellipse = np.array(box_priors.box_priors([], 2).mean_masks[1])
  np.testing.assert_allclose(mean[:4], ellipse[:4])
  np.testing.assert_allclose(mean[4:], (1.0 + ellipse[4:]) / 2, rtol=1e-6)
