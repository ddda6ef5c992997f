"""Records, boxes, masks, sizes and augmentation: what holds of any of them, whatever is drawn."""

import os
import sys
from dataclasses import replace

import hypothesis
import hypothesis.extra.numpy as arrays
import jax
import numpy as np
from data_cases import make_image, make_record
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from pycocotools import mask as coco_mask

from boxseg_jax import augment
from boxseg_jax.batch import IMAGE_MEAN, VOID
from boxseg_jax.data import coco, faults, mask_files
from boxseg_jax.data.examples import ExampleReader, fit_image, fit_labels
from boxseg_jax.data.records import held_pixels, require_inside
from boxseg_jax.errors import InputError

sys.path.insert(0, str(ROOT / "launch"))
from nightly_fuzz import require_contract

# Deterministic: the same examples on every machine; the fuzzer draws others every night.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tests")

NUM_CLASSES = 4
sides = st.integers(1, 90)
sizes = st.tuples(sides, sides)


@st.composite
def boxes_of(draw, count):
  """float32 [count, 4], (ymin, xmin, ymax, xmax), ordered, in [0, 1]."""
  shares = arrays.arrays(np.float32, (count, 4), elements=st.floats(0, 1, width=32))
  ends = draw(shares)
  low, high = np.minimum(ends[:, :2], ends[:, 2:]), np.maximum(ends[:, :2], ends[:, 2:])
  least = np.float32(1 / 64)
  low = np.minimum(low, 1 - least)
  return np.concatenate([low, np.maximum(high, low + least)], axis=1)


@st.composite
def records(draw):
  """A record that `check` lets pass."""
  size, count = draw(sizes), draw(st.integers(0, 4))
  classes = draw(st.lists(st.integers(1, NUM_CLASSES - 1), min_size=count, max_size=count))
  crowd = draw(st.lists(st.booleans(), min_size=count, max_size=count))
  labels = np.random.default_rng(draw(st.integers(0, 99))).choice([0, 1, 2, 3, 255], size)
  plain = make_record(0, size=size, classes=tuple(classes), boxes=draw(boxes_of(count)))
  read = (lambda: labels.astype(np.uint8)) if draw(st.booleans()) else None
  return replace(plain, box_is_crowd=np.array(crowd, bool), read_labels=read)


@given(records(), sizes, st.booleans(), st.integers(0, 3))
@hypothesis.settings(max_examples=150)
def test_any_record_makes_an_example_of_the_contract(record, canvas, hidden, spare):
  slots = max(len(record.boxes), 1) + spare
  reader = ExampleReader([record], canvas, slots, np.array([hidden]), cache=False)
  example, judged = reader(0), reader.evaluation(0)
  require_contract(example, judged, NUM_CLASSES)
  assert example["image"].shape == (*canvas, 3)
  assert bool(example["has_mask"]) == (record.read_labels is not None and not hidden)
  assert judged["full_labels"].shape == record.size
  # One side is the canvas's, and no side is lost, be the image of one pixel or ever so long.
  assert example["extent"].max() == 1
  assert (np.rint(example["extent"] * canvas) >= 1).all()


@given(sizes, sizes, st.integers(0, 255))
@hypothesis.settings(max_examples=100)
def test_fitting_mixes_nothing_in_and_leaves_the_rest_void(size, canvas, value):
  image, extent = fit_image(np.full((*size, 3), value, np.uint8), canvas)
  labels = fit_labels(np.full(size, 7, np.uint8), canvas)
  height, width = np.rint(extent * canvas).astype(int)
  assert (image[:height, :width] == value).all() and not image[height:].any()
  assert (labels[:height, :width] == 7).all()
  assert (labels[height:] == VOID).all() and (labels[:, width:] == VOID).all()


@given(sizes, sizes, boxes_of(1))
@hypothesis.settings(max_examples=150)
def test_boxes_lie_on_what_they_are_around(size, canvas, boxes):
  """The pixels that a box holds, fitted to the canvas, lie in the box on the canvas."""
  top, left, bottom, right = held_pixels(boxes[0], size)
  hypothesis.assume(bottom > top and right > left)
  labels = np.zeros(size, np.uint8)
  labels[top:bottom, left:right] = 1
  image, extent = fit_image(np.repeat(255 * labels[..., None], 3, -1), canvas)
  fitted = fit_labels(labels, canvas)
  scale = extent * canvas / size  # canvas pixels per image pixel
  low = np.array([top, left]) * scale - 1
  high = np.array([bottom, right]) * scale + 1
  rows, columns = np.nonzero(fitted == 1)
  for places, axis in ((rows, 0), (columns, 1)):
    assert (places + 0.5 >= low[axis]).all() and (places + 0.5 <= high[axis]).all()
  # Image and labels agree wherever all that a pixel can be mixed from is of one kind.
  seen = image[..., 0]
  reach = np.ceil(1 + 1 / scale).astype(int)
  inner = labels[top + reach[0] : bottom - reach[0], left + reach[1] : right - reach[1]]
  if inner.size and min(scale) >= 1:
    assert (seen[fitted == 1] == 255).mean() > 0
  assert not seen[fitted == VOID].any()


# One shape, so that one program is compiled.
CANVAS, SLOTS, BATCH = (16, 24), 3, 2
_augment = jax.jit(
  lambda batch, keys: augment.augment(
    batch, keys, geometry=augment.Geometry(scale=(0.25, 4.0), rotation_degrees=180.0, flip=0.5)
  )
)


