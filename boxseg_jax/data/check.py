"""Reads everything once before training starts, and says what is wrong with it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from boxseg_jax.batch import VOID
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError

_LISTED = 10  # problems that a message spells out
_TOLERANCE = 0.5  # pixels; annotation tools round


def check_records(
  records: Sequence[Record],
  *,
  num_classes: int,
  on_bad_image: str,
  max_bad_fraction: float,
  workers: int,
  report: Callable[[str], None] = print,
) -> list[Record]:
  """Reads every image and every mask once.

  What is wrong with a whole data set (no annotation file, an unknown category) was
  raised when the records were loaded, whatever `on_bad_image` says.

  Args:
    records: the records of a split.
    num_classes: number of classes, with the background.
    on_bad_image: "stop" raises at any problem; "skip" leaves such images out.
    max_bad_fraction: share of the images, in [0, 1], above which skipping stops.
    workers: threads that read.
    report: takes the lines that say what was skipped.

  Returns:
    The records that are fit to use, in their order, with boxes clipped to the image
    (up to half a pixel may lie outside).

  Raises:
    InputError: listing the first problems with file, image and value: a missing or
      unreadable image or mask, one of another size than annotated, a label that is
      no class and not 255, a box outside of the image or without area.
  """
  if on_bad_image not in ("stop", "skip"):
    raise InputError(f"data.on_bad_image is {on_bad_image!r}, but must be 'stop' or 'skip'")
  with ThreadPoolExecutor(max(workers, 1)) as pool:
    problems = list(pool.map(partial(_problem, num_classes), records))
  good = [r for r, problem in zip(records, problems, strict=True) if problem is None]
  found = [problem for problem in problems if problem is not None]
  if found:
    headline = f"{len(found)} of {len(records)} images cannot be used"
    if on_bad_image == "stop":
      raise InputError(f"{headline} (data.on_bad_image=skip leaves them out):{_listing(found)}")
    if not good or len(found) > max_bad_fraction * len(records):
      raise InputError(
        f"{headline}, more than data.max_bad_fraction={max_bad_fraction} allows:{_listing(found)}"
      )
    report(f"{headline} and are left out:{_listing(found, limit=len(found))}")
  return [replace(record, boxes=np.clip(record.boxes, 0, 1)) for record in good]


def _listing(problems: list[str], limit: int = _LISTED) -> str:
  lines = problems[:limit]
  if len(problems) > limit:
    lines.append(f"and {len(problems) - limit} more")
  return "".join(f"\n  {line}" for line in lines)


def _problem(num_classes: int, record: Record) -> str | None:
  """The first thing that is wrong with a record."""
  problem = _box_problem(num_classes, record)
  if problem is not None:
    return f"{record.source}: image {record.image_id}: {problem}"
  try:
    return _image_problem(record) or _label_problem(num_classes, record)
  except InputError as error:
    return str(error)


def _box_problem(num_classes: int, record: Record) -> str | None:
  height, width = record.size
  pixels = np.asarray(record.boxes, np.float64).reshape(-1, 4) * [height, width, height, width]
  for number, box in enumerate(pixels):
    fault = _fault(box, record.size)
    if fault:
      ymin, xmin, ymax, xmax = box
      return (
        f"box {number} [x {xmin:.6g}, y {ymin:.6g}, width {xmax - xmin:.6g}, height "
        f"{ymax - ymin:.6g}] {fault} ({width} x {height} pixels)"
      )
  wrong = [c for c in record.box_classes.tolist() if not 1 <= c < num_classes]
  return f"a box has class {wrong[0]}, the highest is {num_classes - 1}" if wrong else None


def _fault(box: np.ndarray, size: tuple[int, int]) -> str:
  """What is wrong with a box (ymin, xmin, ymax, xmax) in pixels, or nothing."""
  if not np.isfinite(box).all():
    return "is no box of the image"
  beyond = np.concatenate([-box[:2], box[2:] - size])
  if beyond.max() > _TOLERANCE:
    return "lies outside of the image"
  inside = np.clip(box, 0, [*size, *size])
  return "" if (inside[2:] > inside[:2]).all() else "has no area in the image"


def _image_problem(record: Record) -> str | None:
  if record.read_reduced is not None:
    record.read_reduced((1, 1))  # decodes the whole file at the lowest cost, and checks its size
    return None
  return _shape_problem(record, "image", record.read_image().shape, (*record.size, 3))


def _label_problem(num_classes: int, record: Record) -> str | None:
  if record.read_labels is None:
    return None
  source = record.labels_source or record.source
  labels = record.read_labels()
  counts = np.bincount(labels.ravel(), minlength=VOID + 1)
  counts[:num_classes] = 0
  counts[VOID] = 0
  if counts.any():
    value = int(np.flatnonzero(counts)[0])
    return (
      f"{source}: image {record.image_id}: {counts[value]} pixels of its mask have "
      f"label {value}; the highest class is {num_classes - 1}, and {VOID} is void"
    )
  return _shape_problem(record, "label map", labels.shape, record.size)


def _shape_problem(record: Record, what: str, found: tuple, expected: tuple) -> str | None:
  if tuple(found) == tuple(expected):
    return None
  return (
    f"{record.source}: image {record.image_id}: the {what} has shape {tuple(found)}, "
    f"expected {tuple(expected)}"
  )
