"""What one look at each image, its boxes and its mask finds, and what a whole split adds up to.

Pure functions of arrays; `check` does the reading, `findings` judges.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.data.examples import fitted_size
from boxseg_jax.data.records import Record

# Boxes are float32 shares of an image of up to some 10,000 pixels, so a whole pixel comes back
# a little off; without this, rounding outwards would take in a neighbour's row.
_ROUNDING = 0.01
# Polygons and boxes are rounded to pixels in different ways.
_MARGIN = 1
_TELLING = 8  # pixels of a side; any object fills a smaller box


class Facts(NamedTuple):
  """What is known of one image.

  Attributes:
    image_id: its name.
    size: (height, width) in pixels, as annotated.
    problems: messages with file, image and value; an image that has any cannot be used.
    digest: of its pixels; empty where they cannot be read. Equal for equal images.
    has_mask: whether a mask is known.
    values: pixels of the mask by value.
    uncovered: those of them, by class, that lie outside of all boxes of that class; empty for
      an image with problems, or without a mask.
    outside: number of boxes that lie outside of the image.
    no_area: number of boxes without area.
    crowds: number of boxes of objects not told apart; the fields below leave these out.
    box_classes: int32 [n].
    sides: float32 [n, 2], (height, width) of each box in pixels of the image.
    fits: float32 [n], see `box_fits`; NaN where it cannot be known.
    fills: float32 [n], likewise.
  """

  image_id: str
  size: tuple[int, int]
  problems: tuple[str, ...]
  digest: bytes
  has_mask: bool
  values: dict[int, int]
  uncovered: dict[int, int]
  outside: int
  no_area: int
  crowds: int
  box_classes: np.ndarray
  sides: np.ndarray
  fits: np.ndarray
  fills: np.ndarray

  @property
  def has_boxes(self) -> bool:
    """Whether there is any box, crowds included."""
    return len(self.box_classes) + self.crowds > 0

  @property
  def object_pixels(self) -> int:
    """Pixels of the mask that show an object."""
    return sum(n for value, n in self.values.items() if value not in (BACKGROUND, VOID))


def digest(pixels: np.ndarray, size: tuple[int, int]) -> bytes:
  """A name for an image's content: 16 bytes, equal for equal pixels.

  Args:
    pixels: uint8 [h, w, 3], the image, or a reduced one that is equal for equal files.
    size: (height, width) of the image.
  """
  content = hashlib.blake2b(repr((*size, *pixels.shape)).encode(), digest_size=16)
  content.update(np.ascontiguousarray(pixels))
  return content.digest()


def count_values(labels: np.ndarray) -> dict[int, int]:
  """Pixels by value of a label map uint8 [height, width]; values without pixels are left out."""
  counts = np.bincount(labels.ravel())
  return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def box_fits(record: Record, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How well the boxes that are no crowd fit the mask, and how much of each it fills.

  Args:
    record: gives the boxes.
    labels: uint8 [height, width], class ids, 255 = void.

  Returns:
    float32 [n], intersection over union of each box with the bounds of what the mask has of its
    class inside it: 1 for a tight box, 0 for one around nothing. NaN around void alone. Objects
    are not told apart in a mask, so a neighbour in the box can only raise it; what lies beside
    the box is told by `uncovered_pixels`. And float32 [n], pixels of its class in a box over the
    box's area: NaN for boxes with a side of less than 8 pixels.
  """
  scale = np.array([*record.size, *record.size])
  singles = ~record.box_is_crowd
  boxes = np.clip(record.boxes[singles], 0, 1).astype(np.float64) * scale
  windows = _windows(boxes, margin=0)
  found = [
    _fit(box, window, labels, label)
    for box, window, label in zip(boxes, windows, record.box_classes[singles], strict=True)
  ]
  fits, fills = np.array(found, np.float32).reshape(-1, 2).T
  return fits, fills


