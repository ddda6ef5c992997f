"""Mistakes that annotators make with boxes, made on purpose: how much of it does a method bear?"""

import dataclasses
import zlib
from typing import NamedTuple

import numpy as np

from boxseg_jax.data.records import Record


class BoxFaults(NamedTuple):
  """What goes wrong with the boxes of box images.

  Attributes:
    resize: each side of a box moves outwards or inwards by up to this share of its height or
      width, uniformly.
    missing: share of the boxes that are not there.
    wrong_class: share of the boxes that have another class, drawn evenly from the others.
  """

  resize: float = 0.0
  missing: float = 0.0
  wrong_class: float = 0.0


def with_faults(record: Record, faults: BoxFaults, *, num_classes: int, seed: int) -> Record:
  """Spoils a record's boxes; crowds stay as they are.

  A pure function of the image id and the seed: every run of a study sees the same mistakes.

  Args:
    record: a box image.
    faults: what goes wrong.
    num_classes: with the background; with one class alone none can be wrong.
    seed: another seed makes other mistakes.

  Returns:
    A record with the other boxes; its image and mask are untouched.
  """
  rng = np.random.RandomState([seed, zlib.crc32(record.image_id.encode())])
  count = len(record.boxes)
  moved = _resized(record, rng.uniform(-faults.resize, faults.resize, (count, 4)))
  classes, crowd = record.box_classes.copy(), record.box_is_crowd
  others = rng.randint(1, max(num_classes - 1, 2), count)
  wrong = (rng.uniform(size=count) < faults.wrong_class) & ~crowd
  # The others are counted on from the right class, and the background is left out.
  classes[wrong] = (classes[wrong] - 1 + others[wrong]) % (num_classes - 1) + 1
  kept = (rng.uniform(size=count) >= faults.missing) | crowd
  return dataclasses.replace(
    record,
    boxes=np.where(crowd[:, None], record.boxes, moved)[kept].astype(np.float32),
    box_classes=classes[kept],
    box_is_crowd=crowd[kept],
  )


def _resized(record, shares):
  """Boxes with each side moved outwards by a share of the box, at least a pixel large."""
  low, high = record.boxes[:, :2], record.boxes[:, 2:]
  size = high - low
  pixel = 1.0 / np.array(record.size)
  new_low = np.clip(low - shares[:, :2] * size, 0.0, 1.0 - pixel)
  new_high = np.clip(high + shares[:, 2:] * size, new_low + pixel, 1.0)
  return np.concatenate([new_low, new_high], axis=1)
