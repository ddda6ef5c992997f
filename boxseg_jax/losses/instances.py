"""A mask for each box: what a network sees in it, judged around each box at its own scale.

The rules by which boxes become targets in training (`bootstrap`), with one label per object in
place of one per class. Around a box, a pixel is background, of this object, or of one of the
others whose boxes lie there:

    log-odds of object j = (logit of its class - logit of background) / TEMPERATURE
                           + log-odds of the prior of j, by the pixel's place in box j
                           + TRUST * log-odds by the pixel's colour

so where boxes overlap, each pixel is a matter between them. The colours of the objects and of what
is around them are two Gaussians, fitted to what the first two terms say, as GrabCut fits its
mixtures (Rother, Kolmogorov and Blake, SIGGRAPH 2004). Then neighbours of like colour agree
(`crf`), and the box is filled as usual (`bootstrap.fill_boxes`).

Every box is looked at in a square of `SIDE` pixels, whatever its size in the image: one shape to
compile, and what the CRF and the network's grid mean does not change with it.

These rules know nothing of the objects. Where there are masks to learn from, a small network
(`models.refiner`) says by how much the log-odds of their outcome are off.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from boxseg_jax.batch import BACKGROUND
from boxseg_jax.losses import bootstrap, crf
from boxseg_jax.losses.boxes import between_parts

# Chosen on boxes of training images whose masks were not learned from (launch/results/method.md).
SIDE = 48  # pixels of a crop; its box takes three quarters of it
TEMPERATURE = 2.0  # networks are surer of single pixels than they are right
TRUST = 0.6  # in what colours say
THRESHOLD = 0.45  # of probability; below a half, where the expected IoU is highest
_MOST = 2.0  # log-odds by colour; few boxes are of one colour
_ROUNDS = 2  # of fitting the colours
_SPREAD = 0.02  # least standard deviation of a colour; RGB in [0, 1]
_NO_COLOUR = -50.0  # beyond the image, like nothing in it
_SCALE, _MOST_ODDS = 4.0, 8.0  # of log-odds that a network is shown
_SURE = 0.02  # least probability of the rules' outcome that is corrected, either way
_DOUBT = 2.0  # what its log-odds are divided by: the rules, too, are surer than right
_NOISE = 0.8  # standard deviation of what log-odds are multiplied by, as a logarithm


class Crop(NamedTuple):
  """The surroundings of one box; boxes and places in pixels of the image.

  Attributes:
    logits: float32 [side, side, num_classes], all that is known.
    own_logits: float32 [side, side, num_classes], by the network that is not shown boxes.
    features: float32 [side / 2, side / 2, f], from which either tells them; of use to a refiner.
    image: float32 [side, side, 3], RGB in [0, 1].
    y: float32 [side], where its rows are.
    x: float32 [side], where its columns are.
    shown: bool [side, side], pixels that the image has.
    boxes: float32 [n, 4], (ymin, xmin, ymax, xmax); the box itself first, then others near it.
    box_classes: int32 [n], 0 = padding.
  """

  logits: jax.Array
  own_logits: jax.Array
  features: jax.Array
  image: jax.Array
  y: jax.Array
  x: jax.Array
  shown: jax.Array
  boxes: jax.Array
  box_classes: jax.Array


class Outcome(NamedTuple):
  """What the rules make of one box, and all that speaks about it.

  Attributes:
    probability: float32 [side, side] that a pixel is of the object, 0 outside of its box.
    inside: bool [side, side], pixels of the box that the image has.
    alone: float32 [side, side], the probability by the network that is not shown boxes and by the
      place in them.
    evidence: float32 [side, side, 14 + 2 num_classes], of about -2 to 2: what the rules go by.
    features: float32 [side / 2, side / 2, f], of the crop.
  """

  probability: jax.Array
  inside: jax.Array
  alone: jax.Array
  evidence: jax.Array
  features: jax.Array


def masks(crops: Crop, mean_masks, fill_bands, refine: Callable | None = None):
  """The object of each box.

  Args:
    crops: one for each box, [batch, ...].
    mean_masks: [num_classes][g][g] in (0, 1), see `data.box_priors.BoxPriors`.
    fill_bands: [num_classes][2] in (0, 1), likewise.
    refine: (evidence, features) of `Outcome`, [batch, ...] -> float32 [batch, side, side], see
      `refined`; None: the rules alone.

  Returns:
    (probability float32 [batch, side, side] that a pixel is of the object, 0 outside of its box;
    certainty float32 [batch] in [0, 1]: the IoU of the mask that is expected. The rules are too
    sure of what they say, so they are judged by the network that is not shown boxes and by the
    places in them; a refiner has learned how sure to be).
  """
  found = outcomes(crops, mean_masks, fill_bands)
  if refine is None:
    probability, expected = found.probability, found.alone
  else:
    odds = refined(found.probability, refine(found.evidence, found.features))
    probability = expected = jnp.where(found.inside, jax.nn.sigmoid(odds), 0.0)
  return probability, jax.vmap(_expected_iou)(probability > THRESHOLD, expected)


def outcomes(crops: Crop, mean_masks, fill_bands) -> Outcome:
  """What the rules make of each box, [batch, ...]; arguments as of `masks`."""
  means, bands = jnp.asarray(mean_masks, jnp.float32), jnp.asarray(fill_bands, jnp.float32)
  return jax.vmap(lambda crop: _outcome(crop, means, bands))(crops)


def refined(probability, correction):
  """Log-odds of the object: those of the rules' outcome, held back and corrected.

  Args:
    probability: float32 [...] in [0, 1], by the rules.
    correction: float32 [...], by a refiner.
  """
  kept = jnp.clip(probability, _SURE, 1.0 - _SURE)
  return (jnp.log(kept) - jnp.log1p(-kept)) / _DOUBT + correction


def refiner_loss(odds, target, counted):
  """How far masks are from the true ones: mean cross entropy, and 1 - IoU of the probabilities.

  Args:
    odds: float32 [batch, side, side], log-odds of the object.
    target: float32 [batch, side, side] in [0, 1].
    counted: float32 [batch, side, side], 1 where the truth is known and counts, else 0.

  Returns:
    float32 [batch].
  """
  entropy = optax.sigmoid_binary_cross_entropy(odds, target) * counted
  probability, target = jax.nn.sigmoid(odds) * counted, target * counted
  pixels = (1, 2)
  common = jnp.sum(probability * target, axis=pixels)
  union = jnp.sum(probability + target, axis=pixels) - common
  mean = jnp.sum(entropy, axis=pixels) / jnp.maximum(jnp.sum(counted, axis=pixels), 1.0)
  return mean + 1.0 - (common + 1.0) / (union + 1.0)


def less_sure(evidence, key):
  """Evidence whose log-odds by the networks are multiplied and moved at random, crop by crop.

  Networks are surer of images whose masks they have learned than of those that are labelled.

  Args:
    evidence: float32 [batch, side, side, channels], see `Outcome`.
    key: PRNG key.
  """
  times, plus = _NOISE * jax.random.normal(key, (2, len(evidence), 1, 1, 1))
  limit = _MOST_ODDS / _SCALE
  seen = jnp.clip(evidence[..., :2] * jnp.exp(times) + plus / 2, -limit, limit)
  return jnp.concatenate([seen, evidence[..., 2:]], axis=-1)


def evidence_channels(num_classes: int) -> int:
  """Channels of `Outcome.evidence`."""
  return 14 + 2 * num_classes


def _outcome(crop: Crop, mean_masks, fill_bands) -> Outcome:
  within = _within(crop)
  odds = _prior_odds(crop, mean_masks)
  prior = jnp.where(within, odds, -jnp.inf)
  seen = _log_odds(crop.logits, crop.box_classes, within)
  own = _log_odds(crop.own_logits, crop.box_classes, within)
  logits = _by_colour(_competing(seen / TEMPERATURE + prior), crop)
  colours = jnp.where(crop.shown[..., None], crop.image, _NO_COLOUR)
  heard = jax.nn.softmax(crf.mean_field(logits[None], colours[None]), axis=-1)
  inside = within[0] & crop.shown
  probability = jnp.where(inside, _filled(heard, crop, fill_bands)[..., 1], 0.0)
  alone = jax.nn.softmax(_competing(own + prior), axis=-1)[..., 1]
  odds = (seen[0], own[0], jnp.where(within[0], odds[0], 0.0), logits[..., 1], logits[..., 2])
  evidence = _evidence(crop, odds, probability, within)
  return Outcome(probability, inside, jnp.where(inside, alone, 0.0), evidence, crop.features)


def _evidence(crop: Crop, odds, probability, within):
  """See `Outcome`; the networks' log-odds come first, as `less_sure` takes them."""
  ymin, xmin, ymax, xmax = crop.boxes[0]
  down = (crop.y - ymin) / (ymax - ymin)
  across = (crop.x - xmin) / (xmax - xmin)
  shape = probability.shape
  maps = [jnp.clip(odd, -_MOST_ODDS, _MOST_ODDS) / _SCALE for odd in odds]
  maps += [2.0 * probability - 1.0, within[0], within[1:].any(0), crop.shown]
  maps += [jnp.broadcast_to(down[:, None], shape), jnp.broadcast_to(across, shape)]
  of_classes = jnp.maximum(jax.nn.log_softmax(crop.logits), -_MOST_ODDS) / _SCALE
  wanted = jax.nn.one_hot(crop.box_classes[0], of_classes.shape[-1])
  wanted = jnp.broadcast_to(wanted, of_classes.shape)
  plain = jnp.stack([x.astype(jnp.float32) for x in maps], axis=-1)
  return jnp.concatenate([plain, 2.0 * crop.image - 1.0, of_classes, wanted], axis=-1)


