"""The batch contract: what `data/` gives and everything else takes.

A batch is a flat dict of arrays, the same for training and evaluation, for
numpy and for device arrays:

  image         uint8   [batch, height, width, 3]  RGB on the canvas
  labels        uint8   [batch, height, width]     class ids; 255 = void or unknown
  boxes         float32 [batch, max_boxes, 4]      (ymin, xmin, ymax, xmax), in [0, 1]
                                                   of the image (not of the canvas)
  box_classes   int32   [batch, max_boxes]         0 = padding
  box_is_crowd  bool    [batch, max_boxes]
  has_mask      bool    [batch]                    labels may be learned from
  valid         bool    [batch]                    False: padding, weight 0 everywhere
  extent        float32 [batch, 2]                 (height, width) of the part of the
                                                   canvas that the image covers, in (0, 1]
  image_id      int32   [batch]                    position in the split's records, -1 = padding

The image lies at the top left of the canvas. In a training batch mask images come
first. Labels are bytes as far as the device, since int32 would double what is copied
and moved; `augment` makes them int32 there. A batch for evaluation carries the labels
once more at their own resolution:

  full_labels   uint8   [batch, full_height, full_width]  255 beyond the image
  full_size     int32   [batch, 2]                        (height, width) of the image
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

VOID = 255  # label of pixels that count nowhere: void, crowd, unknown, padding
BACKGROUND = 0
# Mean colour of ImageNet's training images, RGB in [0, 1]: networks subtract it, so
# where it stands for "no image" they see zero, as at the border of a convolution.
IMAGE_MEAN = (0.485, 0.456, 0.406)

Batch = Mapping[str, Any]  # name -> array, as documented above


def padding_example(canvas: tuple[int, int], max_boxes: int) -> dict[str, np.ndarray]:
  """An example that fills up a batch and counts nowhere.

  Args:
    canvas: (height, width) in pixels.
    max_boxes: number of box slots per image.

  Returns:
    One example (no batch axis) of the training contract with `valid` False.
  """
  return {
    "image": np.zeros((*canvas, 3), np.uint8),
    "labels": np.full(canvas, VOID, np.uint8),
    "boxes": np.zeros((max_boxes, 4), np.float32),
    "box_classes": np.zeros((max_boxes,), np.int32),
    "box_is_crowd": np.zeros((max_boxes,), bool),
    "has_mask": np.zeros((), bool),
    "valid": np.zeros((), bool),
    "extent": np.ones((2,), np.float32),
    "image_id": np.full((), -1, np.int32),
  }


def visible_pixels(extent, canvas: tuple[int, int]):
  """Which canvas pixels show the image.

  Args:
    extent: float32 [batch, 2], (height, width) share of the canvas covered.
    canvas: (height, width) in pixels.

  Returns:
    bool [batch, height, width]; a pixel is visible if its centre is covered.
  """
  height, width = canvas
  rows = (jnp.arange(height) + 0.5) / height < extent[:, 0, None]
  columns = (jnp.arange(width) + 0.5) / width < extent[:, 1, None]
  return rows[:, :, None] & columns[:, None, :]
