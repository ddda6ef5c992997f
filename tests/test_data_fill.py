"""How much of their boxes objects fill, by hand."""

import dataclasses

import numpy as np
import pytest
from data_cases import make_record

from boxseg_jax.data import fill


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
  _, one, two = fill.fill_bands([of_one, of_two], num_classes=3)
  assert one == pytest.approx((0.5, 0.6)) and two == pytest.approx((0.9, 0.9))


def test_a_rare_class_is_taken_to_be_like_the_others():
  common, rare = _record(0, [0.5] * 20), _record(1, [0.9], label=2)
  _, one, two = fill.fill_bands([common, rare], num_classes=3)
  assert one == two == pytest.approx((0.5, 0.5))
  _, one, two = fill.fill_bands([common, _record(1, [0.9] * 8, label=2)], num_classes=3)
  assert one == pytest.approx((0.5, 0.5)) and two == pytest.approx((0.5, 0.9))


def test_without_masks_it_is_unknown():
  assert fill.fill_bands([], num_classes=3) == (fill.UNKNOWN,) * 3
  assert fill.fill_bands([_record(0, [0.1] * 9)], num_classes=2) == (fill.UNKNOWN,) * 2


def test_crowds_and_boxes_without_a_pixel_do_not_count():
  record = _record(0, [0.5] * 11 + [1.0] * 10)
  record.boxes[0, 3] = record.boxes[0, 1] + 1e-4
  crowd = np.arange(21) >= 11
  bands = fill.fill_bands([dataclasses.replace(record, box_is_crowd=crowd)], num_classes=2)
  assert bands[1] == pytest.approx((0.5, 0.5))


def test_void_is_not_counted():
  record = _record(0, [0.5] * 10)
  labels = record.read_labels()
  labels[:, 5:10] = 255  # half of the object in the first box
  labels[:, 30:40] = 255  # all of the background in the second
  low, high = fill.fill_bands([record], num_classes=2)[1]
  shares = np.percentile([5 / 15, 1.0, *[0.5] * 8], (10, 90))
  assert (low, high) == pytest.approx(tuple(shares))
