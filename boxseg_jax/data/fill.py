"""How much of its box an object fills, as the masks show it."""

from collections.abc import Sequence

import numpy as np

from boxseg_jax.batch import VOID
from boxseg_jax.data.records import Record

# Of boxes whose objects no mask shows: few objects fill less or more of a tight box.
UNKNOWN = (0.4, 0.9)
_PERCENTILES = 10, 90
_ENOUGH = 10  # boxes; a class with fewer is taken to be like the others


def fill_bands(mask_records: Sequence[Record], num_classes: int) -> tuple[tuple[float, float], ...]:
  """The usual share of a box that its object fills, by class.

  Args:
    mask_records: images whose masks may be learned from; of no other is the mask looked at.
    num_classes: with the background.

  Returns:
    (low, high) for each class: 10th and 90th percentile, over the boxes that are no crowd, of the
    object's share of the pixels that are not void. Those of all classes together for a class with
    fewer than 10 boxes; (0.4, 0.9) where these are fewer, too.
  """
  shares = [[] for _ in range(num_classes)]
  for record in mask_records:
    labels = record.read_labels()
    for box, label in zip(*_objects(record), strict=True):
      known = _region(labels, box)
      known = known[known != VOID]
      if known.size:
        shares[label].append(np.mean(known == label))
  together = _band(sum(shares, []), UNKNOWN)
  return tuple(_band(of_class, together) for of_class in shares)


def _objects(record):
  single = ~record.box_is_crowd
  return record.boxes[single], record.box_classes[single]


def _region(labels, box):
  """The label pixels whose centres a box holds, the rule of `losses.boxes`."""
  height, width = labels.shape
  limits = np.clip(np.ceil(box * [height, width, height, width] - 0.5), 0, None).astype(int)
  ymin, xmin, ymax, xmax = limits
  return labels[ymin:ymax, xmin:xmax]


def _band(shares, otherwise):
  if len(shares) < _ENOUGH:
    return otherwise
  low, high = np.percentile(shares, _PERCENTILES)
  return float(low), float(high)
