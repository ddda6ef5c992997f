"""Box projection and colour affinity, the terms of BoxInst.

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
  """1 - Dice along rows plus 1 - Dice along columns, a weighted mean over each image's boxes.

  Args:
    probabilities: float32 [batch, height, width, num_classes].
    rows: bool [batch, n, height], the rows of each box.
    columns: bool [batch, n, width], its columns.
    box_classes: int32 [batch, n].
    weights: float32 [batch, n], 0 for what is no box.

  Returns:
    float32 [batch] in [0, 2], 0 without a box. A box that holds no pixel is none.
  """
  # Image by image: hundreds of boxes times the canvas would fill the memory.
  where = jax.lax.stop_gradient(probabilities), rows, columns, box_classes
  column_of_row, row_of_column = jax.lax.map(lambda example: _peaks(*example), where)
  height, width = probabilities.shape[1:3]
  image = jnp.arange(len(probabilities))[:, None, None]
  of_class = box_classes[:, :, None]
  along_rows = probabilities[image, jnp.arange(height), column_of_row, of_class]
  along_columns = probabilities[image, row_of_column, jnp.arange(width), of_class]
  loss = _dice_loss(jnp.where(rows, along_rows, 0.0), rows)
  loss += _dice_loss(jnp.where(columns, along_columns, 0.0), columns)
  weights = jnp.where(rows.any(2) & columns.any(2), weights, 0.0)
  return jnp.sum(loss * weights, 1) / jnp.maximum(jnp.sum(weights, 1), 1e-6)


def _peaks(probabilities, rows, columns, box_classes):
  """Where a box's class is most probable in each of its rows and columns.

  A maximum of integers instead of an argmax, which takes CPUs five times as long: the lowest bits
  of a probability make room for its place. On canvases below 1024 pixels, probabilities that
  differ by less than 2^-13 of their size can so be taken for one another.

  Args:
    probabilities: float32 [height, width, num_classes], >= 0.
    rows: bool [n, height].
    columns: bool [n, width].
    box_classes: int32 [n].

  Returns:
    (int32 [n, height], a column for each row; int32 [n, width], a row for each column).
  """
  height, width = probabilities.shape[:2]
  place = (1 << max(height, width).bit_length()) - 1
  # Floats that are not negative are in the order of their bits.
  of_classes = jnp.moveaxis(probabilities, -1, 0).astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(of_classes, jnp.int32) & ~place
  with_column = (bits | jnp.arange(width))[box_classes]  # [n, height, width]
  with_row = (bits | jnp.arange(height)[:, None])[box_classes]
  best_column = jnp.where(columns[:, None, :], with_column, 0).max(2)
  best_row = jnp.where(rows[:, :, None], with_row, 0).max(1)
  return best_column & place, best_row & place


def _dice_loss(values, wanted):
  """1 - 2 sum(v w) / (sum(v^2) + sum(w^2)) over the last axis, 1 where nothing is wanted."""
  wanted = wanted.astype(jnp.float32)
  overlap = 2.0 * jnp.sum(values * wanted, -1)
  size = jnp.sum(jnp.square(values), -1) + jnp.sum(wanted, -1)
  return 1.0 - overlap / jnp.maximum(size, 1e-6)


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
  rows, columns = spans
  projection = projection_loss(probabilities, rows, columns, box_classes, weights)
  return projection + affinity_weight * jax.vmap(affinity_loss)(probabilities, image, inside)
