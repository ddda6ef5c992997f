"""The frame that all networks share: encoder, decoder, heads, and a teacher beside them."""

from typing import Any

from flax import linen as nn

from boxseg_jax.models.heads import Head, Outputs
from boxseg_jax.models.layers import standardise_image
from boxseg_jax.models.teacher import Teacher


class Segmenter(nn.Module):
  """Image -> `Outputs`; parameters under "encoder", "decoder" and "head".

  Initialised by `with_teacher` it has a teacher too, its parameters under "teacher".

  Attributes:
    encoder: (standardised image, train) -> features, finest first.
    decoder: (features, train) -> one feature at any resolution.
    head: (feature, size) -> `Outputs` at that size.
    teacher: (features, box_maps, train) -> logits at the boxes' size.
    dtype: compute dtype of encoder and decoder.
  """

  encoder: nn.Module
  decoder: nn.Module
  head: Head
  teacher: Teacher
  dtype: Any

  def __call__(self, image, train: bool) -> Outputs:
    """Maps float32 RGB in [0, 1] [batch, height, width, 3] to `Outputs` of that size."""
    return self._outputs(self._features(image, train), image, train)

  def with_teacher(self, image, box_maps, train: bool):
    """As `__call__`, and what the teacher says about images whose boxes it is shown.

    Args:
      image: as for `__call__`.
      box_maps: float32 [shown, height, width, maps], boxes of the first `shown` images, at most
        all; see `losses.boxes.box_maps`.
      train: normalise by the batch's statistics.

    Returns:
      (`Outputs` of all images, the teacher's logits float32 [shown, height, width, K]).
    """
    features = self._features(image, train)
    shown = [feature[: box_maps.shape[0]] for feature in features]
    return self._outputs(features, image, train), self.teacher(shown, box_maps, train)

  def _features(self, image, train):
    return self.encoder(standardise_image(image, self.dtype), train)

  def _outputs(self, features, image, train):
    return self.head(self.decoder(features, train), image.shape[1:3])
