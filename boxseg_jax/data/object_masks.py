"""The true mask of one box, for what learns from boxes one by one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from boxseg_jax.batch import VOID
from boxseg_jax.data import coco
from boxseg_jax.data.records import Record, held_pixels


class ObjectMask(NamedTuple):
  """What is known of the object of a box.

  Attributes:
    pixels: bool [height, width] of the image, True on the object.
    known: bool [height, width], False where nobody knows.
  """

  pixels: np.ndarray
  known: np.ndarray


def object_mask(
  record: Record, annotation: Mapping[str, Any], index: int, labels: np.ndarray
) -> ObjectMask:
  """The mask of a box.

  Args:
    record: of an image whose mask may be looked at.
    annotation: of the box, of `mask_files.Document.boxes`. If it has a "segmentation", that is the
      object; else it is what the image's mask has of its class in its box, unknown where another
      box of that class lies too.
    index: position of the box.
    labels: the record's mask.

  Returns:
    The object; void is unknown.

  Raises:
    InputError: a segmentation that is none.
  """
  known = labels != VOID
  if annotation.get("segmentation"):
    where = f"{record.source}: image {record.image_id}: annotation {annotation.get('id')}"
    code = coco.checked_code(where, record.size, annotation["segmentation"])
    return ObjectMask(coco_mask.decode(code).astype(bool), known)
  label = record.box_classes[index]
  in_box = _held(record, index)
  shared = np.zeros(record.size, bool)
  for other in np.flatnonzero(record.box_classes == label):
    if other != index:
      shared |= in_box & _held(record, other)
  return ObjectMask(in_box & (labels == label), known & ~shared)


def _held(record, index) -> np.ndarray:
  """Pixels whose centres a box holds, bool [height, width]."""
  ymin, xmin, ymax, xmax = held_pixels(record.boxes[index], record.size)
  held = np.zeros(record.size, bool)
  held[ymin:ymax, xmin:xmax] = True
  return held
