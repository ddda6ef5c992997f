"""Online bootstrapping: boxes become masks while the network trains.

Inside a box the target moves from the box's class to what the teacher sees there:
the moving average of the network itself, or of its decoder that is shown the boxes.

    soft:       t = c * onehot(box class) + (1 - c) * q
    predicted:  t = q
    hard:       t = onehot(argmax q)

with c the network's certainty of the box's class and q the teacher's prediction
restricted to the classes that the boxes allow. `none` keeps t = onehot(box class).

A teacher that has seen few masks of a class says background all over its boxes, and the network
would learn that. `fill_boxes` moves its logits, box by box, as far as it takes for the share of
the box that is object to be a usual one.
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


SHIFTS = tuple(range(-12, 13, 2))  # of logits, among which the wanted one is interpolated


def fill_boxes(logits, allowed, spans, band, real):
  """Moves the logits of background so that each box is filled as objects usually fill theirs.

  Args:
    logits: float32 [batch, height, width, num_classes], of the teacher.
    allowed: bool [batch, height, width, num_classes], see `losses.boxes`.
    spans: (rows bool [batch, n, height], columns bool [batch, n, width]) of the boxes.
    band: (low, high), each float32 [batch, n] in (0, 1): share of a box that is object.
    real: bool [batch, n], False for padding and crowds.

  Returns:
    The logits; as they were in boxes whose share is in its band, else moved by the constant that
    takes it to the nearer end (by 12 at most). Where boxes overlap, by the mean of theirs.
  """
  background, objects = logits[..., 0], jnp.where(allowed, logits, -jnp.inf)[..., 1:]
  margin = jax.nn.logsumexp(objects, axis=-1) - background
  rows = (spans[0] & real[..., None]).astype(jnp.float32)
  columns = spans[1].astype(jnp.float32)
  area = jnp.maximum(rows.sum(-1) * columns.sum(-1), 1.0)

  def share(shift):
    inside = jnp.einsum("bnh,bhw->bnw", rows, jax.nn.sigmoid(margin + shift))
    return jnp.sum(inside * columns, axis=-1) / area

  shifts = jnp.array(SHIFTS, jnp.float32)
  shares = jnp.moveaxis(jax.lax.map(share, shifts), 0, -1)
  wanted = jnp.clip(shares[..., len(SHIFTS) // 2], *band)  # the middle one is no shift
  invert = jnp.vectorize(lambda x, xs: jnp.interp(x, xs, shifts), signature="(),(s)->()")
  of_box = invert(wanted, shares)
  total = jnp.einsum("bnh,bnw->bhw", rows * of_box[..., None], columns)
  boxes_over = jnp.einsum("bnh,bnw->bhw", rows, columns)
  return logits.at[..., 0].add(-total / jnp.maximum(boxes_over, 1.0))


def targets(kind, teacher_logits, sigma, boxes, *, strength):
  """Targets inside boxes.

  Args:
    kind: "none", "soft", "predicted" or "hard".
    teacher_logits: float32 [batch, height, width, num_classes].
    sigma: float32 [batch, height, width], >= 0, of the moving average.
    boxes: losses.boxes.BoxLabels of the same images.
    strength: float32 scalar in [0, 1], 0 before bootstrapping starts, 1 after its ramp.

  Returns:
    float32 [batch, height, width, num_classes] that sums to 1; no gradient flows
    through it. Of use inside boxes only.
  """
  num_classes = teacher_logits.shape[-1]
  of_box = jax.nn.one_hot(boxes.box_class, num_classes)
  if kind == "none":
    return of_box
  q = allowed_prediction(teacher_logits, boxes.allowed)
  if kind == "hard":
    believed = jax.nn.one_hot(jnp.argmax(q, axis=-1), num_classes)
  elif kind == "predicted":
    believed = q
  else:
    c = uncertainty.certainty(sigma)[..., None]
    believed = c * of_box + (1.0 - c) * q
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
