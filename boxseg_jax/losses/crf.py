"""Neighbours of like colour have like classes: a conditional random field, solved by mean field.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(NIPS 2011, arXiv 1210.5644), with the neighbourhood cut to a window as in Teichmann and Cipolla,
"Convolutional CRFs for Semantic Segmentation" (arXiv 1805.04777): plain shifts of the image, for
any device. One Gaussian kernel of place and colour, Potts compatibility, weights that sum to 1.
"""

import itertools

import jax
import jax.numpy as jnp

# Chosen on targets in the boxes of training images with known masks (launch/results/method.md).
STRENGTH = 6.0  # of log-odds, where all neighbours agree
COLOUR = 0.03  # standard deviation; RGB in [0, 1]
PLACE = 1.5  # standard deviation, pixels
REACH = 2  # pixels to every side
ITERATIONS = 3


def mean_field(logits, image):
  """Logits that have heard the neighbours.

  Args:
    logits: float32 [batch, height, width, num_classes]; -inf for what cannot be.
    image: float32 [batch, height, width, 3], RGB in [0, 1].

  Returns:
    float32 [batch, height, width, num_classes]: the logits and, of each class, up to 6 for the
    weighted share of neighbours of that class.
  """
  weights = _weights(image)

  def update(_, heard):
    of_neighbours = _shifted(jax.nn.softmax(heard, axis=-1), 0.0)
    share = sum(w[..., None] * p for w, p in zip(weights, of_neighbours, strict=True))
    return logits + STRENGTH * share

  return jax.lax.fori_loop(0, ITERATIONS, update, logits)


def _offsets():
  reach = range(-REACH, REACH + 1)
  return [offset for offset in itertools.product(reach, reach) if offset != (0, 0)]


def _shifted(x, beyond):
  """What [batch, height, width, channels] shows at each neighbour; `beyond` outside of it."""
  height, width = x.shape[1:3]
  padding = (REACH, REACH)
  padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=beyond)
  starts = [(REACH + dy, REACH + dx) for dy, dx in _offsets()]
  return [padded[:, top : top + height, left : left + width] for top, left in starts]


def _weights(image):
  """One [batch, height, width] per neighbour; they add up to 1, to less where no colour is near."""
  unlike = -100.0  # no colour: what lies beyond the image weighs nothing
  weights = [
    jnp.exp(
      -jnp.sum(jnp.square(image - other), axis=-1) / (2.0 * COLOUR**2)
      - (dy * dy + dx * dx) / (2.0 * PLACE**2)
    )
    for (dy, dx), other in zip(_offsets(), _shifted(image, unlike), strict=True)
  ]
  total = sum(weights) + 1e-3
  return [weight / total for weight in weights]
