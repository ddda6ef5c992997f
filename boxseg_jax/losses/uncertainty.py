"""The expected probability of a class whose logit is uncertain.

The network gives a logit mu and a scale sigma per pixel, read as a Gaussian
logit N(mu, sigma^2). The expectation of its sigmoid has the closed-form
approximation of MacKay (1992), "The evidence framework applied to
classification networks":

    kappa = sqrt(1 + pi * sigma^2 / 8),    p = sigmoid(mu / kappa)

and the softmax is scaled alike for several classes (Neven et al. 2021,
arXiv 2110.05926, section 3.2). 1 / kappa is called the certainty here: 1 where
the label is believed, towards 0 where it is not.
"""

import chex
import jax.numpy as jnp
import optax


def kappa(sigma):
  """Factor by which uncertainty shrinks a logit.

  Args:
    sigma: float32 [...], >= 0, scale of the logit.

  Returns:
    float32 [...], >= 1.
  """
  return jnp.sqrt(1.0 + jnp.pi / 8.0 * jnp.square(sigma))


def certainty(sigma):
  """1 / kappa: float32 [...] in (0, 1] for sigma float32 [...] >= 0."""
  return 1.0 / kappa(sigma)


def class_logits(logits):
  """Logits over all classes, so that sigmoid and softmax tasks share one path.

  Args:
    logits: float32 [..., K]. K = 1 is the logit of the foreground of a binary
      task; softmax over (0, mu) is sigmoid(mu).

  Returns:
    float32 [..., 2] for K = 1, else the logits themselves.
  """
  if logits.shape[-1] > 1:
    return logits
  return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def unweighted(logits, class_weights):
  """The logits of a network as they were, had the loss not weighted the classes.

  A class of weight w is learned at w times its odds. Without them what a network says is a
  probability, as in Menon et al., "Long-tail learning via logit adjustment", ICLR 2021
  (arXiv 2007.07314).

  Args:
    logits: float32 [..., K].
    class_weights: [num_classes], > 0, of the loss that they were learned by.

  Returns:
    float32 [..., K].
  """
  added = jnp.log(jnp.asarray(class_weights, jnp.float32))
  return logits - (added if logits.shape[-1] > 1 else added[1] - added[0])


def expected_logits(logits, sigma):
  """Logits whose softmax is the expected probability under N(logits, sigma^2).

  Args:
    logits: float32 [..., num_classes].
    sigma: float32 [...], >= 0.

  Returns:
    float32 [..., num_classes], logits / kappa.
  """
  chex.assert_equal_shape_prefix([logits, sigma], sigma.ndim)
  return logits * certainty(sigma)[..., None]


def cross_entropy(logits, target):
  """Cross entropy per pixel, unreduced.

  Args:
    logits: float32 [..., num_classes].
    target: float32 [..., num_classes], sums to 1 over the classes.

  Returns:
    float32 [...], >= 0, in nats.
  """
  return optax.losses.softmax_cross_entropy(logits, target)
