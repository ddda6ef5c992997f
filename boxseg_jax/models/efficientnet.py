"""EfficientNet-Lite0 encoder, with the names and the arithmetic of timm's tf_efficientnet_lite0.

Tan and Le, "EfficientNet", ICML 2019 (arXiv 1905.11946); the Lite variants drop squeeze-and-excite
and use relu6. Padding is TensorFlow's "SAME".
"""

import dataclasses

from flax import linen as nn

from boxseg_jax.models.depthwise import DepthwiseConv
from boxseg_jax.models.layers import Style, convolution, normalise

EPSILON = 1e-3  # of timm's tf_* networks

# kernel, stride of the first block, expansion, channels, blocks
STAGES = (
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (5, 2, 6, 40, 2),
  (3, 2, 6, 80, 3),
  (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4),
  (3, 1, 6, 320, 1),
)
LAST_OF_STRIDE = (0, 1, 2, 4, 6)  # stages whose output is the last at strides 2, 4, 8, 16, 32


class InvertedResidual(nn.Module):
  """Widen, filter each channel, narrow; plus the input where shapes agree."""

  kernel: int
  stride: int
  expansion: int
  features: int
  style: Style

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, in] to [batch, ceil(height / stride), ..., features]."""
    wide = self.expansion > 1  # timm numbers the norms and names the last convolution by this
    y = x
    if wide:
      y = convolution(x.shape[-1] * self.expansion, self.style, kernel=(1, 1), name="conv_pw")(x)
      y = normalise(y, self.style, train, act=nn.relu6, name="bn1")
    y = DepthwiseConv(self.kernel, self.stride, self.style.dtype, name="conv_dw")(y)
    y = normalise(y, self.style, train, act=nn.relu6, name="bn2" if wide else "bn1")
    narrow = "conv_pwl" if wide else "conv_pw"
    y = convolution(self.features, self.style, kernel=(1, 1), name=narrow)(y)
    y = normalise(y, self.style, train, name="bn3" if wide else "bn2")
    return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
  """EfficientNet-Lite0 without its last 1x1 convolution and its classifier."""

  style: Style

  @nn.compact
  def __call__(self, x, train: bool):
    """Maps [batch, height, width, 3] to features at strides 2, 4, 8, 16, 32, finest first."""
    x = convolution(32, self.style, stride=2, padding="SAME", name="conv_stem")(x)
    x = normalise(x, self.style, train, act=nn.relu6, name="bn1")
    features = []
    for stage, (kernel, stride, expansion, channels, blocks) in enumerate(STAGES):
      for block in range(blocks):
        step = 1 if block else stride
        name = f"blocks_{stage}_{block}"
        x = InvertedResidual(kernel, step, expansion, channels, self.style, name=name)(x, train)
      if stage in LAST_OF_STRIDE:
        features.append(x)
    return features


def build(*, style: Style, bn_epsilon: float = EPSILON) -> EfficientNetLite0:
  """Makes the encoder with its own epsilon in the normalisations."""
  return EfficientNetLite0(dataclasses.replace(style, epsilon=bn_epsilon))
