"""Box projection and colour affinity, the terms of BoxInst, to compare with.

Tian et al., "BoxInst: High-Performance Instance Segmentation with Box Annotations", CVPR 2021
(arXiv 2012.02310), equations 3 to 7, written for the class probabilities of a segmentation
network: the mask of a box is the probability of its class inside it.

    projection   Dice of the mask's maximum over each row and column with that of the box
    affinity     -log P(two neighbours have one class), where their colours agree
"""

import jax
import jax.numpy as jnp

SIMILARITY_SCALE = 2.0  # theta of equation 4, in units of CIE L*a*b*
SIMILAR = 0.3  # tau
DILATION = 2  # of the 3x3 neighbourhood
# Half of the eight neighbours: every pair once.
NEIGHBOURS = ((0, DILATION), (DILATION, 0), (DILATION, DILATION), (DILATION, -DILATION))


def projection_loss(probabilities, rows, columns, box_classes, weights):
  """1 - Dice along rows plus 1 - Dice along columns, a weighted mean over an image's boxes.

  Args:
    probabilities: float32 [height, width, num_classes].
    rows: bool [n, height], the rows of each box.
    columns: bool [n, width], its columns.
    box_classes: int32 [n].
    weights: float32 [n], 0 for what is no box.

  Returns:
    float32 scalar in [0, 2], 0 without a box. A box that holds no pixel is none.
  """
  of_box = jnp.moveaxis(probabilities, -1, 0)[box_classes]  # [n, height, width]
  inside = rows[:, :, None] & columns[:, None, :]
  mask = jnp.where(inside, of_box, 0.0)
  loss = _dice_loss(mask.max(2), rows) + _dice_loss(mask.max(1), columns)
  weights = jnp.where(inside.any((1, 2)), weights, 0.0)
  return jnp.sum(loss * weights) / jnp.maximum(jnp.sum(weights), 1e-6)


def _dice_loss(values, wanted):
  """1 - 2 sum(v w) / (sum(v^2) + sum(w^2)) over the last axis, 0 where nothing is wanted."""
  wanted = wanted.astype(jnp.float32)
  overlap = 2.0 * jnp.sum(values * wanted, -1)
  size = jnp.sum(jnp.square(values), -1) + jnp.sum(wanted, -1)
  return jnp.where(size > 0, 1.0 - overlap / jnp.maximum(size, 1e-6), 0.0)


def affinity_loss(probabilities, image, inside):
  """-log P(same class) of neighbours of like colour, a mean over the pairs inside boxes.

  Args:
    probabilities: float32 [height, width, num_classes].
    image: float32 [height, width, 3], RGB in [0, 1].
    inside: bool [height, width], inside a box; a pair counts if one of it is.

  Returns:
    float32 scalar in nats, >= 0; divided by the number of all pairs inside, as in equation 7.
  """
  colours = lab(image)
  total, pairs = jnp.float32(0.0), jnp.float32(0.0)
  for offset in NEIGHBOURS:
    (p, q), (a, b), (i, j) = (_pairs(x, offset) for x in (probabilities, colours, inside))
    distance = jnp.sqrt(jnp.sum(jnp.square(a - b), -1) + 1e-12)
    similar = jnp.exp(-distance / SIMILARITY_SCALE) >= SIMILAR
    same = jnp.log(jnp.maximum(jnp.sum(p * q, -1), 1e-6))
    total -= jnp.sum(same, where=(i | j) & similar)
    pairs += jnp.sum(i | j)
  return total / jnp.maximum(pairs, 1.0)


def _pairs(x, offset):
  """(x at a pixel, x at its neighbour) wherever both are on the canvas."""
  dy, dx = offset
  left, right = max(-dx, 0), max(dx, 0)
  height, width = x.shape[:2]
  return x[: height - dy, left : width - right], x[dy:, right : width - left]


def lab(image):
  """CIE L*a*b* (D65) of float32 [..., 3] sRGB in [0, 1]; L* in [0, 100]."""
  linear = jnp.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
  to_xyz = jnp.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
  )
  white = jnp.array([0.95047, 1.0, 1.08883])
  xyz = jnp.einsum("...c,xc->...x", linear, to_xyz, precision="highest") / white
  f = jnp.where(xyz > 0.008856, jnp.cbrt(jnp.maximum(xyz, 1e-6)), 7.787 * xyz + 16.0 / 116.0)
  x, y, z = f[..., 0], f[..., 1], f[..., 2]
  return jnp.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def image_losses(probabilities, image, spans, inside, box_classes, weights, affinity_weight):
  """projection_loss + affinity_weight * affinity_loss of each image of a batch.

  Args:
    probabilities: float32 [batch, height, width, num_classes].
    image: float32 [batch, height, width, 3], RGB in [0, 1].
    spans: (rows bool [batch, n, height], columns bool [batch, n, width]) of the boxes.
    inside: bool [batch, height, width], inside a box.
    box_classes: int32 [batch, n].
    weights: float32 [batch, n], 0 for what is no box.
    affinity_weight: float32 scalar.

  Returns:
    float32 [batch].
  """

  # Image by image, and computed again for the gradient: hundreds of boxes times the canvas
  # would fill the memory.
  @jax.checkpoint
  def one(example):
    p, pixels, rows, columns, within, classes, w = example
    projection = projection_loss(p, rows, columns, classes, w)
    return projection + affinity_weight * affinity_loss(p, pixels, within)

  return jax.lax.map(one, (probabilities, image, *spans, inside, box_classes, weights))
