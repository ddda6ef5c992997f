"""Pseudo-masks from boxes by GrabCut, the proposal generator that the method does without.

Rother, Kolmogorov and Blake, "GrabCut", SIGGRAPH 2004, in OpenCV's implementation.
"""

import functools
import importlib.util
from collections.abc import Callable

import numpy as np
from PIL import Image

from boxseg_jax.batch import VOID
from boxseg_jax.data.examples import fitted_size
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError

ITERATIONS = 5  # OpenCV's own default in its examples
CONTEXT = 1.0  # of the box's size to each side: what GrabCut learns the background from
# Of a box; when GrabCut leaves less it has failed, and the filled box is the better mask.
SMALLEST_SHARE = 0.25


def labeller(canvas: tuple[int, int]) -> Callable[[Record], np.ndarray]:
  """Binds what makes masks out of a record's boxes.

  Args:
    canvas: (height, width); GrabCut works on images fitted to it.

  Returns:
    record -> uint8 [height, width] of the image, see `pseudo_labels`. The record's own
    mask, if it has one, is not looked at.

  Raises:
    InputError: OpenCV is not installed.
  """
  if importlib.util.find_spec("cv2") is None:
    raise InputError('config.arm="grabcut" needs OpenCV: pip install ".[grabcut]"')
  return functools.partial(_label, tuple(canvas))


def _label(canvas, record):
  size = fitted_size(record.size, canvas)
  image = Image.fromarray(record.read_image()).resize(size[::-1], Image.Resampling.BILINEAR)
  labels = pseudo_labels(np.asarray(image), record.boxes, record.box_classes, record.box_is_crowd)
  return np.asarray(Image.fromarray(labels).resize(record.size[::-1], Image.Resampling.NEAREST))


def pseudo_labels(image, boxes, box_classes, box_is_crowd) -> np.ndarray:
  """GrabCut inside each box.

  Args:
    image: uint8 [height, width, 3].
    boxes: float [n, 4], yxyx in [0, 1].
    box_classes: int [n].
    box_is_crowd: bool [n].

  Returns:
    uint8 [height, width], class ids: inside a box its class or background, the smallest
    box on top; 255 in crowd boxes where no other box is.
  """
  height, width = image.shape[:2]
  low = np.floor(boxes[:, :2] * (height, width)).astype(int)
  high = np.maximum(np.ceil(boxes[:, 2:] * (height, width)).astype(int), low + 1)
  bounds = np.concatenate([low, high], axis=1)
  area = (bounds[:, 2:] - bounds[:, :2]).prod(axis=1)
  labels = np.zeros((height, width), np.uint8)
  # Crowds lie below everything, large boxes below small ones.
  for index in np.lexsort((-area, ~np.asarray(box_is_crowd, bool))):
    ymin, xmin, ymax, xmax = bounds[index]
    inside = labels[ymin:ymax, xmin:xmax]
    if box_is_crowd[index]:
      inside[:] = VOID
    else:
      inside[foreground(image, bounds[index])] = box_classes[index]
  return labels


def foreground(image, bound) -> np.ndarray:
  """GrabCut inside one box.

  Args:
    image: uint8 [height, width, 3].
    bound: int [4], (ymin, xmin, ymax, xmax) in pixels.

  Returns:
    bool [box height, box width]; the whole box where GrabCut finds nothing or cannot begin.
  """
  import cv2  # an extra

  ymin, xmin, ymax, xmax = bound
  margin = np.maximum(np.round(CONTEXT * np.array([ymax - ymin, xmax - xmin])), 2).astype(int)
  top, left = np.maximum([ymin - margin[0], xmin - margin[1]], 0)
  crop = np.ascontiguousarray(image[top : ymax + margin[0], left : xmax + margin[1]])
  mask = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
  mask[ymin - top : ymax - top, xmin - left : xmax - left] = cv2.GC_PR_FGD
  models = np.zeros((1, 65)), np.zeros((1, 65))
  try:
    cv2.setRNGSeed(0)
    cv2.grabCut(crop, mask, None, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
  except cv2.error:  # too few pixels for its colour models
    return np.ones((ymax - ymin, xmax - xmin), bool)
  found = mask[ymin - top : ymax - top, xmin - left : xmax - left] == cv2.GC_PR_FGD
  return found if found.mean() >= SMALLEST_SHARE else np.ones_like(found)
