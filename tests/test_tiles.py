"""Windows: what belongs to them is exactly the image, whatever its size, in bounded memory."""

import time
import tracemalloc
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_cases import make_image, make_labels, make_record, make_records

from boxseg_jax import augment
from boxseg_jax.data import feed, windows
from boxseg_jax.data.examples import ExampleReader
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import evaluate, tiles

CANVAS = (16, 24)
SIZES = [(16, 24), (7, 5), (1, 1), (1, 100), (100, 1), (17, 25), (40, 90), (33, 24), (16, 25)]
OVERLAPS = [0.0, 0.25, 0.5, 0.95]


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_belongs_to_one_window_that_sees_it(size, overlap):
  owners = np.zeros(size, int)
  for rows, columns in windows.windows(size, CANVAS, overlap):
    owners[rows.own, columns.own] += 1
    for span, length, side in zip((rows, columns), size, CANVAS, strict=True):
      assert 0 <= span.start <= span.own_start < span.own_stop <= span.stop <= length
      assert span.stop - span.start == min(side, length)
      # Context on both sides, but where the image ends.
      context = int(overlap * side) // 2
      assert span.own_start == 0 or span.own_start - span.start >= context
      assert span.own_stop == length or span.stop - span.own_stop >= context
  assert (owners == 1).all()


def test_windows_by_hand():
  """Ten pixels in windows of four that share one: 0-4, 3-7, 6-10."""
  plan = windows.windows((4, 10), (4, 4), 0.25)
  assert [tuple(window.columns) for window in plan] == [(0, 4, 0, 3), (3, 7, 3, 6), (6, 10, 6, 10)]
  assert {tuple(window.rows) for window in plan} == {(0, 4, 0, 4)}
  assert len(windows.windows((4, 10), (4, 4), 0.0)) == 3
  assert len(windows.windows((4, 10), (4, 4), 0.75)) == 7
  assert windows.windows((3, 2), (4, 4), 0.5) == [((0, 3, 0, 3), (0, 2, 0, 2))]


def coded(images, extents):
  """Position-coded: the image carries each pixel's row and column, and they come back."""
  images = images.astype(np.float32)
  assert ((np.arange(CANVAS[0])[:, None] < extents[:, :1, None] * CANVAS[0] - 0.5).any(1)).all()
  return images, images[..., 0] * 256 + images[..., 1]


def coordinates(size):
  """An image whose channels are row, column (both below 256) and 7."""
  rows, columns = np.indices(size)
  return np.stack([rows, columns, np.full(size, 7)], -1).astype(np.uint8)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_reassemble_exactly(size, overlap, batch_size):
  image = coordinates(size)
  options = {"canvas": CANVAS, "overlap": overlap, "batch_size": batch_size}
  bands = list(tiles.predict_bands(coded, image, **options))
  np.testing.assert_array_equal(np.concatenate([band.logits for band in bands]), image)
  sigma = np.concatenate([band.sigma for band in bands])
  np.testing.assert_array_equal(sigma, image[..., 0] * 256.0 + image[..., 1])
  heights = [len(band.sigma) for band in bands]
  assert [band.top for band in bands] == np.cumsum([0, *heights[:-1]]).tolist()
  assert max(heights) <= CANVAS[0]


def pixelwise(state, batch):
  """A network that sees one pixel at a time; three classes."""
  logits = jnp.sin(batch["image"] @ state * 20)
  return logits, jnp.abs(logits[..., 0])


STATE = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [(40, 90), (7, 5), (1, 100)])
def test_a_pixelwise_network_says_the_same_tiled_and_whole(size):
  image = make_image(size, 0)
  whole = {"image": image[None] / np.float32(255)}
  logits, sigma = (np.asarray(output[0]) for output in pixelwise(STATE, whole))
  predictor = partial(tiles.tile_predictor(pixelwise), STATE)
  bands = list(tiles.predict_bands(predictor, image, canvas=CANVAS, overlap=0.25, batch_size=4))
  np.testing.assert_allclose(np.concatenate([b.logits for b in bands]), logits, atol=1e-5)
  np.testing.assert_allclose(np.concatenate([b.sigma for b in bands]), sigma, atol=1e-5)
  classes = np.concatenate([b.classes for b in bands])
  assert classes.dtype == np.uint8
  np.testing.assert_array_equal(classes, logits.argmax(-1))
  probability = np.concatenate([b.probability for b in bands])
  np.testing.assert_allclose(probability, jax.nn.softmax(logits), atol=1e-5)


