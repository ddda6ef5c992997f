"""Prediction at photos' own sizes: as evaluation sees them, whatever the batches."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_cases import make_image, make_record
from PIL import Image

from boxseg_jax.data import examples, images
from boxseg_jax.data.photos import as_photos
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import predictor as predictor_module
from boxseg_jax.evaluation.predictor import Predictor

CANVAS = (16, 24)
SIZES = [(16, 24), (7, 5), (1, 1), (40, 90), (300, 20), (33, 24), (16, 200)]
STATE = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


def pixelwise(state, batch):
  """A network that sees one pixel at a time; three classes."""
  logits = jnp.sin(batch["image"] @ state * 20)
  return logits, jnp.abs(logits[..., 0])


def predictor(predict_fn=pixelwise, **options):
  return Predictor(predict_fn, STATE, canvas=CANVAS, **options)


def photos(sizes=tuple(SIZES)):
  return as_photos([make_image(size, number) for number, size in enumerate(sizes)])[0]


def reference(photo):
  """Logits and sigma of one photo, by JAX's own resize of what the canvas shows of it."""
  image = photo.read()
  fitted, _ = examples.fit_image(image, CANVAS)
  height, width = examples.fitted_size(image.shape[:2], CANVAS)
  logits, sigma = pixelwise(STATE, {"image": fitted[None] / np.float32(255)})
  scores = jnp.concatenate([logits, sigma[..., None]], axis=-1)[0, :height, :width]
  shape = (*image.shape[:2], 4)
  resized = np.asarray(jax.image.resize(scores, shape, "bilinear", antialias=False))
  return resized[..., :3], resized[..., 3]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_fitted_scores_at_every_size(batch_size):
  pairs = list(predictor(batch_size=batch_size).scores(photos()))
  assert sorted(photo.name for photo, _ in pairs) == sorted(photo.name for photo in photos())
  for photo, scores in pairs:
    logits, sigma = reference(photo)
    np.testing.assert_allclose(scores.logits, logits, atol=1e-4)
    np.testing.assert_allclose(scores.sigma, sigma, atol=1e-4)


def test_each_photo_is_resized_to_about_its_own_size(monkeypatch):
  resized_to = []

  def in_strips(use, scores, extent, full_size, full_shape):
    resized_to.append((len(scores), full_shape))
    return whole(use, scores, extent, full_size, full_shape)

  whole = predictor_module.in_strips
  monkeypatch.setattr(predictor_module, "in_strips", in_strips)
  mixed = [(20, 30), (300, 20), (40, 200), (25, 30)] * 2
  assert len(list(predictor(batch_size=8).decisions(photos(mixed)))) == 8
  # Together in one batch of the network's, but not padded to the largest of them.
  assert set(resized_to) == {(4, (128, 128)), (2, (384, 128)), (2, (128, 256))}


@pytest.mark.parametrize("tiles", ["fit", "slide"])
def test_decisions_are_those_of_the_scores(tiles):
  made = predictor(tiles=tiles, batch_size=4)
  scores = [scores for _, scores in made.scores(photos())]
  decisions = [decision for _, decision in made.decisions(photos())]
  for (logits, sigma), (classes, certainty) in zip(scores, decisions, strict=True):
    assert classes.dtype == certainty.dtype == np.uint8
    np.testing.assert_array_equal(classes, logits.argmax(-1))
    expected = 255 / np.sqrt(1 + np.pi / 8 * sigma**2)
    np.testing.assert_allclose(certainty, expected, atol=0.51)


def test_sliding_a_pixelwise_network_is_seeing_the_whole():
  for photo, scores in predictor(tiles="slide", overlap=0.5).scores(photos()):
    logits, sigma = pixelwise(STATE, {"image": photo.read()[None] / np.float32(255)})
    np.testing.assert_allclose(scores.logits, logits[0], atol=1e-5)
    np.testing.assert_allclose(scores.sigma, sigma[0], atol=1e-5)


