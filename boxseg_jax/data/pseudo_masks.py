"""Masks that something has made of boxes, read like true ones: a first run, or any other tool."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from boxseg_jax.batch import VOID
from boxseg_jax.data import labels
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError


def reader(
  folder: str, records: Sequence[Record], num_classes: int
) -> Callable[[Record], np.ndarray]:
  """Binds what reads the pseudo-masks of box images.

  Args:
    folder: of PNGs of class ids, 255 = void, `<name of the image>.png`, of the images' own size.
    records: the box images, each of which needs one.
    num_classes: with the background.

  Returns:
    record -> uint8 [height, width]; the record's own mask, if it has one, is not looked at. It
    raises InputError where the file cannot be read, is of another size, or has other values.

  Raises:
    InputError: no folder is named, an image has no file in it, or two have the same.
  """
  if not folder:
    raise InputError(
      'config.arm="retrained" learns from masks that a first run made of boxes: start it by '
      "--mode=retrain with that run's workdir, or name their folder in data.pseudo_masks"
    )
  labels.require_own_files(folder, [record.image_id for record in records])
  missing = [r.image_id for r in records if not _path(folder, r).exists()]
  if missing:
    others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    raise InputError(
      f"{folder}: no mask of image {missing[0]}{others} is there (data.pseudo_masks)"
    )
  return partial(_read, folder, {value: value for value in (*range(num_classes), VOID)})


def _path(folder, record) -> Path:
  return Path(folder) / labels.file_name(record.image_id)


def _read(folder, table, record):
  return labels.read_values(str(_path(folder, record)), record.size, table=table)