def test_one_logit_becomes_two_classes():
  def binary(state, batch):
    logits, sigma = pixelwise(state, batch)
    return logits[..., :1], sigma

  image = make_image((20, 30), 0)
  predictor = partial(tiles.tile_predictor(binary), STATE)
  bands = list(tiles.predict_bands(predictor, image, canvas=CANVAS, overlap=0.0, batch_size=2))
  logit = np.asarray(binary(STATE, {"image": image[None] / np.float32(255)})[0][0, ..., 0])
  np.testing.assert_array_equal(np.concatenate([b.classes for b in bands]), logit > 0)
  probability = np.concatenate([b.probability for b in bands])
  np.testing.assert_allclose(probability[..., 1], 1 / (1 + np.exp(-logit)), atol=1e-5)


def to_the_right(state, batch):
  """A network that mirroring changes: each pixel is told the one on its left."""
  moved = jnp.roll(batch["image"], 1, axis=2)
  return pixelwise(state, dict(batch) | {"image": moved})


def test_mirrored_predictions_mirror_with_the_image():
  images = make_image((2, 8, 9), 0) / np.float32(255)
  both = tiles.mirrored_too(to_the_right)
  there = both(STATE, {"image": images})
  back = both(STATE, {"image": images[:, :, ::-1]})
  plain = to_the_right(STATE, {"image": images})
  for one, other, alone in zip(there, back, plain, strict=True):
    np.testing.assert_allclose(one, other[:, :, ::-1], atol=1e-5)
    assert np.abs(one - alone).max() > 0.1
  same = tiles.mirrored_too(pixelwise)(STATE, {"image": images})
  np.testing.assert_allclose(same[0], pixelwise(STATE, {"image": images})[0], atol=1e-5)


def small_batches_only(images, extents):
  assert len(images) in (1, 2, 4, 8)
  return coded(images, extents)


def test_few_shapes_are_compiled():
  for width in range(1, 250, 7):
    bands = tiles.predict_bands(
      small_batches_only, coordinates((16, width)), canvas=CANVAS, overlap=0.0, batch_size=8
    )
    assert sum(len(band.sigma) for band in bands) == 16


def make_reader(records):
  return ExampleReader(records, CANVAS, 2, np.zeros(len(records), bool), cache=False)


RECORDS = [make_record(number, size=size) for number, size in enumerate(SIZES)]


def confusion(batches):
  def sums(state, batch):
    return evaluate.segmentation_sums(
      state, augment.prepare(batch), predict_fn=pixelwise, num_classes=3
    )

  return evaluate.evaluate(jax.jit(sums), STATE, batches)["confusion"]


def expected_confusion(records):
  counts = np.zeros((3, 3), int)
  for record in records:
    logits, _ = pixelwise(STATE, {"image": record.read_image() / np.float32(255)})
    predicted = np.asarray(logits).argmax(-1)
    np.add.at(counts, (record.read_labels(), predicted), 1)
  return counts


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_evaluation_counts_every_pixel_once_at_its_own_resolution(overlap):
  batches = list(
    feed.tile_batches(
      make_reader(RECORDS), overlap=overlap, batch_size=4, process_index=0, process_count=1
    )
  )
  assert {tuple(batch["full_labels"].shape) for batch in batches} == {(4, *CANVAS)}
  np.testing.assert_array_equal(confusion(batches), expected_confusion(RECORDS))