@pytest.mark.parametrize("size", [(32, 48), (33, 50)])
def test_a_jpeg_is_seen_as_evaluation_sees_it(tmp_path, size):
  """Where blocks of eight do not fill it, that is not at the least size that would do."""
  path = tmp_path / "photo.jpg"
  Image.fromarray(make_image(size, 0)).save(path)
  record = replace(
    make_record(0, size=size), read_reduced=partial(images.read_reduced, str(path), size)
  )
  reader = examples.ExampleReader([record], CANVAS, 2, np.zeros(1, bool), cache=False)
  seen = []

  def noted(state, batch):
    jax.debug.callback(seen.append, batch["image"])
    return pixelwise(state, batch)

  list(predictor(noted).scores(as_photos(path)[0]))
  jax.effects_barrier()
  height, width = examples.fitted_size(size, CANVAS)
  expected = reader.evaluation(0)["image"][:height, :width]
  np.testing.assert_allclose(255 * seen[0][0, :height, :width], expected, atol=1e-3)


def test_mirrored_too():
  def left(state, batch):
    moved = jnp.roll(batch["image"], 1, axis=2)
    return pixelwise(state, dict(batch) | {"image": moved})

  image = make_image(CANVAS, 0)
  given, back = as_photos([image, np.ascontiguousarray(image[:, ::-1])])[0]
  ((_, there), (_, mirrored)) = predictor(left, mirror=True).scores([given, back])
  np.testing.assert_allclose(there.logits, mirrored.logits[:, ::-1], atol=1e-4)
  ((_, alone),) = predictor(left).scores([given])
  assert np.abs(there.logits - alone.logits).max() > 0.1


def test_one_logit_becomes_two_classes():
  def binary(state, batch):
    logits, sigma = pixelwise(state, batch)
    return logits[..., :1], sigma

  ((_, scores),) = predictor(binary).scores(photos([(40, 90)]))
  assert scores.logits.shape == (40, 90, 2)
  np.testing.assert_array_equal(scores.logits[..., 0], 0)


def broken_photos(folder):
  path = folder / "broken.png"
  path.write_bytes(b"no image")
  return [*photos([(7, 5)]), *as_photos([path])[0], *photos([(16, 24)])]


@pytest.mark.parametrize("tiles", ["fit", "slide"])
def test_a_broken_photo_stops_or_is_told_and_left_out(tmp_path, tiles):
  made = predictor(tiles=tiles)
  with pytest.raises(InputError, match=r"broken\.png"):
    list(made.scores(broken_photos(tmp_path)))
  told = []
  pairs = list(made.decisions(broken_photos(tmp_path), lambda *failure: told.append(failure)))
  assert [decision.classes.shape for _, decision in pairs] == [(7, 5), (16, 24)]
  ((photo, error),) = told
  assert photo.name in str(error)


def test_the_network_is_compiled_for_few_shapes():
  shapes = []

  def traced(state, batch):
    shapes.append(batch["image"].shape)
    return pixelwise(state, batch)

  made = predictor(traced, batch_size=8)
  for count in range(1, 9):
    assert len(list(made.decisions(photos(SIZES[:1] * count)))) == count
  assert len(list(made.scores(photos()))) == len(SIZES)  # of many sizes
  assert sorted(shape[0] for shape in shapes) == [1, 2, 4, 8]


def test_large_photos_do_not_share_a_batch(monkeypatch):
  seen = []
  monkeypatch.setattr("boxseg_jax.evaluation.predictor._MOST_PIXELS", 2 * 128 * 128)

  def traced(state, batch):
    seen.append(len(batch["image"]))
    return pixelwise(state, batch)

  list(predictor(traced).decisions(photos([(100, 100)] * 5 + [(400, 400)])))
  assert max(seen) == 2


@pytest.mark.parametrize(
  ("options", "named"),
  [({"tiles": "whole"}, "whole"), ({"overlap": 1.0}, "overlap"), ({"batch_size": 0}, "batch_size")],
)
def test_options_without_sense_are_refused(options, named):
  with pytest.raises(InputError, match=named):
    predictor(**options)
