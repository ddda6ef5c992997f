"""Online bootstrapping: boxes become masks while the network trains.

Inside a box the target moves from what the box alone says to what the teacher sees there:
the moving average of the network itself, or of its decoder that is shown the boxes.

    posterior:  t ~ q * prior, along colours (`crf`), filled
    soft:       t = c * onehot(box class) + (1 - c) * q
    predicted:  t = q
    hard:       t = onehot(argmax q)

with q the teacher's prediction (for "posterior", by the mean of its logits and the network's own)
restricted to the classes that the boxes allow, c the network's certainty of the box's class, and
the prior how often objects have covered this part of their boxes. `none` keeps
t = onehot(box class). For "posterior", the box alone says the prior.

A teacher that knows a class badly says background all over its boxes, and the network would learn
that. `fill_boxes` moves the odds of object, box by box, as far as it takes for a usual share of
the box to be object.
"""

import jax
import jax.numpy as jnp

from boxseg_jax.batch import BACKGROUND
from boxseg_jax.losses import uncertainty

SHIFTS = tuple(range(-12, 13, 2))  # of log-odds, among which the wanted one is interpolated
_PRIORS = 0.03, 0.97
_TINY = 1e-6  # probabilities nearer to 0 and 1 have no log-odds


def fill_boxes(probabilities, spans, band, real):
  """Moves the odds of background so that each box is filled as objects usually fill theirs.

  Args:
    probabilities: float32 [batch, height, width, num_classes], sums to 1.
    spans: (rows bool [batch, n, height], columns bool [batch, n, width]) of the boxes.
    band: (low, high), each float32 [batch, n] in (0, 1): share of a box that is object.
    real: bool [batch, n], False for padding and crowds.

  Returns:
    The probabilities; as they were in boxes whose share is in its band. In others the log-odds of
    object against background are moved by the constant that takes the share to the nearer end (by
    12 at most); where boxes overlap, by the mean of theirs. Objects keep their shares of the rest.
  """
  background = jnp.clip(probabilities[..., 0], _TINY, 1.0 - _TINY)
  odds = jnp.log1p(-background) - jnp.log(background)
  rows = (spans[0] & real[..., None]).astype(jnp.float32)
  columns = spans[1].astype(jnp.float32)
  area = jnp.maximum(rows.sum(-1) * columns.sum(-1), 1.0)

  def share(shift):
    inside = jnp.einsum("bnh,bhw->bnw", rows, jax.nn.sigmoid(odds + shift))
    return jnp.sum(inside * columns, axis=-1) / area

  shifts = jnp.array(SHIFTS, jnp.float32)
  shares = jnp.moveaxis(jax.lax.map(share, shifts), 0, -1)
  wanted = jnp.clip(shares[..., len(SHIFTS) // 2], *band)  # the middle one is no shift
  invert = jnp.vectorize(lambda x, xs: jnp.interp(x, xs, shifts), signature="(),(s)->()")
  of_box = invert(wanted, shares)
  boxes_over = jnp.einsum("bnh,bnw->bhw", rows, columns)
  of_pixel = jnp.einsum("bnh,bnw->bhw", rows * of_box[..., None], columns)
  of_pixel /= jnp.maximum(boxes_over, 1.0)
  moved = jax.nn.sigmoid(-(odds + of_pixel))
  objects = probabilities[..., 1:] * ((1.0 - moved) / (1.0 - background))[..., None]
  filled = jnp.concatenate([moved[..., None], objects], axis=-1)
  filled /= filled.sum(-1, keepdims=True)  # where no object has any probability, none can gain
  return jnp.where(of_pixel[..., None] == 0.0, probabilities, filled)


def box_target(boxes, num_classes, prior=None):
  """The target that a box is before anything else is known.

  Args:
    boxes: losses.boxes.BoxLabels.
    num_classes: with the background.
    prior: float32 [batch, height, width] in [0, 1], how likely a pixel is of an object; None: 1.

  Returns:
    float32 [batch, height, width, num_classes] that sums to 1.
  """
  of_box = jax.nn.one_hot(boxes.box_class, num_classes)
  if prior is None:
    return of_box
  background = jax.nn.one_hot(BACKGROUND, num_classes)
  return background + prior[..., None] * (of_box - background)


def with_prior(logits, prior):
  """Bayes' rule: what is seen, together with the place in the box.

  Args:
    logits: float32 [..., num_classes], by what is seen.
    prior: float32 [...] in [0, 1], how likely a pixel is of an object, see `prior_log_odds`.

  Returns:
    The logits, with the prior's log-odds taken from the background's.
  """
  return logits.at[..., BACKGROUND].add(-prior_log_odds(prior))


def prior_log_odds(prior):
  """Log-odds float32 [...] of a prior in [0, 1].

  It is kept within 0.03 and 0.97, as what is seen must be able to prevail.
  """
  prior = jnp.clip(prior, *_PRIORS)
  return jnp.log(prior) - jnp.log1p(-prior)


def of_some_object(logits, allowed):
  """What speaks for any object speaks for those whose boxes are there.

  A rider that is taken for a pedestrian is no background in the box of a bicyclist: were the
  pedestrian only left out, the rest might say so, and the next round believe it.

  Args:
    logits: float32 [..., num_classes].
    allowed: bool [..., num_classes], see `losses.boxes.BoxLabels`.

  Returns:
    float32 [..., num_classes], -inf where not allowed: the background's as it is, the objects'
    moved by one constant, so that their softmax is as likely as that of all objects was.
  """
  objects = jnp.where(allowed, logits, -jnp.inf).at[..., BACKGROUND].set(-jnp.inf)
  of_all = jax.nn.logsumexp(logits[..., BACKGROUND + 1 :], axis=-1, keepdims=True)
  of_allowed = jax.nn.logsumexp(objects, axis=-1, keepdims=True)
  moved = objects + of_all - jnp.where(jnp.isfinite(of_allowed), of_allowed, 0.0)
  return moved.at[..., BACKGROUND].set(logits[..., BACKGROUND])


def targets(kind, teacher_logits, sigma, boxes, *, strength, prior=None, smooth=None, fill=None):
  """Targets inside boxes.

  Args:
    kind: "none", "posterior", "soft", "predicted" or "hard".
    teacher_logits: float32 [batch, height, width, num_classes].
    sigma: float32 [batch, height, width], >= 0, of the moving average.
    boxes: losses.boxes.BoxLabels of the same images.
    strength: float32 scalar in [0, 1], 0 before bootstrapping starts, 1 after its ramp.
    prior: `boxes.object_priors` of these boxes; of "posterior".
    smooth: `crf.mean_field` of these images, as a function of the logits; of "posterior".
    fill: `fill_boxes` of these boxes, as a function of the probabilities; of "posterior".

  Returns:
    float32 [batch, height, width, num_classes] that sums to 1; no gradient flows
    through it. Of use inside boxes only.
  """
  num_classes = teacher_logits.shape[-1]
  of_box = box_target(boxes, num_classes, prior)
  if kind == "none":
    return of_box
  if kind == "posterior":
    possible = of_some_object(teacher_logits, boxes.allowed)
    believed = fill(jax.nn.softmax(smooth(with_prior(possible, prior)), axis=-1))
  else:
    believed = jax.nn.softmax(jnp.where(boxes.allowed, teacher_logits, -jnp.inf), axis=-1)
  if kind == "soft":
    c = uncertainty.certainty(sigma)[..., None]
    believed = c * of_box + (1.0 - c) * believed
  if kind == "hard":
    believed = jax.nn.one_hot(jnp.argmax(believed, axis=-1), num_classes)
  return jax.lax.stop_gradient((1.0 - strength) * of_box + strength * believed)


def strength_at(step, *, start, ramp):
  """Share of the bootstrapped target at a step, as a linear ramp.

  Args:
    step: int32 scalar.
    start: first step with bootstrapping.
    ramp: number of steps from none to all of it, 0 = at once.

  Returns:
    float32 scalar in [0, 1].
  """
  return jnp.clip((step - start + 1) / max(ramp, 1), 0.0, 1.0)
