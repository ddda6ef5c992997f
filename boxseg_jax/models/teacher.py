"""The teacher: a second decoder that is shown the boxes beside the image.

It learns from mask images alone what inside a box is object, and says so on box images. After the
ancillary network of Ibrahim et al., "Semi-Supervised Semantic Image Segmentation with
Self-Correcting Networks", CVPR 2020 (arXiv 1811.07073), but on the encoder of the network that it
teaches, so that it costs one decoder. Prediction does without it.
"""

from typing import Any

import jax
from flax import linen as nn

from boxseg_jax.models.heads import scores


class Teacher(nn.Module):
  """Features and boxes -> logits; the boxes are added to every feature by a linear map.

  Attributes:
    decoder: (features, train) -> one feature at any resolution. Without batch statistics: those
      of the few mask images would not be those of the box images.
    num_outputs: K.
    dtype: compute dtype.
  """

  decoder: nn.Module
  num_outputs: int
  dtype: Any

  @nn.compact
  def __call__(self, features, box_maps, train: bool):
    """Logits of the features' images.

    Args:
      features: of the encoder, finest first.
      box_maps: float32 [batch, height, width, maps], of the same images.
      train: passed on to the decoder.

    Returns:
      float32 [batch, height, width, K].
    """
    told = []
    for level, feature in enumerate(features):
      shape = (*feature.shape[:3], box_maps.shape[-1])
      maps = jax.image.resize(box_maps, shape, "linear", antialias=True).astype(self.dtype)
      layer = nn.Dense(feature.shape[-1], use_bias=False, dtype=self.dtype, name=f"boxes{level}")
      told.append(feature + layer(maps))
    size = box_maps.shape[1:3]
    return scores(self.decoder(told, train), self.num_outputs, size, name="logits")
