"""Source `tfds`: sets of TensorFlow Datasets, read by random access.

Another set with index masks is one more entry in `SETS`. Its boxes are the bounds
of each class's pixels, which suits sets with one object of a class per image.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.data import images
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError


class SetFormat(NamedTuple):
  """Where a set keeps what a record needs.

  Attributes:
    image: feature of the photograph.
    mask: feature of the index mask.
    name: feature that names the image.
    classes: mask value -> class id, 255 = void.
  """

  image: str
  mask: str
  name: str
  classes: Mapping[int, int]


SETS = {
  # The trimap's border is a few pixels of either the pet or the background.
  "oxford_iiit_pet": SetFormat(
    "image", "segmentation_mask", "file_name", {1: 1, 2: BACKGROUND, 3: VOID}
  ),
}


def load(
  name: str, split: str, class_names: Sequence[str], *, data_dir: str | None = None
) -> list[Record]:
  """Loads the records of a split; downloads and prepares the set at the first time.

  All masks are read for their boxes. The set is prepared as ArrayRecord; one that
  lies there as TFRecord has no random access and is refused.

  Args:
    name: name of the set, one of `SETS`.
    split: a split of the set, slices included ("train[:80%]").
    class_names: class names by class id; the first is the background.
    data_dir: where sets lie; None: the default of TensorFlow Datasets.

  Returns:
    Records in the order of the set.

  Raises:
    InputError: a set or split that is not known, another number of classes, or a
      mask with a value that is no class.
  """
  if name not in SETS:
    raise InputError(f"data.tfds_name is {name!r}, but must be one of {', '.join(SETS)}")
  layout = SETS[name]
  num_classes = 1 + max(c for c in layout.classes.values() if c != VOID)
  if len(class_names) != num_classes:
    raise InputError(
      f"data.class_names is {tuple(class_names)}, but {name} has {num_classes} classes"
    )
  source = _open(name, split, data_dir, layout)
  with ThreadPoolExecutor() as pool:
    return list(pool.map(partial(_record, f"{name}/{split}", source, layout), range(len(source))))


def read_image(
  where: str,
  source: Sequence[Mapping[str, Any]],
  layout: SetFormat,
  index: int,
  size: tuple[int, int],
  at_least: tuple[int, int] | None = None,
) -> np.ndarray:
  """Reads a photograph; uint8 [height, width, 3], see `images.read_image`."""
  return images.read_image(where, size, at_least, content=source[index][layout.image])


def read_labels(
  where: str, source: Sequence[Mapping[str, Any]], layout: SetFormat, index: int
) -> np.ndarray:
  """Reads a mask; uint8 [height, width], class ids, 255 = void.

  Raises:
    InputError: a value that is no class.
  """
  values = images.read_index_image(where, content=source[index][layout.mask])
  table = np.zeros(256, np.uint8)
  table[list(layout.classes)] = list(layout.classes.values())
  unknown = np.setdiff1d(np.unique(values), list(layout.classes))
  if unknown.size:
    raise InputError(
      f"{where}: the mask has value {unknown[0]}; known are {', '.join(map(str, layout.classes))}"
    )
  return table[values]


def _open(name, split, data_dir, layout) -> Sequence[Mapping[str, Any]]:
  import tensorflow_datasets as tfds

  # Undecoded: a mask costs nothing until it is asked for, and JPEGs can be reduced.
  skip = {layout.image: tfds.decode.SkipDecoding(), layout.mask: tfds.decode.SkipDecoding()}
  try:
    return tfds.data_source(
      name,
      split=split,
      data_dir=data_dir,
      decoders=skip,
      builder_kwargs={"file_format": "array_record"},
    )
  except (KeyError, ValueError, NotImplementedError) as error:
    raise InputError(f"{name}/{split} cannot be opened: {error}") from error


def _record(where: str, source, layout: SetFormat, index: int) -> Record:
  name = source[index][layout.name]
  name = name.decode() if isinstance(name, bytes) else str(name)
  arguments = (f"{where}: image {name}", source, layout, index)
  labels = read_labels(*arguments)
  classes = [c for c in np.unique(labels).tolist() if c not in (BACKGROUND, VOID)]
  boxes = [_bounds(labels == c) for c in classes]
  return Record(
    image_id=name,
    source=where,
    size=labels.shape,
    boxes=np.array(boxes, np.float32).reshape(-1, 4),
    box_classes=np.array(classes, np.int32),
    box_is_crowd=np.zeros(len(classes), bool),
    classes=frozenset(classes),
    read_image=partial(read_image, *arguments, labels.shape),
    read_labels=partial(read_labels, *arguments),
    read_reduced=partial(read_image, *arguments, labels.shape),
  )


def _bounds(inside: np.ndarray) -> tuple[float, float, float, float]:
  rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
  height, width = inside.shape
  return rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width