def _within(crop: Crop):
  """Pixels of the crop that each box holds, [n, side, side]."""
  ymin, xmin, ymax, xmax = jnp.split(crop.boxes, 4, axis=-1)
  rows = (crop.y >= ymin) & (crop.y < ymax) & (crop.box_classes > 0)[:, None]
  columns = (crop.x >= xmin) & (crop.x < xmax)
  return rows[:, :, None] & columns[:, None, :]


def _prior_odds(crop: Crop, mean_masks):
  """Log-odds of each box's object by the place in it, [n, side, side]."""
  grid = mean_masks.shape[-1]
  ymin, xmin, ymax, xmax = jnp.split(crop.boxes, 4, axis=-1)
  rows = between_parts(crop.y, ymin, ymax, grid)
  columns = between_parts(crop.x, xmin, xmax, grid)
  prior = jnp.einsum("nhi,nij,nwj->nhw", rows, mean_masks[crop.box_classes], columns)
  return bootstrap.prior_log_odds(prior)


def _log_odds(logits, box_classes, within):
  """Of each box's class against background, by what is seen, [n, side, side]."""
  hits = jax.nn.one_hot(box_classes, logits.shape[-1])
  allowed = jnp.einsum("nhw,nc->hwc", within.astype(jnp.float32), hits) > 0
  possible = bootstrap.of_some_object(logits, allowed)
  odds = jnp.moveaxis(possible - possible[..., BACKGROUND, None], -1, 0)[box_classes]
  return jnp.where(within, odds, -jnp.inf)


