"""Source `tfds`: sets of TensorFlow Datasets, read by random access.

`data_dir` is a folder, or a bucket (gs://...) where the set lies prepared.

| set | masks | boxes |
|---|---|---|
| `oxford_iiit_pet` | trimaps | bounds of the pet |
| `cityscapes` | label ids | parts of each class in the mask: instances are not in the set |
| `coco/2017_panoptic` | segments | of the segments |
| `coco`, `voc` | none: box images | of the objects |

Another set is one more entry in `SETS`.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.data import cityscapes, images, instances, labels
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError


class SetFormat(NamedTuple):
  """Where a set keeps what a record needs.

  Attributes:
    image: feature of the photograph.
    name: feature that names the image.
    mask: feature of the mask, if there is one: the values are classes; where there are
      objects, too, its colours are their ids.
    objects: feature of the objects, if there is one, with the "label" and "bbox" of each.
  """

  image: str
  name: str
  mask: str = ""
  objects: str = ""


SETS = {
  "oxford_iiit_pet": SetFormat("image", "file_name", mask="segmentation_mask"),
  "cityscapes": SetFormat("image_left", "image_id", mask="segmentation_label"),
  "coco/2017_panoptic": SetFormat(
    "image", "image/filename", mask="panoptic_image", objects="panoptic_objects"
  ),
  "coco": SetFormat("image", "image/filename", objects="objects"),
  "voc": SetFormat("image", "image/filename", objects="objects"),
}
# The trimap's border is a few pixels of either the pet or the background.
_TRIMAP = {1: 1, 2: BACKGROUND, 3: VOID}


class Opened(NamedTuple):
  """A split of a set.

  Attributes:
    where: its name, for messages.
    examples: of the set, with images as they are coded.
    layout: where they keep what a record needs.
    classes: class id by number in the set, 255 = void; a name where it is no class.
    class_names: class names by class id.
  """

  where: str
  examples: Sequence[Mapping[str, Any]]
  layout: SetFormat
  classes: Mapping[int, int | str]
  class_names: tuple[str, ...]


def load(
  name: str,
  split: str,
  class_names: Sequence[str],
  *,
  data_dir: str | None = None,
  label_names: Sequence[tuple[str, str]] = (),
) -> list[Record]:
  """Loads the records of a split; downloads and prepares the set at the first time.

  All masks are read for their boxes. The set is prepared as ArrayRecord; one that
  lies there as TFRecord has no random access and is refused.

  Args:
    name: name of the set, one of `SETS`, with a configuration or version if need be.
    split: a split of the set, slices included ("train[:80%]").
    class_names: class names by class id; the first is the background.
    data_dir: where sets lie, a folder or a bucket; None: the default of TensorFlow Datasets.
    label_names: see `config.data.label_names`; for sets with objects.

  Returns:
    Records in the order of the set.

  Raises:
    InputError: a set or split that is not known or cannot be prepared, a class that is
      not in it or not in `class_names`, or a mask with a value that is no class.
  """
  layout = _layout(name)
  # What the configuration has wrong is told before hours of download.
  classes: Mapping[int, int | str]
  classes = {} if layout.objects else _mask_classes(name, layout, class_names)
  builder = _prepared(name, data_dir)
  if layout.objects:
    known = builder.info.features[layout.objects]["label"].names
    classes = instances.class_table(known, class_names, label_names)
  examples = _examples(name, builder, split, layout)
  opened = Opened(f"{name}/{split}", examples, layout, classes, tuple(class_names))
  with ThreadPoolExecutor() as pool:
    return list(pool.map(partial(_record, opened), range(len(examples))))


def read_image(
  where: str, opened: Opened, index: int, size: tuple[int, int] | None, at_least=None
) -> np.ndarray:
  """Reads a photograph; uint8 [height, width, 3], see `images.read_image`."""
  content = opened.examples[index][opened.layout.image]
  return images.read_image(where, size, at_least, content=content)


def read_labels(where: str, opened: Opened, index: int) -> np.ndarray:
  """Reads a mask; uint8 [height, width], class ids, 255 = void.

  Raises:
    InputError: a value that is no class.
  """
  values, table = _mask(where, opened, opened.examples[index])
  return labels.translate(f"{where}: value", values, table)


def _layout(name: str) -> SetFormat:
  whole = name.partition(":")[0]  # what follows is the version
  for known in (whole, whole.partition("/")[0]):
    if known in SETS:
      return SETS[known]
  raise InputError(f"data.tfds_name is {name!r}, but must be one of {', '.join(SETS)}")


def _prepared(name: str, data_dir: str | None):
  """The builder of a set that lies there, prepared."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except ValueError as error:  # a configuration or version that is not there
    raise InputError(f"data.tfds_name is {name!r}: {error}") from error
  try:
    builder.download_and_prepare()
  except (OSError, AssertionError, tfds.download.DownloadError) as error:
    # The assertion is how a set says that its archives are to be put there by hand.
    raise InputError(f"{name} cannot be prepared: {error}") from error
  return builder