def test_processes_share_the_windows():
  whole = feed.tile_batches(
    make_reader(RECORDS), overlap=0.25, batch_size=4, process_index=0, process_count=1
  )
  parts = [
    feed.tile_batches(
      make_reader(RECORDS), overlap=0.25, batch_size=4, process_index=process, process_count=2
    )
    for process in range(2)
  ]
  for batch, first, second in zip(whole, *parts, strict=True):
    for name, value in batch.items():
      np.testing.assert_array_equal(value, np.concatenate([first[name], second[name]]), name)
  with pytest.raises(InputError, match="multiple of the 3 process"):
    next(
      feed.tile_batches(
        make_reader(RECORDS), overlap=0.25, batch_size=4, process_index=0, process_count=3
      )
    )


def test_tiles_keep_the_contract_and_images_without_masks_are_void():
  reader = make_reader([*make_records(1, size=(40, 50)), make_record(1, mask=False)])
  plain = next(feed.evaluation_batches(reader, batch_size=4, process_index=0, process_count=1))
  batches = list(
    feed.tile_batches(reader, overlap=0.25, batch_size=8, process_index=0, process_count=1)
  )
  batch = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
  assert {(k, v.dtype) for k, v in batch.items()} == {(k, v.dtype) for k, v in plain.items()}
  assert not batch["box_classes"].any()
  unknown = batch["image_id"] == 1
  assert unknown.any() and (batch["full_labels"][unknown] == 255).all()
  assert batch["has_mask"].tolist() == (batch["image_id"] == 0).tolist()
  assert batch["valid"].tolist() == (batch["image_id"] >= 0).tolist()


def test_a_hundred_megapixels_are_predicted_in_bounded_memory():
  """The stated bound, 12 (num_classes + 1) x canvas height x width, and two batches of tiles."""
  image, canvas, batch_size = np.zeros((10_000, 10_000, 3), np.uint8), (512, 512), 4

  def cheap(images, extents):
    sigma = images[..., 0].astype(np.float32)
    return np.stack([sigma, sigma], -1), sigma

  started, pixels = time.process_time(), 0
  tracemalloc.start()
  for band in tiles.predict_bands(cheap, image, canvas=canvas, overlap=0.25, batch_size=batch_size):
    pixels += band.sigma.size
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert pixels == 100_000_000
  bound = 12 * 3 * canvas[0] * 10_000 + 2 * batch_size * 512 * 512 * (3 + 4 * 3)
  assert peak < bound, f"{peak / 1e6:.0f} MB, {time.process_time() - started:.0f} s"


def test_a_hundred_megapixels_are_judged_in_bounded_memory():
  """Image and labels (400 MB here as zeros), and two batches of tiles."""
  size, canvas, batch_size = (10_000, 10_000), (512, 512), 4
  whole = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
  record = replace(make_record(0), size=size, read_image=lambda: whole[0])
  record = replace(record, read_labels=lambda: whole[1])
  reader = ExampleReader([record], canvas, 1, np.zeros(1, bool), cache=False)
  tracemalloc.start()
  known = 0
  for batch in feed.tile_batches(
    reader, overlap=0.25, batch_size=batch_size, process_index=0, process_count=1
  ):
    known += int((batch["full_labels"] != 255).sum())
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert known == 100_000_000
  assert peak < 4 * batch_size * 512 * 512 * (3 + 4 + 4), f"{peak / 1e6:.0f} MB"


def test_labels_that_are_read_in_tiles_are_those_of_the_image():
  record = make_record(3, size=(40, 90))
  seen = np.full((40, 90), 254)
  batches = feed.tile_batches(
    make_reader([record]), overlap=0.5, batch_size=1, process_index=0, process_count=1
  )
  for window, batch in zip(windows.windows((40, 90), CANVAS, 0.5), batches, strict=True):
    rows, columns = window
    seen[rows.own, columns.own] = batch["labels"][0, rows.own_inside, columns.own_inside]
    shown = batch["image"][0, : window.size[0], : window.size[1]]
    np.testing.assert_array_equal(shown, make_image((40, 90), 3)[rows.seen, columns.seen])
  np.testing.assert_array_equal(seen, make_labels((40, 90), 1003))
