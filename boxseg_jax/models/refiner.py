"""The refiner: a small U-Net that corrects the masks of boxes.

It sees the surroundings of one box as `losses.instances` does, and the features by which the
network and its teacher know what they see, and says by how much the log-odds of the object are off.
A mask head as that of Mask R-CNN (He et al., ICCV 2017, arXiv 1703.06870), but learned afterwards,
from few masks, beginning with rules that need none.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from boxseg_jax.models import unet
from boxseg_jax.models.layers import Style, double_to, normalise

_WIDTH, _LEVELS = 16, 4
_PROJECTED = 16  # channels that become of the features
DROPPED = 0.5  # share of the features' channels in training; few masks, and much to be told by


class Refiner(nn.Module):
  """Evidence and features of crops -> what to add to the log-odds; at first nothing.

  Attributes:
    encoder: (x, train) -> features, finest first.
    decoder: (features, train) -> one feature of the finest size.
    style: of the layers.
  """

  encoder: nn.Module
  decoder: nn.Module
  style: Style

  @nn.compact
  def __call__(self, evidence, features, train: bool):
    """Corrections of the rules.

    Args:
      evidence: float32 [batch, side, side, channels], see `losses.instances.Outcome`.
      features: float32 [batch, side / 2, side / 2, f], likewise.
      train: leave out channels at random, by the PRNG "dropout".

    Returns:
      float32 [batch, side, side].
    """
    features = nn.Dropout(DROPPED, (1, 2), deterministic=not train)(features)
    features = normalise(features, self.style, train, name="norm")
    features = nn.Dense(_PROJECTED, name="project")(features)
    x = jnp.concatenate([evidence, double_to(features, evidence.shape[1:3])], axis=-1)
    x = self.decoder(self.encoder(x, train), train)
    return nn.Dense(1, kernel_init=nn.initializers.zeros, name="correction")(x)[..., 0]


def build() -> Refiner:
  """The refiner; it has no batch statistics."""
  style = Style(norm="group")
  encoder, decoder = unet.build(style=style, encoder="conv", width=_WIDTH, levels=_LEVELS)
  return Refiner(encoder, decoder, style)


def shapes(side: int, evidence: int, features: int):
  """Shapes of its variables {"params"}.

  Args:
    side: of the crops, in pixels.
    evidence: channels.
    features: channels.
  """
  sizes = (side, evidence), (side // 2, features)
  given = [jax.ShapeDtypeStruct((1, length, length, n), jnp.float32) for length, n in sizes]

  def initialise(key, *given):
    return build().init(key, *given, train=False)

  return jax.eval_shape(initialise, jax.random.key(0), *given)