def _examples(name, builder, split, layout) -> Sequence[Mapping[str, Any]]:
  import tensorflow_datasets as tfds

  # Undecoded: a mask costs nothing until it is asked for, and JPEGs can be reduced.
  coded = [feature for feature in (layout.image, layout.mask) if feature]
  try:
    return builder.as_data_source(split, decoders=dict.fromkeys(coded, tfds.decode.SkipDecoding()))
  except NotImplementedError as error:
    raise InputError(
      f"{name} lies in {builder.data_dir} as TFRecord, which has no random access; prepare it "
      "as ArrayRecord in another data.root"
    ) from error
  except (KeyError, ValueError) as error:
    raise InputError(f"{name} has no split {split!r}: {error}") from error


def _mask_classes(name, layout, class_names) -> Mapping[int, int]:
  """Class id by value, of sets with masks alone."""
  if layout is SETS["cityscapes"]:
    return dict(enumerate(cityscapes.class_table(class_names).tolist()))
  if len(class_names) != 2:
    raise InputError(f"data.class_names is {tuple(class_names)}, but {name} has 2 classes")
  return _TRIMAP


def _mask(where, opened, example) -> tuple[np.ndarray, Mapping[int, int]]:
  """Values of a mask, and their class ids."""
  content = example[opened.layout.mask]
  if not opened.layout.objects:
    return images.read_index_image(where, content=content), opened.classes
  colors = images.read_color_labels(where, content=content).astype(np.int32)
  found, _, crowd = _objects(where, opened, example)
  ids = example[opened.layout.objects]["id"]
  table = {int(number): int(label) for number, label in zip(ids, found, strict=True)}
  table |= dict.fromkeys(np.asarray(ids)[crowd].tolist(), VOID)
  values = colors[..., 0] + (colors[..., 1] << 8) + (colors[..., 2] << 16)
  return values, {0: VOID, **table}  # 0 is not annotated


def _objects(where, opened, example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Class ids int32 [n], boxes float32 [n, 4] and crowd bool [n] of all objects."""
  found = example[opened.layout.objects]
  labels = [opened.classes[int(number)] for number in found["label"]]
  for label in labels:
    if isinstance(label, str):
      raise InputError(f"{where}: {instances.unknown_label(label, opened.class_names)}")
  classes = np.array(labels, np.int32)
  crowd = np.array(found.get("is_crowd", np.zeros(len(classes))), bool) | (classes == VOID)
  return classes, np.array(found["bbox"], np.float32).reshape(-1, 4), crowd


def _mask_boxes(where, opened, example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The same as `_objects`, from a mask."""
  values, table = _mask(where, opened, example)
  classes = labels.translate(f"{where}: value", values, table)
  if opened.layout is SETS["cityscapes"]:
    found, boxes, crowd = cityscapes.boxes_of_labels(values, opened.class_names)
  else:
    found, boxes = cityscapes.find_boxes(classes)
    found, boxes = found[found != VOID], boxes[found != VOID]
    crowd = np.zeros(len(found), bool)
  return found.astype(np.int32), (boxes / [*values.shape, *values.shape]).astype(np.float32), crowd


def _record(opened: Opened, index: int) -> Record:
  layout, example = opened.layout, opened.examples[index]
  name = example[layout.name]
  name = name.decode() if isinstance(name, bytes) else str(name)
  where = f"{opened.where}: image {name}"
  classes, boxes, crowd = (_objects if layout.objects else _mask_boxes)(where, opened, example)
  kept = classes != BACKGROUND
  size = images.image_size(where, content=example[layout.mask or layout.image])
  read = partial(read_image, where, opened, index, size)
  return Record(
    image_id=name,
    source=opened.where,
    size=size,
    boxes=boxes[kept],
    # The class of void teaches nothing, but has to be one.
    box_classes=np.where(classes == VOID, 1, classes)[kept].astype(np.int32),
    box_is_crowd=crowd[kept],
    classes=frozenset(classes[kept & ~crowd].tolist()),
    read_image=read,
    read_labels=partial(read_labels, where, opened, index) if layout.mask else None,
    read_reduced=read,
  )
