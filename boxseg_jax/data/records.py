"""The one record schema: what every source gives and every reader takes."""

import os
import re
import reprlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np

from boxseg_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class Record:
  """One photograph with its boxes, and its mask where one is known.

  Pixels stay on disk until one of the callables is called. These are
  `functools.partial` of module functions, so that records can be pickled; they
  raise `InputError` where a file is missing, unreadable or of another size.

  Attributes:
    image_id: name of the image, unique in its split and stable between runs.
    source: path shown in messages: the file that holds the annotation.
    size: (height, width) of the image in pixels.
    boxes: float32 [n, 4], (ymin, xmin, ymax, xmax) in [0, 1] of the image.
    box_classes: int32 [n], foreground class of each box, >= 1.
    box_is_crowd: bool [n], True for a region of objects not told apart.
    classes: foreground classes in the image.
    read_image: () -> uint8 [height, width, 3], RGB.
    read_labels: () -> uint8 [height, width], class ids, 255 = void; None if
      only the boxes are known.
    read_reduced: ((height, width)) -> uint8 [h, w, 3], the same image at some
      cheaper size that is not below the given one; None if there is no such.
    labels_source: path shown in messages about the mask, where it is not `source`.
    masked_boxes: positions of the boxes whose masks are known one by one, in an image that may be
      a box image for lack of others.
    regions: those masks, `coco.Region`.
  """

  image_id: str
  source: str
  size: tuple[int, int]
  boxes: np.ndarray
  box_classes: np.ndarray
  box_is_crowd: np.ndarray
  classes: frozenset[int]
  read_image: Callable[[], np.ndarray]
  read_labels: Callable[[], np.ndarray] | None
  read_reduced: Callable[[tuple[int, int]], np.ndarray] | None = None
  labels_source: str = ""
  masked_boxes: frozenset[int] = frozenset()
  regions: tuple = ()


_LONGEST_NAME = 240  # bytes, of the 255 of most file systems; what is made of it adds a suffix


def require_inside(where: str, name: str) -> None:
  """Refuses names of files that lead out of the folder that they belong in.

  Data sets come from strangers. A name says what is read, and, where masks are made, what is
  written. Links below the folder are followed: whoever has the data set made them.

  Args:
    where: begins the message: the file that has the name.
    name: a path below some folder.

  Raises:
    InputError: a name that is empty, absolute or has "..", is too long, or has control characters
      or halves of characters.
  """
  if not any(part not in ("", ".") for part in re.split(r"[/\\]", name)):
    raise InputError(f"{where}: {name!r} names no file")
  odd = () if name.isprintable() else name  # odd spaces are not printable, but allowed
  if any(unicodedata.category(character) in ("Cc", "Cs") for character in odd):
    raise InputError(f"{where}: the name {name!r} has characters that belong in no file name")
  if max(len(os.fsencode(part)) for part in name.split("/")) > _LONGEST_NAME:
    raise InputError(f"{where}: the name {reprlib.repr(name)} is too long")
  absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
  if absolute or ".." in re.split(r"[/\\]", name):
    raise InputError(
      f"{where}: the name {name!r} leads out of the data set's folder; names are relative to it "
      'and have no ".."'
    )


def held_pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The pixels whose centres boxes hold, the rule of `losses.boxes`.

  Args:
    boxes: float [..., 4], (ymin, xmin, ymax, xmax) in [0, 1] of the image.
    size: (height, width) in pixels.

  Returns:
    int [..., 4], first row and column and those behind the last, none beyond the image; a box
    between centres holds nothing.
  """
  limits = np.ceil(np.asarray(boxes, np.float64) * np.tile(size, 2) - 0.5)
  return np.clip(limits, 0, np.tile(size, 2)).astype(int)


def single_boxes(record: Record) -> tuple[np.ndarray, np.ndarray]:
  """The boxes of single objects, crowds left out.

  Returns:
    (int [n], their positions in the record; float64 [n, 4], (ymin, xmin, ymax, xmax) in pixels).
  """
  single = np.flatnonzero(~record.box_is_crowd)
  return single, record.boxes[single].astype(np.float64) * np.tile(record.size, 2)


def max_boxes(records: Sequence[Record], limit: int = 0) -> int:
  """Number of box slots per image.

  Boxes are never dropped: what lies outside of every box is learned as certain
  background, so a missing box would teach something wrong.

  Args:
    records: the records that have to fit.
    limit: slots to use, or 0 for as many as the fullest image needs.

  Returns:
    The number of slots, at least 1.

  Raises:
    InputError: an image has more boxes than `limit`.
  """
  fullest = max(records, key=lambda record: len(record.boxes))
  needed = len(fullest.boxes)
  if limit and needed > limit:
    raise InputError(
      f"{fullest.source}: image {fullest.image_id} has {needed} boxes, more than "
      f"data.max_boxes={limit}; set it to 0 (as many as needed) or to at least {needed}"
    )
  return limit or max(needed, 1)