@st.composite
def batches(draw):
  """A batch of the contract, of which nothing is more than it has to be."""
  rng = np.random.default_rng(draw(st.integers(0, 9999)))
  covered = np.array([[draw(st.integers(1, side)) for side in CANVAS] for _ in range(BATCH)])
  labels = rng.choice(draw(st.sampled_from([(0,), (0, 1), (2,), (0, 1, 2, 255)])), (BATCH, *CANVAS))
  for one, (height, width) in zip(labels, covered, strict=True):
    one[height:], one[:, width:] = VOID, VOID
  image = rng.integers(0, 256, (BATCH, *CANVAS, 3)) * (labels != 9)[..., None]
  classes = rng.integers(0, NUM_CLASSES, (BATCH, SLOTS))
  boxes = np.stack([draw(boxes_of(SLOTS)) for _ in range(BATCH)])
  return {
    "image": image.astype(np.uint8),
    "labels": labels.astype(np.uint8),
    "boxes": np.where(classes[..., None] > 0, boxes, 0).astype(np.float32),
    "box_classes": classes.astype(np.int32),
    "box_is_crowd": (rng.random((BATCH, SLOTS)) < 0.3) & (classes > 0),
    "extent": (covered / CANVAS).astype(np.float32),
  }


@given(batches(), st.integers(0, 2**31 - 1))
@hypothesis.settings(max_examples=150)
def test_augmentation_invents_nothing(batch, seed):
  moved = jax.device_get(_augment(batch, jax.random.split(jax.random.key(seed), BATCH)))
  image, visible, boxes = moved["image"], moved["visible"], moved["boxes"]
  assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
  assert (image[~visible] == np.float32(IMAGE_MEAN)).all()
  assert (moved["labels"][~visible] == VOID).all()
  real = moved["box_classes"] > 0
  assert np.isfinite(boxes).all() and boxes.min() >= 0 and boxes.max() <= 1
  assert (boxes[..., :2][real] < boxes[..., 2:][real]).all()
  assert not boxes[~real].any() and not moved["box_is_crowd"][~real].any()
  kept = (moved["box_classes"] == batch["box_classes"]) | ~real
  assert kept.all(), "a box has changed its class or its place"
  for before, after, shown in zip(batch["labels"], moved["labels"], visible, strict=True):
    allowed = set(np.unique(before).tolist()) | {VOID}
    assert set(np.unique(after).tolist()) <= allowed
    if (before != VOID).all():  # no padding, no void: what is void is not visible
      np.testing.assert_array_equal(after != VOID, shown)


@given(sizes, st.integers(0, 9999), st.floats(0, 1))
@hypothesis.settings(max_examples=100)
def test_masks_survive_being_written_as_runs(size, seed, share):
  mask = np.random.default_rng(seed).random(size) < share
  code = mask_files.encode(size, 0, 0, mask)
  expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  assert code["counts"] == expected["counts"].decode()
  plain = {"size": list(size), "counts": coco.decode_counts(code["counts"]).tolist()}
  for segmentation in (code, plain, coco.checked_code("here", size, plain)):
    labels = coco.read_labels("file", "image", size, [coco.Region(1, 1, segmentation)])
    np.testing.assert_array_equal(labels == 1, mask)


@given(sizes, st.data())
@hypothesis.settings(max_examples=60)
def test_rectangles_survive_being_written_as_polygons(size, data):
  top, left = (data.draw(st.integers(0, side - 1)) for side in size)
  bottom = data.draw(st.integers(top + 1, size[0]))
  right = data.draw(st.integers(left + 1, size[1]))
  mask = np.zeros(size, bool)
  mask[top:bottom, left:right] = True
  outline = mask_files.polygons(mask_files.encode(size, 0, 0, mask))
  assert len(outline) == 1
  x, y = np.reshape(outline[0], (-1, 2)).T
  assert (x.min(), y.min(), x.max(), y.max()) == (left, top, right, bottom)


@given(records(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
@hypothesis.settings(max_examples=100)
def test_spoilt_boxes_are_boxes_still(record, resize, share, seed):
  wrong = faults.BoxFaults(resize=resize, missing=share, wrong_class=share)
  spoilt = faults.with_faults(record, wrong, num_classes=NUM_CLASSES, seed=seed)
  low, high = spoilt.boxes[:, :2], spoilt.boxes[:, 2:]
  assert (low < high).all() and (low >= 0).all() and (high <= 1).all()
  assert ((spoilt.box_classes >= 1) & (spoilt.box_classes < NUM_CLASSES)).all()
  assert spoilt.box_is_crowd.sum() == record.box_is_crowd.sum()
  assert spoilt.read_image is record.read_image and spoilt.read_labels is record.read_labels
  np.testing.assert_array_equal(make_image(record.size, 0), spoilt.read_image())


def refused(name):
  """What is said against a name; None where it is let in."""
  try:
    require_inside("here", name)
  except InputError as error:
    return str(error)
  return None


parts = st.sampled_from(["..", ".", "", "a", "b.png", "...", "..a", "~", "C:", " ", "é", "\\"])
names = st.one_of(
  st.text(max_size=30),
  st.lists(parts, max_size=6).map("/".join),
  st.lists(parts, max_size=6).map("\\".join),
)


@given(names)
@hypothesis.settings(max_examples=400)
def test_names_stay_below_their_folder_or_are_refused(name):
  refusal = refused(name)
  if refusal is not None:
    assert refusal.startswith("here: ")
    return
  root = "/data/set/images"
  place = os.path.normpath(os.path.join(root, name))
  assert place.startswith(root + "/") and "\0" not in place
  assert os.path.normpath(os.path.join(root, name.replace("\\", "/"))).startswith(root + "/")


@given(st.lists(st.sampled_from(["a", "b.png", "été", "名前", "x y", "-", "..."]), min_size=1))
def test_ordinary_names_are_not_refused(path):
  assert refused("/".join(path[:9])) is None
