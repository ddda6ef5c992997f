import time

import numpy as np
import pytest

from boxseg_jax.data import shapes
from boxseg_jax.errors import InputError

NAMES = ("background", *shapes.OBJECTS)


@pytest.fixture(scope="module")
def records():
  return shapes.load("train", 40, 0, NAMES)


def pixel_boxes(record):
  boxes = record.boxes * shapes.SIZE
  np.testing.assert_allclose(boxes, np.round(boxes), atol=1e-4)
  return np.round(boxes).astype(int)


def test_an_image_is_a_function_of_seed_split_and_index(records):
  again = shapes.load("train", 3, 0, NAMES)
  for first, second in zip(records, again, strict=False):
    assert first.image_id == second.image_id
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.read_image(), second.read_image())
    np.testing.assert_array_equal(first.read_labels(), second.read_labels())


def test_pinned_against_another_version_of_numpy(records):
  assert records[0].read_labels().sum(dtype=int) == 2626
  assert abs(records[0].read_image().mean() - 81.3237) < 0.01


def test_splits_and_seeds_share_no_image(records):
  others = shapes.load("test", 40, 0, NAMES) + shapes.load("train", 40, 1, NAMES)
  images = {record.read_image().tobytes() for record in [*records, *others]}
  assert len(images) == 120
  labels = {record.read_labels().tobytes() for record in [*records, *others]}
  assert len(labels) == 120


def test_schema(records):
  assert len({record.image_id for record in records}) == len(records)
  for record in records:
    image, labels = record.read_image(), record.read_labels()
    assert image.shape == (*record.size, 3) and image.dtype == np.uint8
    assert labels.shape == record.size and labels.dtype == np.uint8
    assert set(np.unique(labels)) - {0} == record.classes == set(record.box_classes.tolist())
    assert record.boxes.dtype == np.float32 and record.boxes.shape == (len(record.box_classes), 4)
    assert record.box_classes.dtype == np.int32 and not record.box_is_crowd.any()
    assert image.std() > 10 and 30 < image.mean() < 225


def test_boxes_are_tight_and_hold_every_object_pixel(records):
  for record in records:
    labels, boxes = record.read_labels(), pixel_boxes(record)
    covered = np.zeros((4, *record.size), bool)
    for (top, left, bottom, right), label in zip(boxes, record.box_classes, strict=True):
      inside = labels[top:bottom, left:right] == label
      assert inside[0].any() and inside[-1].any()
      assert inside[:, 0].any() and inside[:, -1].any()
      assert np.count_nonzero(inside) >= shapes.MIN_VISIBLE_PIXELS
      covered[label, top:bottom, left:right] = True
    for label in (1, 2, 3):
      assert not np.any((labels == label) & ~covered[label])