def _competing(odds):
  """Logits [side, side, 3] of background, the first box's object, and the others' together."""
  others = jax.nn.logsumexp(odds[1:], axis=0)
  return jnp.stack([jnp.zeros_like(others), odds[0], others], axis=-1)


def _by_colour(logits, crop: Crop):
  """The logits, with what the colours of objects and of the background say in this crop."""
  heard = logits
  for _ in range(_ROUNDS):
    share = jax.nn.softmax(heard, axis=-1)[..., BACKGROUND]
    objects, around = (_likelihood(crop, weight) for weight in (1.0 - share, share))
    by_colour = TRUST * jnp.clip(objects - around, -_MOST, _MOST)
    heard = logits.at[..., 1:].add(by_colour[..., None])
  return heard


def _likelihood(crop: Crop, weight):
  """Log of the Gaussian of the weighted pixels' colours, at every pixel, but for a constant."""
  weight = jnp.where(crop.shown, weight, 0.0)
  weight /= weight.sum() + 1e-3
  apart = crop.image - jnp.einsum("hw,hwc->c", weight, crop.image)
  spread = jnp.einsum("hw,hwc,hwd->cd", weight, apart, apart) + _SPREAD**2 * jnp.eye(3)
  distance = jnp.einsum("hwc,cd,hwd->hw", apart, jnp.linalg.inv(spread), apart)
  return -0.5 * (distance + jnp.linalg.slogdet(spread)[1])


def _filled(probabilities, crop: Crop, fill_bands):
  """`bootstrap.fill_boxes` of one box; probabilities float32 [1, side, side, 3]."""
  ymin, xmin, ymax, xmax = crop.boxes[0]
  rows = (crop.y >= ymin) & (crop.y < ymax) & crop.shown.any(1)
  columns = (crop.x >= xmin) & (crop.x < xmax) & crop.shown.any(0)
  low, high = fill_bands[crop.box_classes[0]].reshape(2, 1, 1)
  spans = rows[None, None], columns[None, None]
  return bootstrap.fill_boxes(probabilities, spans, (low, high), jnp.ones((1, 1), bool))[0]


def _expected_iou(mask, probability):
  hit = jnp.sum(probability, where=mask)
  return hit / jnp.maximum(jnp.sum(mask) + jnp.sum(probability) - hit, 1e-6)
