"""Online bootstrapping: boxes become masks while the network trains.

Inside a box the target moves from the box's class to what the teacher sees there:
the moving average of the network itself, or of its decoder that is shown the boxes.

    soft:       t = c * onehot(box class) + (1 - c) * q
    predicted:  t = q
    hard:       t = onehot(argmax q)

with c the network's certainty of the box's class and q the teacher's prediction
restricted to the classes that the boxes allow. `none` keeps t = onehot(box class).

A teacher that has seen few masks of a class says background all over its boxes, and the network
would learn that. `fill_boxes` moves the odds of the believed classes, box by box, as far as it
takes for a usual share of the box to be object.
"""

import jax
import jax.numpy as jnp

from boxseg_jax.losses import uncertainty


def allowed_prediction(logits, allowed):
  """Softmax over the allowed classes alone.

  Args:
    logits: float32 [..., num_classes].
    allowed: bool [..., num_classes], at least one True per pixel.

  Returns:
    float32 [..., num_classes], sums to 1, 0 where not allowed.
  """
  return jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)


SHIFTS = tuple(range(-12, 13, 2))  # of log-odds, among which the wanted one is interpolated
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


def targets(kind, teacher_logits, sigma, boxes, *, strength, fill=None):
  """Targets inside boxes.

  Args:
    kind: "none", "soft", "predicted" or "hard".
    teacher_logits: float32 [batch, height, width, num_classes].
    sigma: float32 [batch, height, width], >= 0, of the moving average.
    boxes: losses.boxes.BoxLabels of the same images.
    strength: float32 scalar in [0, 1], 0 before bootstrapping starts, 1 after its ramp.
    fill: `fill_boxes` of these boxes, as a function of the probabilities; None: as they are.

  Returns:
    float32 [batch, height, width, num_classes] that sums to 1; no gradient flows
    through it. Of use inside boxes only.
  """
  num_classes = teacher_logits.shape[-1]
  of_box = jax.nn.one_hot(boxes.box_class, num_classes)
  if kind == "none":
    return of_box
  believed = allowed_prediction(teacher_logits, boxes.allowed)
  if kind == "soft":
    c = uncertainty.certainty(sigma)[..., None]
    believed = c * of_box + (1.0 - c) * believed
  if fill is not None:
    believed = fill(believed)
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