def _fit(box, window, labels, label):
  """(fit, fill) of a box, see `box_fits`."""
  ymin, xmin, ymax, xmax = window
  region = labels[ymin:ymax, xmin:xmax]
  inside = region == label
  sides = box[2:] - box[:2]
  fill = np.count_nonzero(inside) / np.prod(sides) if sides.min() > _TELLING - _ROUNDING else np.nan
  rows = np.flatnonzero(inside.any(axis=1))
  if not rows.size:
    return (np.nan if (region == VOID).any() else 0.0), fill
  columns = np.flatnonzero(inside.any(axis=0))
  low = np.array([ymin + rows[0], xmin + columns[0]])
  high = np.array([ymin + rows[-1] + 1, xmin + columns[-1] + 1])
  common = np.prod(np.minimum(high, box[2:]) - np.maximum(low, box[:2]))
  return common / (np.prod(high - low) + np.prod(sides) - common), fill


def uncovered_pixels(record: Record, labels: np.ndarray) -> dict[int, int]:
  """Pixels of objects by class that lie outside of all boxes of their class, if there are any.

  In a box image they would be taught as background.

  Args:
    record: gives the boxes, of which crowds cover like others.
    labels: uint8 [height, width], class ids, 255 = void.
  """
  left = labels.copy()
  boxes = np.clip(record.boxes, 0, 1).astype(np.float64) * [*record.size, *record.size]
  for window, label in zip(_windows(boxes, _MARGIN), record.box_classes, strict=True):
    ymin, xmin, ymax, xmax = window
    region = left[ymin:ymax, xmin:xmax]
    region[region == label] = BACKGROUND
  counts = count_values(left)
  return {value: n for value, n in counts.items() if value not in (BACKGROUND, VOID)}


def _windows(boxes, margin):
  """Boxes [n, 4] in pixels, rounded outwards to int [n, 4]; beyond the image on the far side."""
  low = np.floor(boxes[:, :2] + _ROUNDING) - margin
  high = np.ceil(boxes[:, 2:] - _ROUNDING) + margin
  return np.concatenate([np.maximum(low, 0), high], axis=1).astype(int)


class Summary(NamedTuple):
  """What the images of a split add up to. Lists name images; boxes leave crowds out.

  Attributes:
    images: their number.
    mask_and_boxes: images with both.
    mask_only: with a mask alone.
    boxes_only: with boxes alone.
    neither: with neither.
    crowds: boxes of objects not told apart.
    values: pixels of all masks by value.
    images_by_value: masks in which the value appears.
    boxes: number of boxes by class.
    outside: boxes outside of the image.
    no_area: boxes without area.
    void_share: share of mask pixels that are void, in [0, 1]; NaN without masks.
    uncovered: pixels of objects by class outside of all boxes of their class, in the images
      with mask and boxes.
    covered_total: all pixels of objects by class in these.
    most_uncovered: images of which most pixels are uncovered, the worst first.
    fits: float32 [n], see `box_fits`, NaN left out.
    fills: of each class those of its boxes, NaN left out.
    unboxed: images whose mask shows objects, but that have no box.
    unmasked: images with boxes whose mask shows no object.
    void_alone: those of them whose mask has values 0 and 255, or 255, alone.
    smallest: (image, class, height, width) of the smallest box of each class, in pixels of the
      canvas; the smallest first.
    thin_sides: float32 [n], the shorter side of each box, in pixels of the canvas.
    side_classes: int32 [n], the class of each.
    duplicates: groups of images that are equal.
    problems: all messages about images that cannot be used.
    unusable: number of these images.
  """

  images: int
  mask_and_boxes: int
  mask_only: int
  boxes_only: int
  neither: int
  crowds: int
  values: Counter
  images_by_value: Counter
  boxes: Counter
  outside: int
  no_area: int
  void_share: float
  uncovered: Counter
  covered_total: Counter
  most_uncovered: list[str]
  fits: np.ndarray
  fills: dict[int, np.ndarray]
  unboxed: list[str]
  unmasked: list[str]
  void_alone: list[str]
  smallest: list[tuple[str, int, float, float]]
  thin_sides: np.ndarray
  side_classes: np.ndarray
  duplicates: list[tuple[str, ...]]
  problems: list[str]
  unusable: int


