"""Reads everything once before training starts, and finds what is wrong with single images.

What is wrong with a split as a whole is judged by `findings`, from what was seen here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from boxseg_jax.batch import VOID
from boxseg_jax.data import feed, survey
from boxseg_jax.data.records import Record
from boxseg_jax.data.survey import Facts
from boxseg_jax.errors import InputError

_TOLERANCE = 0.5  # pixels; annotation tools round
_OUTSIDE, _NO_AREA = "lies outside of the image", "has no area in the image"
# Decoding a JPEG at an eighth costs least, and finds a broken file as well; not below this size
# (height, width), where different photographs would begin to look the same.
_GLANCE = (48, 48)
_AHEAD = 8  # images for each thread, so that none waits for its neighbours


def look_at(
  records: Sequence[Record],
  *,
  num_classes: int,
  workers: int,
  progress: Callable[[int], None] = lambda done: None,
) -> list[Facts]:
  """Reads every image and every mask once.

  What is wrong with a whole data set (no annotation file, an unknown category) was
  raised when the records were loaded.

  Args:
    records: the records of a split.
    num_classes: number of classes, with the background.
    workers: threads that read.
    progress: is told the number of images done, after each.

  Returns:
    What was seen of each, in their order. Its `problems`: a missing or unreadable image
    or mask, one of another size than annotated, a label that is no class and not 255, a
    box outside of the image or without area, or of no class.
  """
  facts: list[Facts] = []
  # Not a map of a pool, which would queue every image of the split at once.
  for seen in feed.ahead(partial(_look, num_classes), records, workers, _AHEAD * max(workers, 1)):
    facts.append(seen)
    progress(len(facts))
  return facts


def usable(records: Sequence[Record], facts: Sequence[Facts]) -> list[Record]:
  """The records without problems.

  Args:
    records: the records of a split.
    facts: of `look_at`, of the same records.

  Returns:
    Those that are fit to use, in their order, with boxes clipped to the image (up to
    half a pixel may lie outside).
  """
  return [
    replace(record, boxes=np.clip(record.boxes, 0, 1))
    for record, seen in zip(records, facts, strict=True)
    if not seen.problems
  ]


def _look(num_classes: int, record: Record) -> Facts:
  """Everything about one record."""
  # Boxes may have any numbers: the difference of infinite ones is none, and is told as such.
  with np.errstate(invalid="ignore", over="ignore"):
    return _seen(num_classes, record)


def _seen(num_classes: int, record: Record) -> Facts:
  faults = _box_faults(record)
  problems = _box_problems(num_classes, record, faults)
  digest = _asked(problems, lambda: _read_digest(record))
  labels = None if record.read_labels is None else _asked(problems, record.read_labels)
  values = {} if labels is None else survey.count_values(labels)
  if labels is not None:
    problems += _label_problems(num_classes, record, labels, values)
  judged = None if problems else labels
  singles = ~record.box_is_crowd
  none = np.zeros(0, np.float32)
  fits, fills = (none, none) if judged is None else survey.box_fits(record, judged)
  sides = (record.boxes[:, 2:] - record.boxes[:, :2])[singles] * record.size
  return Facts(
    image_id=record.image_id,
    size=record.size,
    problems=tuple(problems),
    digest=digest or b"",
    has_mask=record.read_labels is not None,
    values=values,
    uncovered={} if judged is None else survey.uncovered_pixels(record, judged),
    outside=faults.count(_OUTSIDE),
    no_area=faults.count(_NO_AREA),
    crowds=int(record.box_is_crowd.sum()),
    box_classes=record.box_classes[singles],
    sides=sides.astype(np.float32),
    fits=fits,
    fills=fills,
  )


def _asked(problems: list[str], read: Callable):
  """What `read` gives, or None and one more problem."""
  try:
    return read()
  except InputError as error:
    problems.append(str(error))
    return None


def _box_faults(record: Record) -> list[str]:
  """What is wrong with each box, or nothing."""
  return [_fault(box, record.size) for box in _box_pixels(record)]


def _box_pixels(record: Record) -> np.ndarray:
  height, width = record.size
  return np.asarray(record.boxes, np.float64).reshape(-1, 4) * [height, width, height, width]


def _fault(box: np.ndarray, size: tuple[int, int]) -> str:
  """What is wrong with a box (ymin, xmin, ymax, xmax) in pixels, or nothing."""
  if not np.isfinite(box).all():
    return "is no box of the image"
  beyond = np.concatenate([-box[:2], box[2:] - size])
  if beyond.max() > _TOLERANCE:
    return _OUTSIDE
  inside = np.clip(box, 0, [*size, *size])
  return "" if (inside[2:] > inside[:2]).all() else _NO_AREA


def _box_problems(num_classes: int, record: Record, faults: list[str]) -> list[str]:
  """Messages about the boxes of a record: the first of each kind, and how many there are."""
  where = f"{record.source}: image {record.image_id}: "
  wrong = [number for number, fault in enumerate(faults) if fault]
  problems = []
  if wrong:
    height, width = record.size
    ymin, xmin, ymax, xmax = _box_pixels(record)[wrong[0]]
    more = f" (and {len(wrong) - 1} more of its boxes)" if len(wrong) > 1 else ""
    problems.append(
      f"{where}box {wrong[0]} [x {xmin:.6g}, y {ymin:.6g}, width {xmax - xmin:.6g}, height "
      f"{ymax - ymin:.6g}] {faults[wrong[0]]} ({width} x {height} pixels){more}"
    )
  unknown = [c for c in record.box_classes.tolist() if not 1 <= c < num_classes]
  if unknown:
    problems.append(f"{where}a box has class {unknown[0]}, the highest is {num_classes - 1}")
  return problems


def _read_digest(record: Record) -> bytes:
  """Decodes the whole image, and checks its size."""
  if record.read_reduced is not None:
    return survey.digest(record.read_reduced(_GLANCE), record.size)
  image = record.read_image()
  _require_shape(record, "image", image.shape, (*record.size, 3))
  return survey.digest(image, record.size)


def _label_problems(num_classes, record, labels, values) -> list[str]:
  source = record.labels_source or record.source
  problems = []
  wrong = [value for value in values if value >= num_classes and value != VOID]
  if wrong:
    problems.append(
      f"{source}: image {record.image_id}: {values[wrong[0]]} pixels of its mask have "
      f"label {wrong[0]}; the highest class is {num_classes - 1}, and {VOID} is void"
    )
  _asked(problems, lambda: _require_shape(record, "label map", labels.shape, record.size))
  return problems


def _require_shape(record: Record, what: str, found: tuple, expected: tuple) -> None:
  if tuple(found) != tuple(expected):
    raise InputError(
      f"{record.source}: image {record.image_id}: the {what} has shape {tuple(found)}, "
      f"expected {tuple(expected)}"
    )
