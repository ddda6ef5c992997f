"""The frame that all networks share: encoder, decoder, heads."""

from typing import Any

from flax import linen as nn

from boxseg_jax.models.heads import Head, Outputs
from boxseg_jax.models.layers import standardise_image


class Segmenter(nn.Module):
  """Image -> `Outputs`; parameters under "encoder", "decoder" and "head".

  Attributes:
    encoder: (standardised image, train) -> features, finest first.
    decoder: (features, train) -> one feature at any resolution.
    head: (feature, size) -> `Outputs` at that size.
    dtype: compute dtype of encoder and decoder.
  """

  encoder: nn.Module
  decoder: nn.Module
  head: Head
  dtype: Any

  def __call__(self, image, train: bool) -> Outputs:
    """Maps float32 RGB in [0, 1] [batch, height, width, 3] to `Outputs` of that size."""
    features = self.encoder(standardise_image(image, self.dtype), train)
    return self.head(self.decoder(features, train), image.shape[1:3])