def summarize(facts: Sequence[Facts], canvas: tuple[int, int]) -> Summary:
  """Adds up a split.

  Args:
    facts: of all its images.
    canvas: (height, width) that images are fitted to for training, in pixels.

  Returns:
    Summary. Masks of images that cannot be used are counted by value, but not judged by boxes.
  """
  kinds = Counter((seen.has_mask, seen.has_boxes) for seen in facts)
  values = _sum(seen.values for seen in facts)
  judged = [s for s in facts if s.has_mask and not s.problems]
  both = [s for s in judged if s.has_boxes]
  unmasked = [s for s in both if not s.object_pixels and len(s.box_classes)]
  return Summary(
    images=len(facts),
    mask_and_boxes=kinds[True, True],
    mask_only=kinds[True, False],
    boxes_only=kinds[False, True],
    neither=kinds[False, False],
    crowds=sum(seen.crowds for seen in facts),
    values=values,
    images_by_value=Counter(value for seen in facts for value in seen.values),
    boxes=Counter(label for seen in facts for label in seen.box_classes.tolist()),
    outside=sum(seen.outside for seen in facts),
    no_area=sum(seen.no_area for seen in facts),
    void_share=values[VOID] / values.total() if values else float("nan"),
    uncovered=_sum(seen.uncovered for seen in both),
    covered_total=_without_ground(_sum(seen.values for seen in both)),
    most_uncovered=_most_uncovered(both),
    fits=_known(np.concatenate([np.zeros(0, np.float32), *(seen.fits for seen in both)])),
    fills=_by_class(both),
    unboxed=[s.image_id for s in judged if s.object_pixels and not s.has_boxes],
    unmasked=[seen.image_id for seen in unmasked],
    void_alone=[s.image_id for s in unmasked if VOID in s.values],
    **_sizes(facts, canvas),
    duplicates=_equal(facts),
    problems=[problem for seen in facts for problem in seen.problems],
    unusable=sum(bool(seen.problems) for seen in facts),
  )


def _sum(counts):
  total: Counter[int] = Counter()
  for one in counts:
    total.update(one)
  return total


def _without_ground(values):
  return Counter({v: n for v, n in values.items() if v not in (BACKGROUND, VOID)})


def _known(numbers):
  return numbers[~np.isnan(numbers)]


def _by_class(both):
  fills = np.concatenate([np.zeros(0, np.float32), *(seen.fills for seen in both)])
  classes = np.concatenate([np.zeros(0, np.int32), *(seen.box_classes for seen in both)])
  return {label: _known(fills[classes == label]) for label in np.unique(classes).tolist()}


def _most_uncovered(both):
  shares = [(sum(s.uncovered.values()) / max(s.object_pixels, 1), s.image_id) for s in both]
  return [name for share, name in sorted(shares, key=lambda pair: -pair[0]) if share > 0]


def _sizes(facts, canvas):
  """Sizes of boxes where the network sees them."""
  counts = [len(seen.box_classes) for seen in facts]
  scales = np.array([np.divide(fitted_size(seen.size, canvas), seen.size) for seen in facts])
  sides = np.concatenate([np.zeros((0, 2), np.float32), *(seen.sides for seen in facts)])
  classes = np.concatenate([np.zeros(0, np.int32), *(seen.box_classes for seen in facts)])
  owners = np.repeat(np.arange(len(facts)), counts)
  sides = sides * scales.reshape(-1, 2)[owners]
  real = sides.min(axis=1, initial=np.inf) > 0  # one without area is told as such
  sides, classes, owners = sides[real], classes[real], owners[real]
  by_area = np.argsort(sides.prod(axis=1), kind="stable")
  firsts = np.sort(np.unique(classes[by_area], return_index=True)[1])
  return {
    "smallest": [
      (facts[owners[box]].image_id, int(classes[box]), *map(float, sides[box]))
      for box in by_area[firsts]
    ],
    "thin_sides": sides.min(axis=1, initial=np.inf).astype(np.float32),
    "side_classes": classes.astype(np.int32),
  }


def _equal(facts):
  groups: dict[bytes, list[str]] = {}
  for seen in facts:
    if seen.digest:
      groups.setdefault(seen.digest, []).append(seen.image_id)
  return [tuple(names) for names in groups.values() if len(names) > 1]


def shared_images(ones: Sequence[Facts], others: Sequence[Facts]) -> list[tuple[str, str]]:
  """Pairs of names of images that are in both of two splits, by their content."""
  known = {seen.digest: seen.image_id for seen in ones if seen.digest}
  return [(known[seen.digest], seen.image_id) for seen in others if seen.digest in known]
