"""A network as one function of an image, as programs without this package call it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from boxseg_jax.losses import uncertainty
from boxseg_jax.models import depthwise


def make_serving_fn(model, class_weights, *, depthwise_way: Callable) -> Callable:
  """Binds a network to 8-bit images: `(variables, image) -> {"certainty", "probability"}`.

  Args:
    model: the network.
    class_weights: [num_classes], of the loss; what the network predicts is without them.
    depthwise_way: how depthwise convolutions are computed, see `models.depthwise`.

  Returns:
    A pure function of {"params", "batch_stats"} and uint8 [batch, height, width, 3], RGB, all of
    it image: "probability" float32 [batch, height, width, num_classes] sums to 1, "certainty"
    float32 [batch, height, width] in (0, 1] is how far a box's label would be believed.
  """

  def serve(variables, image):
    with depthwise.computing_by(depthwise_way):
      outputs = model.apply(variables, image.astype(jnp.float32) / 255, train=False)
    logits = uncertainty.unweighted(outputs.logits, class_weights)
    return {
      "certainty": uncertainty.certainty(outputs.sigma),
      "probability": jax.nn.softmax(uncertainty.class_logits(logits)),
    }

  return serve
