"""What objects look like in their boxes, as the masks show it: how full, and where."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from boxseg_jax.batch import VOID
from boxseg_jax.data.records import Record, held_pixels

# Without masks. An ellipse fills 0.79 of its box; few objects fill much less or more.
UNKNOWN = (0.6, 0.85)
GRID = 8  # parts of a box to either side
_PERCENTILES = 10, 90
_ENOUGH = 10  # boxes; a class with fewer is taken to be like the others


class BoxPriors(NamedTuple):
  """By class, the background among them.

  Attributes:
    fill_bands: (low, high), the usual share of a box that its object fills.
    mean_masks: [8][8], how often each part of a box is object, in (0, 1); from top to bottom and
      from left to right.
  """

  fill_bands: tuple[tuple[float, float], ...]
  mean_masks: tuple[tuple[tuple[float, ...], ...], ...]


def box_priors(mask_records: Sequence[Record], num_classes: int) -> BoxPriors:
  """Learns from masks how objects lie in their boxes.

  Args:
    mask_records: images whose masks may be learned from; of no other is the mask looked at.
    num_classes: with the background.

  Returns:
    BoxPriors of the boxes that are no crowd, void left out. Bands are the 10th and 90th percentile:
    those of all classes together for a class with fewer than 10 boxes, (0.6, 0.85) where these are
    fewer, too. Into each class's mean mask, 10 ellipses count besides its objects.
  """
  shares: list[list[float]] = [[] for _ in range(num_classes)]
  hits = np.tile(_ENOUGH * _ellipse(), (num_classes, 1, 1))
  seen = np.full(hits.shape, float(_ENOUGH))
  for region, label in _regions(mask_records):
    known = region[region != VOID]
    if known.size:
      shares[label].append(np.mean(known == label))
      parts = _parts(region)
      hits[label] += parts == label
      seen[label] += parts != VOID
  together = _band(sum(shares, []), UNKNOWN)
  bands = tuple(_band(of_class, together) for of_class in shares)
  return BoxPriors(bands, tuple(tuple(map(tuple, mean)) for mean in (hits / seen).tolist()))


def as_arrays(priors: BoxPriors | None) -> BoxPriors | None:
  """The priors with arrays for fields, float32: an argument of a program, not a part of it."""
  if priors is None:
    return None
  arrays: Any = [np.asarray(field, np.float32) for field in priors]
  return BoxPriors(*arrays)


def _regions(records):
  """(labels [height, width] in a box, class of the box) of every box that is no crowd."""
  for record in records:
    labels = record.read_labels()
    single = ~record.box_is_crowd
    for box, label in zip(record.boxes[single], record.box_classes[single], strict=True):
      yield _region(labels, box), label


def _region(labels, box):
  ymin, xmin, ymax, xmax = held_pixels(box, labels.shape)
  return labels[ymin:ymax, xmin:xmax]


def _parts(region):
  """The labels at the centres of the parts of a box."""
  centres = (np.arange(GRID) + 0.5) / GRID
  rows, columns = ((centres * side).astype(int) for side in region.shape)
  return region[np.ix_(rows, columns)]


def _ellipse():
  """How likely each part is to lie in an ellipse that touches the box's sides, roughly drawn."""
  place = (np.arange(GRID) + 0.5) / GRID * 2 - 1
  squares = np.square(place)[:, None] + np.square(place)[None]
  return 1 / (1 + np.exp(-4 * (1 - squares)))


def _band(shares, otherwise):
  if len(shares) < _ENOUGH:
    return otherwise
  low, high = np.percentile(shares, _PERCENTILES)
  return float(low), float(high)
