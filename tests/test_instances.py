"""The mask of a box, written out pixel by pixel in float64."""

import itertools

import jax
import numpy as np
import pytest
from scipy import special

from boxseg_jax.losses import instances

SIDE, GRID = 12, 4
MEAN_MASKS = np.random.default_rng(1).uniform(0.01, 0.99, (4, GRID, GRID))
BANDS = np.array([(0.4, 0.9), (0.55, 0.6), (0.3, 0.35), (0.7, 0.95)])
BOXES = {
  "alone": ([(2, 3, 9, 10)], [1]),
  "of one class": ([(2, 1, 9, 8), (4, 4, 12, 11), (0, 0, 5, 5)], [2, 2, 2]),
  "of several classes": ([(1, 2, 10, 9), (3, 0, 11, 6), (5.5, 5.2, 8.1, 12)], [1, 3, 2]),
  "larger than the crop": ([(-3, -2, 13, 15), (0, 0, 6, 12)], [3, 1]),
  "edges on the centres of pixels": ([(2.5, 3.5, 9.5, 10.5), (0.5, 0.5, 5.5, 5.5)], [1, 1]),
  "one pixel": ([(4, 4, 5, 5), (2, 2, 9, 9)], [1, 2]),
}


def a_crop(boxes, classes, *, seed=0, scale=2.0, hidden=0):
  """A crop of random logits and colours, moved off the image's corner; its last rows not shown."""
  rng = np.random.default_rng(seed)
  shown = np.ones((SIDE, SIDE), bool)
  shown[SIDE - hidden :] = False
  logits, own = (scale * rng.normal(size=(SIDE, SIDE, 4)) for _ in range(2))
  image = rng.uniform(0.3, 0.4, (SIDE, SIDE, 3)) + 0.05 * (np.indices((SIDE, SIDE))[1:] > 5).T
  places = np.arange(SIDE) + 0.5
  padding = 3 - len(boxes)
  moved = np.array([*boxes, *[(0, 0, 12, 12)] * padding], float) + [20, 30, 20, 30]
  classes = np.array([*classes, *[0] * padding], np.int32)
  features = np.zeros((SIDE // 2, SIDE // 2, 1))
  return instances.Crop(
    logits, own, features, image, 20 + places, 30 + places, shown, moved, classes
  )


def expected(crop):
  """(probability, certainty) by the formulas of the module's text."""
  within = held(crop)
  heard = by_colour(competing(crop, crop.logits, within, temperature=2.0), crop)
  probability = special.softmax(mean_field(heard, crop), axis=-1)
  inside = within[0] & crop.shown
  probability = np.where(inside, filled(probability, crop, inside), 0.0)
  alone = special.softmax(competing(crop, crop.own_logits, within, temperature=1.0), axis=-1)
  alone = np.where(inside, alone[..., 1], 0.0)
  mask = probability > 0.45
  hit = alone[mask].sum()
  return probability, hit / max(mask.sum() + alone.sum() - hit, 1e-6)


def held(crop):
  found = []
  for (ymin, xmin, ymax, xmax), label in zip(crop.boxes, crop.box_classes, strict=True):
    rows, columns = (crop.y >= ymin) & (crop.y < ymax), (crop.x >= xmin) & (crop.x < xmax)
    found.append(rows[:, None] & columns & (label > 0))
  return np.array(found)


def prior_odds(crop, box, label):
  """Linear between the centres of the parts of the box, constant beyond."""
  ymin, xmin, ymax, xmax = box
  centres = (np.arange(GRID) + 0.5) / GRID
  rows = np.interp((crop.y - ymin) / (ymax - ymin), centres, np.arange(GRID))
  columns = np.interp((crop.x - xmin) / (xmax - xmin), centres, np.arange(GRID))
  along = [[np.interp(c, np.arange(GRID), part) for c in columns] for part in MEAN_MASKS[label]]
  prior = [
    [np.interp(r, np.arange(GRID), np.array(along)[:, i]) for i in range(SIDE)] for r in rows
  ]
  return special.logit(np.clip(prior, 0.03, 0.97))


def seen_odds(crop, scores, within):
  """Log-odds of each box's object against background by what is seen, where the box is."""
  odds = np.full(within.shape, -np.inf)
  for j, r, c in zip(*np.nonzero(within), strict=True):
    here = sorted({crop.box_classes[k] for k in np.flatnonzero(within[:, r, c])})
    score = scores[r, c]
    odds[j, r, c] = score[crop.box_classes[j]] - score[0]
    # What speaks for any object speaks for those whose boxes are there.
    odds[j, r, c] += special.logsumexp(score[1:]) - special.logsumexp(score[here])
  return odds


def competing(crop, scores, within, temperature):
  """Logits of background, the first box's object and all others, per pixel."""
  boxes = list(zip(crop.boxes, crop.box_classes, strict=True))
  odds = seen_odds(crop, scores, within) / temperature
  odds += [prior_odds(crop, box, label) for box, label in boxes]
  others = (
    special.logsumexp(odds[1:], axis=0) if len(boxes) > 1 else np.full(odds[0].shape, -np.inf)
  )
  return np.stack([np.zeros((SIDE, SIDE)), odds[0], others], axis=-1)


def by_colour(logits, crop):
  heard = logits
  for _ in range(2):
    background = special.softmax(heard, axis=-1)[..., 0]
    say = gaussian(crop, 1 - background) - gaussian(crop, background)
    heard = logits + 0.6 * np.clip(say, -2, 2)[..., None] * [0, 1, 1]
  return heard


def gaussian(crop, weight):
  """Log density but for a constant, of the colours of the pixels that are shown."""
  weight = weight * crop.shown / ((weight * crop.shown).sum() + 1e-3)
  colours = crop.image.reshape(-1, 3)
  apart = colours - weight.ravel() @ colours
  spread = (weight.ravel()[:, None] * apart).T @ apart + 0.02**2 * np.eye(3)
  distance = np.sum(apart @ np.linalg.inv(spread) * apart, axis=1)
  return (-0.5 * (distance + np.log(np.linalg.det(spread)))).reshape(SIDE, SIDE)


def mean_field(logits, crop):
  """As in `test_losses`, among the pixels that are shown."""
  heard = logits
  for _ in range(3):
    p = special.softmax(heard, axis=-1)
    heard = logits.copy()
    for y, x in zip(*np.nonzero(crop.shown), strict=True):
      message, total = np.zeros(3), 1e-3
      for v, u in itertools.product(range(y - 2, y + 3), range(x - 2, x + 3)):
        if (v, u) != (y, x) and 0 <= v < SIDE and 0 <= u < SIDE and crop.shown[v, u]:
          unlike = np.sum((crop.image[y, x] - crop.image[v, u]) ** 2) / (2 * 0.03**2)
          weight = np.exp(-unlike - ((v - y) ** 2 + (u - x) ** 2) / (2 * 1.5**2))
          message, total = message + weight * p[v, u], total + weight
      heard[y, x] += 6.0 * message / total
  return heard


def filled(probabilities, crop, inside):
  """The object's probability, its odds moved until the box is filled as usual."""
  background = np.clip(probabilities[..., 0], 1e-6, 1 - 1e-6)
  odds, shifts = -special.logit(background), np.arange(-12, 13, 2)
  shares = [special.expit(odds[inside] + shift).mean() for shift in shifts]
  wanted = np.clip(shares[6], *BANDS[crop.box_classes[0]])
  moved = special.expit(odds + np.interp(wanted, shares, shifts))
  of_any = probabilities[..., 1:].sum(-1)
  return probabilities[..., 1] * moved / np.where(inside, of_any, 1.0)


@jax.jit
def masks(crops):
  return instances.masks(crops, MEAN_MASKS, BANDS)


def found(crops):
  """`instances.masks` of crops, in float32."""
  stacked = instances.Crop(*map(np.stack, zip(*crops, strict=True)))
  stacked = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, stacked)
  return jax.tree.map(np.asarray, masks(stacked))


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_masks_are_those_of_the_formulas(boxes, hidden):
  crops = [a_crop(*boxes, seed=seed, hidden=hidden) for seed in range(2)]
  for crop, probability, certainty in zip(crops, *found(crops), strict=True):
    wanted, sure = expected(crop)
    np.testing.assert_allclose(probability, wanted, atol=2e-3)
    assert certainty == pytest.approx(sure, abs=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_extreme_logits_stay_probabilities(boxes, scale):
  probability, certainty = found([a_crop(*boxes, scale=scale, hidden=hidden) for hidden in (0, 12)])
  assert np.min(probability) >= 0 and np.max(probability) <= 1
  assert np.min(certainty) >= 0 and np.max(certainty) <= 1
  assert not probability[1].any() and certainty[1] == 0  # nothing of the image is seen
