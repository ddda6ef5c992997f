"""The reader: geometry on the canvas, and that hidden masks stay hidden."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from data_cases import make_image, make_record, make_records, refuse
from PIL import Image
from places import SHARED

from boxseg_jax.batch import padding_example
from boxseg_jax.data import coco, examples, images
from boxseg_jax.data.examples import ExampleReader


def make_reader(records, canvas=(16, 16), slots=2, hide=None, cache=False):
  hide = np.zeros(len(records), bool) if hide is None else hide
  return ExampleReader(records, canvas, slots, hide, cache)


@pytest.mark.parametrize(
  ("size", "canvas", "expected"),
  [
    ((360, 480), (180, 240), (180, 240)),
    ((100, 200), (64, 64), (32, 64)),
    ((200, 100), (64, 64), (64, 32)),
    ((10, 20), (64, 64), (32, 64)),  # enlarged
    ((603, 1272), (128, 128), (61, 128)),  # 60.68
    ((1000, 2), (64, 64), (64, 1)),  # 0.128
  ],
)
def test_images_fit_the_canvas_with_their_aspect(size, canvas, expected):
  assert examples.fitted_size(size, canvas) == expected


def test_by_hand():
  # 2 x 4 pixels onto 4 x 4: half of the size is 1 x 2, but it fits at 2 x 4.
  image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  fitted, extent = examples.fit_image(image, (4, 4))
  np.testing.assert_array_equal(fitted[:2], image)
  assert not fitted[2:].any()
  assert extent.tolist() == [0.5, 1.0] and extent.dtype == np.float32
  labels = np.array([[0, 1, 2, 255]] * 2, np.uint8)
  assert examples.fit_labels(labels, (4, 4)).tolist() == [[0, 1, 2, 255]] * 2 + [[255] * 4] * 2
  # Half the size: the image is averaged (triangle filter), labels are picked, not mixed.
  stripes = np.zeros((8, 8, 3), np.uint8)
  stripes[:, ::2] = 200
  halved, _ = examples.fit_image(stripes, (4, 4))
  # Weights 1, 3, 3, 1 of eight inside; at the borders 3, 3, 1 of seven.
  assert halved[0, :, 0].tolist() == [114, 100, 100, 86]
  numbers = np.arange(64, dtype=np.uint8).reshape(8, 8)
  np.testing.assert_array_equal(examples.fit_labels(numbers, (4, 4)), numbers[1::2, 1::2])


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (33, 33), (7, 19)])
def test_image_labels_and_boxes_share_one_geometry(size):
  height, width = size
  top, left, bottom, right = height // 4, width // 3, height // 4 + 4, width // 3 + 5
  picture, truth = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
  picture[top:bottom, left:right] = 255
  truth[top:bottom, left:right] = 1
  box = (top / height, left / width, bottom / height, right / width)
  record = replace(
    make_record(0, size=size, boxes=[box]), read_image=picture.copy, read_labels=truth.copy
  )
  example = make_reader([record], canvas=(60, 66))(0)
  shown = example["boxes"][0].reshape(2, 2) * example["extent"] * (60, 66)
  for where in (example["labels"] == 1, example["image"][..., 0] > 127):
    rows, columns = np.nonzero(where)
    found = [[rows.min(), columns.min()], [rows.max() + 1, columns.max() + 1]]
    np.testing.assert_allclose(found, shown, atol=1.0)
  covered = example["labels"] != 255
  assert covered.mean() == pytest.approx(example["extent"].prod())


def test_the_contract():
  reader = make_reader(make_records(3, classes=(2,)))
  example, padding = reader(2), padding_example((16, 16), 2)
  assert example.keys() == padding.keys()
  for name, value in padding.items():
    assert (example[name].shape, example[name].dtype) == (value.shape, value.dtype), name
  np.testing.assert_allclose(example["boxes"], [[0.25, 0.1, 0.75, 0.5], [0, 0, 0, 0]])
  assert example["box_classes"].tolist() == [2, 0]
  assert example["has_mask"] and example["valid"] and example["image_id"] == 2


def test_masks_of_box_images_are_not_opened():
  records = make_records(4)
  hide = np.array([False, True, True, False])
  honest = make_reader(records, hide=hide)
  trapped = [replace(r, read_labels=refuse) if h else r for r, h in zip(records, hide, strict=True)]
  trapped = make_reader(trapped, hide=hide)
  for index in range(4):
    expected, example = honest(index), trapped(index)
    for name, value in expected.items():
      np.testing.assert_array_equal(example[name], value)
    assert example["has_mask"] == (not hide[index])
  assert (trapped(1)["labels"] == 255).all()
  with pytest.raises(AssertionError, match="opened"):
    trapped.evaluation(1)


def test_evaluation_shows_the_true_labels_at_both_sizes():
  records = [make_record(0), make_record(1, mask=False)]
  reader = make_reader(records, hide=np.array([True, True]))
  example = reader.evaluation(0)
  truth = records[0].read_labels()
  np.testing.assert_array_equal(example["full_labels"], truth)
  assert example["full_labels"].dtype == np.uint8 and example["full_size"].tolist() == [20, 30]
  np.testing.assert_array_equal(example["labels"], examples.fit_labels(truth, (16, 16)))
  assert example["has_mask"]
  unknown = reader.evaluation(1)
  assert (unknown["full_labels"] == 255).all() and unknown["full_labels"].shape == (20, 30)
  assert (unknown["labels"] == 255).all() and not unknown["has_mask"]


def test_the_cache_reads_once_and_gives_the_same():
  calls = []

  def counted():
    calls.append(1)
    return make_image((20, 30), 0)

  record = replace(make_record(0), read_image=counted)
  cached, plain = make_reader([record], cache=True), make_reader([record])
  first, second = cached(0), cached(0)
  assert len(calls) == 1
  for name, value in plain(0).items():
    np.testing.assert_array_equal(first[name], value)
    np.testing.assert_array_equal(second[name], value)
  assert len(calls) == 2
  # What the cache shares cannot be changed by accident.
  with pytest.raises(ValueError, match="read-only"):
    first["image"][0, 0] = 1


def test_a_flag_per_record():
  with pytest.raises(ValueError, match="1 flags for 2 records"):
    make_reader(make_records(2), hide=np.array([True]))


def test_reduced_decoding_looks_like_full_decoding(tmp_path):
  smooth = Image.fromarray(make_image((12, 16), 3)).resize((640, 480), Image.Resampling.BICUBIC)
  path = str(tmp_path / "photo.jpg")
  smooth.save(path, quality=95)
  reduced = images.read_reduced(path, (480, 640), (120, 160))
  assert reduced.shape == (120, 160, 3)
  full, _ = examples.fit_image(images.read_image(path), (60, 80))
  fast, _ = examples.fit_image(reduced, (60, 80))
  assert np.abs(full.astype(int) - fast).mean() < 1.0


@pytest.mark.parametrize(("size", "off"), [((320, 400), 0.05), ((321, 401), 0.4)])
def test_reduced_decoding_keeps_the_image_on_its_labels(tmp_path, size, off):
  """Decoding counts in blocks of eight: 401 columns are 51 of them, which show 408."""
  truth = np.zeros(size, np.uint8)
  truth[:, :392] = 1
  path = str(tmp_path / "edge.jpg")
  Image.fromarray(np.repeat(truth[..., None] * 255, 3, -1)).save(path, quality=98)
  record = replace(
    make_record(0, size=size),
    read_labels=truth.copy,
    read_reduced=partial(images.read_reduced, path, size),
  )
  example = make_reader([record], canvas=(40, 50))(0)
  edge = 392 * 50 / size[1]
  assert example["image"][20, :, 0].sum() / 255 == pytest.approx(edge, abs=off)
  assert (example["labels"][20] == 1).sum() == pytest.approx(edge, abs=0.5)


@pytest.mark.skipif(not (SHARED / "data").exists(), reason="the real data sets are not here")
def test_a_real_photograph_is_read_like_pillow_reads_it():
  root = SHARED / "data" / "nuclei"
  record = coco.load(str(root), "test", ("background", "nucleus"))[1]
  example = make_reader([record], canvas=(128, 128), slots=len(record.boxes))(0)
  with Image.open(root / "test" / "images" / record.image_id) as photo:
    assert photo.size == (360, 360)
    photo.draft(None, (128, 128))
    expected = photo.resize((128, 128), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(example["image"], np.asarray(expected))
