"""Which images may be learned from by their masks, and which by their boxes only."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError, WriteError


class Split(NamedTuple):
  """Image ids by what may be learned from them, each sorted.

  Attributes:
    mask_ids: images whose masks are used.
    box_ids: images of which only the boxes are used.
  """

  mask_ids: tuple[str, ...]
  box_ids: tuple[str, ...]


def split_masks(records: Sequence[Record], fraction: float, seed: int) -> Split:
  """Draws the mask images.

  A pure function of the image ids, their classes, the fraction and the seed; the
  order of the records does not matter. With one seed, the mask images of a smaller
  fraction are among those of a larger one. The first drawn are images that between
  them show every class, as few as a greedy choice finds.

  Args:
    records: the records of the training split.
    fraction: share of the images that have a mask whose mask may be used, in
      [0, 1]; at least one is drawn unless it is 0. Images without a mask are
      always box images.
    seed: another seed draws other images.

  Returns:
    The split.

  Raises:
    InputError: fraction outside of [0, 1], an image id twice, or no image with a
      mask although the fraction is above 0.
  """
  if not 0 <= fraction <= 1:
    raise InputError(f"data.mask_fraction is {fraction}, but must be between 0 and 1")
  _require_unique(records)
  candidates = [record for record in records if record.read_labels is not None]
  if fraction > 0 and not candidates:
    raise InputError(
      f"{records[0].source}: none of the {len(records)} images has a mask, so that "
      f"data.mask_fraction={fraction} has nothing to draw from; 0 trains from boxes only"
    )
  count = max(1, round(fraction * len(candidates))) if fraction > 0 else 0
  return _split_of(records, {record.image_id for record in _ranked(candidates, seed)[:count]})


def write_split(path: str | os.PathLike, split: Split) -> None:
  """Writes a split as JSON; a file that exists is replaced in one step.

  Args:
    path: local path or any that etils.epath knows (gs://...).
    split: the split.

  Raises:
    WriteError: it cannot be written.
  """
  target = epath.Path(path)
  unfinished = target.parent / f"{target.name}.unfinished"
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps(split._asdict(), indent=1) + "\n")
    unfinished.replace(target)
  except OSError as error:
    raise WriteError(f"{path} cannot be written: {error}") from error


def read_split(path: str, records: Sequence[Record]) -> Split:
  """Reads a split back.

  Args:
    path: a file of `write_split`, or one written by hand: {"mask_ids": [...],
      "box_ids": [...]}.
    records: the records that it has to fit.

  Returns:
    The split.

  Raises:
    InputError: no such file, not a split, an image that is not among the records,
      an image of the records in neither or both lists, or a mask image without mask.
  """
  mask_ids, box_ids = read_lists(path)
  with_mask = {record.image_id: record.read_labels is not None for record in records}
  listed = set(mask_ids) | set(box_ids)
  complaints = [
    (listed - with_mask.keys(), "is not in the data set"),
    (with_mask.keys() - listed, "is in the data set, but in neither mask_ids nor box_ids"),
    (set(mask_ids) & set(box_ids), "is in mask_ids and in box_ids"),
    ({name for name in mask_ids if not with_mask.get(name)}, "is in mask_ids, but has no mask"),
  ]
  for names, complaint in complaints:
    if names:
      others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
      raise InputError(f"{path}: image {min(names)}{others} {complaint}")
  return _split_of(records, set(mask_ids))


def _ranked(candidates: Sequence[Record], seed: int) -> list[Record]:
  """All candidates in the order in which they are drawn, whatever the fraction."""
  # A hash of each id, not a shuffle: independent of the order and of the other ids.
  waiting = sorted(candidates, key=lambda record: _draw(record.image_id, seed))
  first, missing = [], frozenset().union(*(record.classes for record in waiting))
  while missing:
    best = max(waiting, key=lambda record: len(record.classes & missing))
    first.append(best)
    waiting.remove(best)
    missing -= best.classes
  return first + waiting


def _draw(image_id: str, seed: int) -> bytes:
  return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()


def _split_of(records: Sequence[Record], mask_ids: set[str]) -> Split:
  names = sorted(record.image_id for record in records)
  return Split(
    tuple(name for name in names if name in mask_ids),
    tuple(name for name in names if name not in mask_ids),
  )


def _require_unique(records: Sequence[Record]) -> None:
  seen = set()
  for record in records:
    if record.image_id in seen:
      raise InputError(f"{record.source}: image {record.image_id} is there twice")
    seen.add(record.image_id)


def read_lists(path: str | epath.Path) -> tuple[list[str], list[str]]:
  """The two lists of names of a file of `write_split`, or one that a person wrote.

  Raises:
    InputError: no such file, or not a split.
  """
  try:
    content = json.loads(epath.Path(path).read_text())
  except FileNotFoundError:
    raise InputError(f"{path}: no such file (data.split_file)") from None
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"{path}: cannot be read as JSON ({error})") from error
  content = content if isinstance(content, dict) else {}
  mask_ids, box_ids = (_names(content.get(key)) for key in Split._fields)
  if mask_ids is None or box_ids is None:
    raise InputError(f'{path}: not a split; expected {{"mask_ids": [...], "box_ids": [...]}}')
  return mask_ids, box_ids


def _names(value: Any) -> list[str] | None:
  """The names; None if it is something else."""
  known = isinstance(value, list) and all(isinstance(name, str) for name in value)
  return value if known else None