def test_masks_of_objects_are_those_of_the_label_map_one_by_one(records):
  for index, record in enumerate(records):
    masks = shapes.read_objects(0, "train", index, NAMES[1:])
    labels = np.zeros(record.size, np.uint8)
    for mask, box, label in zip(masks, pixel_boxes(record), record.box_classes, strict=True):
      rows, columns = np.nonzero(mask)
      assert box.tolist() == [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
      assert not labels[mask].any()
      labels[mask] = label
    np.testing.assert_array_equal(labels, record.read_labels())


def test_boxes_are_bad_masks(records):
  pixels, areas = np.zeros(4), np.zeros(4)
  for record in records:
    labels = record.read_labels()
    for (top, left, bottom, right), label in zip(
      pixel_boxes(record), record.box_classes, strict=True
    ):
      pixels[label] += np.count_nonzero(labels[top:bottom, left:right] == label)
      areas[label] += (bottom - top) * (right - left)
  fill = pixels[1:] / areas[1:]
  assert np.all(fill > 0.33) and np.all(fill < 0.6), fill


def test_scenes_hold_what_makes_boxes_hard(records):
  counts = np.bincount(np.concatenate([record.box_classes for record in records]), minlength=4)
  assert np.all(counts[1:] > 15)
  overlapping = occluded = 0
  for record in records:
    boxes = pixel_boxes(record)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.all(low < high, axis=-1)
    overlapping += np.any(overlap & (record.box_classes[:, None] != record.box_classes))
    things = shapes.draw_things(
      shapes._random_stream(0, "train", int(record.image_id[-5:]), "things")
    )
    owner = shapes.visible_owner(things)
    occluded += any(
      np.count_nonzero(owner == i) < 0.8 * np.count_nonzero(shapes.distance(thing) < 0)
      for i, thing in enumerate(things)
      if thing.kind in shapes.OBJECTS
    )
  assert overlapping > 8 and occluded > 8


def test_colour_is_a_hint_but_not_enough():
  """A table from colour to class, counted on other images, is neither useless nor right."""
  train, test = (shapes.load(split, 30, 0, NAMES) for split in ("train", "test"))
  cells, votes = 12, np.zeros((12, 12, 12, 4))
  for record in train:
    colour = (record.read_image().astype(int) * cells // 256).reshape(-1, 3)
    np.add.at(votes, (*colour.T, record.read_labels().ravel()), 1)
  table = votes.argmax(-1)
  intersection = union = 0
  for record in test:
    guess = table[tuple(np.moveaxis(record.read_image().astype(int) * cells // 256, -1, 0))]
    labels = record.read_labels()
    intersection += np.count_nonzero((guess == labels) & (labels > 0))
    union += np.count_nonzero((guess > 0) | (labels > 0))
  assert 0.4 < intersection / union < 0.7


def test_outlines_by_hand():
  centre = (48.0, 48.0)
  row = np.arange(96) + 0.5 - 48
  ellipse = shapes.distance(shapes.Thing("ellipse", centre, 20.0, 0.0, (1.0, 0.0, 0.0)))
  np.testing.assert_allclose(ellipse, np.hypot(row[:, None], row) - 20, atol=1e-4)
  bar = shapes.distance(shapes.Thing("bar", centre, 20.0, np.pi / 2, (0.5, 0.0, 0.0)))
  inside = (np.abs(row[:, None]) < 30) & (np.abs(row) < 6)  # 1.5 and 0.3 times the radius
  np.testing.assert_array_equal(bar < 0, inside)
  # Equilateral: area 3 sqrt(3) / 4 r^2.
  triangle = shapes.distance(shapes.Thing("triangle", centre, 20.0, 0.3, (0.5, 0.5, 0.5)))
  np.testing.assert_allclose(np.sum(triangle < 0), 0.75 * np.sqrt(3) * 400, rtol=0.02)
  # Five points, inner corners at 0.38 of the radius: area 5 sin(36 degrees) r * 0.38 r.
  star = shapes.distance(shapes.Thing("star", centre, 30.0, 1.0, (0.0, 0.0, 0.0)))
  np.testing.assert_allclose(np.sum(star < 0), 5 * np.sin(np.pi / 5) * 0.38 * 900, rtol=0.02)
  assert star[48, 48] < -0.3 * 30 * 0.38
  # Disc of radius 20 without a disc of radius 15 whose centre is 9 to the right.
  crescent = shapes.distance(shapes.Thing("crescent", centre, 20.0, 0.0, (0.0, 0.0, 0.0)))
  expected = (np.hypot(row[:, None], row) < 20) & (np.hypot(row[:, None], row - 9) > 15)
  np.testing.assert_array_equal(crescent < 0, expected)


def test_an_unnamed_kind_is_a_distractor(records):
  alone = shapes.load("train", 10, 0, ("background", "triangle"))
  for record, full in zip(alone, records, strict=False):
    np.testing.assert_array_equal(record.read_image(), full.read_image())
    np.testing.assert_array_equal(record.read_labels(), full.read_labels() == 3)
    np.testing.assert_array_equal(record.boxes, full.boxes[full.box_classes == 3])


def test_an_unknown_class_is_refused():
  with pytest.raises(InputError, match='no class "nucleus"'):
    shapes.load("train", 1, 0, ("background", "nucleus"))
  with pytest.raises(InputError, match="no 0 images"):
    shapes.load("train", 0, 0, NAMES)


def test_reading_is_cheap(records):
  start = time.process_time()
  for record in records:
    record.read_image()
  assert (time.process_time() - start) / len(records) < 0.06  # about 0.008 on an idle core
