"""Mistakes in boxes: as many and as large as asked for, the same in every run."""

import dataclasses

import numpy as np
import pytest

from boxseg_jax.data.faults import BoxFaults, with_faults
from boxseg_jax.data.records import Record


def a_record(count=2000, image_id="a", seed=0):
  rng = np.random.default_rng(seed)
  low = rng.uniform(0, 0.6, (count, 2))
  return Record(
    image_id=image_id,
    source="",
    size=(400, 300),
    boxes=np.concatenate([low, low + rng.uniform(0.1, 0.3, (count, 2))], 1).astype(np.float32),
    box_classes=rng.integers(1, 4, count).astype(np.int32),
    box_is_crowd=np.zeros(count, bool),
    classes=frozenset({1, 2, 3}),
    read_image=None,
    read_labels=None,
  )


def spoilt(record, seed=0, num_classes=4, **faults):
  return with_faults(record, BoxFaults(**faults), num_classes=num_classes, seed=seed)


def test_no_fault_changes_nothing():
  record = a_record()
  same = spoilt(record)
  np.testing.assert_allclose(same.boxes, record.boxes, atol=1e-6)
  np.testing.assert_array_equal(same.box_classes, record.box_classes)


def test_sides_move_by_up_to_the_share_both_ways():
  record = a_record()
  size = record.boxes[:, 2:] - record.boxes[:, :2]
  moved = (spoilt(record, resize=0.2).boxes - record.boxes) / np.concatenate([size, size], 1)
  inner = (record.boxes > 0.1).all(1) & (record.boxes < 0.9).all(1)  # not held by the border
  assert np.abs(moved).max() <= 0.2 + 1e-4
  assert moved[inner].min() < -0.19 and moved[inner].max() > 0.19
  np.testing.assert_allclose(moved[inner].mean(0), 0.0, atol=0.02)


def test_boxes_stay_on_the_image_and_keep_an_area():
  edge = dataclasses.replace(
    a_record(2),
    boxes=np.array([[0, 0, 1, 1], [0.999, 0.999, 1, 1]], np.float32),
  )
  for seed in range(50):
    boxes = spoilt(edge, seed=seed, resize=0.4).boxes
    assert (boxes >= 0).all() and (boxes <= 1).all()
    assert (boxes[:, 2:] - boxes[:, :2] > 0).all()


def test_as_many_are_missing_as_asked_for():
  record = a_record()
  left = spoilt(record, missing=0.1)
  assert len(left.boxes) / 2000 == pytest.approx(0.9, abs=0.02)
  assert len(left.boxes) == len(left.box_classes) == len(left.box_is_crowd)


def test_wrong_classes_are_other_foreground_classes():
  record = a_record()
  wrong = spoilt(record, wrong_class=0.05).box_classes
  changed = wrong != record.box_classes
  assert changed.mean() == pytest.approx(0.05, abs=0.015)
  assert set(wrong) == {1, 2, 3}
  every = spoilt(record, wrong_class=1.0).box_classes
  assert (every != record.box_classes).all() and set(every) == {1, 2, 3}
  alone = dataclasses.replace(record, box_classes=np.ones(2000, np.int32))  # none can be wrong
  assert (spoilt(alone, num_classes=2, wrong_class=1.0).box_classes == 1).all()


def test_crowds_are_left_alone():
  crowd = dataclasses.replace(a_record(), box_is_crowd=np.ones(2000, bool))
  same = spoilt(crowd, resize=0.2, missing=1.0, wrong_class=1.0)
  np.testing.assert_array_equal(same.boxes, crowd.boxes)
  np.testing.assert_array_equal(same.box_classes, crowd.box_classes)


def test_image_and_seed_decide():
  one, again = (spoilt(a_record(), resize=0.2).boxes for _ in range(2))
  np.testing.assert_array_equal(one, again)
  assert (spoilt(a_record(), seed=1, resize=0.2).boxes != one).any()
  assert (spoilt(a_record(image_id="b"), resize=0.2).boxes != one).any()
