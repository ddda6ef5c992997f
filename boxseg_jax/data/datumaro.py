"""Source `datumaro`: what annotation tools export, through the library of that name.

Pascal VOC, LabelMe, CVAT, Roboflow, Mapillary, ADE20K, KITTI, Open Images and more (`pip install
".[formats]"`), and what `formats` adds: YOLO with polygons, Supervisely. `data.root` is the folder
of the set, a split one of its subsets ("default" where it has none).

How boxes and masks belong together is seen from where they lie, not from the groups of the
library, which mean another thing in each format: a box has a mask if the masks of its class
inside it fit it, and a mask needs a box of its own if the boxes of its class do not cover it.
An image is a mask image if every box of an object has a mask.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.data import cityscapes, coco, formats, images
from boxseg_jax.data.instances import class_table, unknown_label
from boxseg_jax.data.records import Record, require_inside
from boxseg_jax.errors import InputError

_FITS = 0.5  # intersection over union; boxes of tools are loose, neighbours rarely reach it
_COVERED = 0.95  # share of the pixels; polygons and boxes are rounded in different ways
_ROUNDING = 0.01  # whole pixels come back a little off from shares of the image
_DEPTH = 2  # folders that an archive may add around a set
_CROWDS = ("is_crowd", "is_group_of")  # of COCO, of Open Images
_MISREAD = {  # formats with which the library (1.13) would teach something else
  "roboflow_create_ml": "the middle of a box would be taken for its corner; export it as COCO",
}


class Shape(NamedTuple):
  """One annotation.

  Attributes:
    label: class id, 255 = void.
    is_crowd: objects not told apart, or void.
    box: (xmin, ymin, xmax, ymax) in pixels; None where the mask says it.
    region: the mask, its value to paint; None for a box.
  """

  label: int
  is_crowd: bool
  box: tuple[float, float, float, float] | None
  region: coco.Region | None


def load(
  root: str,
  split: str,
  class_names: Sequence[str],
  *,
  dataset_format: str = "auto",
  label_names: Sequence[tuple[str, str]] = (),
) -> list[Record]:
  """Loads the records of a split; masks are read for their boxes.

  Args:
    root: folder of the data set.
    split: name of a subset.
    class_names: class names by class id; the first is the background.
    dataset_format: name of a format in datumaro, or "auto": it is recognised, and refused
      where several fit.
    label_names: see `config.data.label_names`.

  Returns:
    Records by name. Those of formats that keep images in an archive (arrow, TFRecord)
    cannot be pickled.

  Raises:
    InputError: datumaro is not installed, no or another format or one that it misreads, no
      such subset, a label without a class, an annotation without an area, or anything that
      cannot be read.
  """
  items, labels = _open(root, split, dataset_format)
  table = class_table(labels, class_names, label_names)
  items = sorted(items, key=lambda item: item.id)
  for item in items:
    _require_own(root, item)
  shapes = [_shapes(f"{root}: image {item.id}", item, table, class_names) for item in items]
  # In a set of boxes only, an image without objects is no mask image either.
  any_masks = any(shape.region for own in shapes for shape in own)
  return [_record(root, item, own, any_masks) for item, own in zip(items, shapes, strict=True)]


def _require_own(root: str, item: Any) -> None:
  """An image in the set's own folder, of a size that can be; told before anything is decoded."""
  where = f"{root}: image {item.id}"
  require_inside(where, str(item.id))
  path = getattr(item.media, "path", None)
  # By name, or with links followed, as some readers give it.
  ways = (os.path.abspath, os.path.realpath)
  if path and not any(Path(way(path)).is_relative_to(way(root)) for way in ways):
    raise InputError(f"{where}: its photograph {path} lies outside of the data set's folder")
  if getattr(item.media, "has_size", False):
    height, width = item.media.size
    images.require_possible_size(where, (int(height), int(width)))


def read_media(
  where: str, media: Any, size: tuple[int, int], at_least: tuple[int, int] | None = None
) -> np.ndarray:
  """Reads a photograph from an archive; uint8 [height, width, 3], see `images.read_image`."""
  return images.read_image(where, size, at_least, content=media.bytes)


def fits(box: Sequence[float], inside: np.ndarray) -> bool:
  """Whether the bounds of what a mask has inside a box are about the box.

  Args:
    box: (xmin, ymin, xmax, ymax) in pixels.
    inside: bool [height, width].
  """
  rows, columns = _window(box, inside.shape)
  part = inside[rows, columns]
  if not part.any():
    return False
  origin = [rows.start, columns.start, rows.start, columns.start]
  ymin, xmin, ymax, xmax = np.add(_bounds(part), origin)
  high, wide = min(ymax, box[3]) - max(ymin, box[1]), min(xmax, box[2]) - max(xmin, box[0])
  area = (box[2] - box[0]) * (box[3] - box[1])
  return bool(high * wide >= _FITS * ((ymax - ymin) * (xmax - xmin) + area - high * wide))


def _open(root: str, split: str, dataset_format: str) -> tuple[list, list[str]]:
  """Items of a subset, and the names of the labels."""
  try:
    import datumaro
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.environment import Environment
  except ImportError as error:
    raise InputError(
      f'data.source=datumaro needs the extra "formats": pip install "boxseg_jax[formats]" ({error})'
    ) from error
  if not Path(root).is_dir():
    raise InputError(f"{root}: no such folder (data.root)")
  own = formats.find(root, dataset_format)
  if own:
    return formats.READERS[own](root, split)
  environment = Environment()
  name = _format_of(environment, root, dataset_format)
  if name in _MISREAD:
    raise InputError(f"{root}: datumaro reads {name} wrong: {_MISREAD[name]}")
  try:
    dataset = datumaro.Dataset.import_from(root, name, env=environment)
    subsets = {key: list(subset) for key, subset in dataset.subsets().items()}
    categories = dataset.categories().get(AnnotationType.label, [])
  except Exception as error:  # a format's reader raises whatever a broken file makes it raise
    raise InputError(f"{root}: cannot be read as {name}: {_told(error)}") from error
  if split not in subsets:
    raise InputError(f"{root}: there is no subset {split!r}, but {', '.join(sorted(subsets))}")
  return subsets[split], [label.name for label in categories]


def _format_of(environment: Any, root: str, dataset_format: str) -> str:
  known = sorted({*environment.importers, *formats.READERS})
  if dataset_format != "auto":
    if dataset_format not in known:
      nearest = difflib.get_close_matches(dataset_format, known, n=3, cutoff=0.0)
      raise InputError(
        f"data.format is {dataset_format!r}, which datumaro does not read (nearest: "
        f"{', '.join(nearest)})"
      )
    return dataset_format
  found = environment.detect_dataset(root, depth=_DEPTH)
  if "voc" in found:  # reads whatever the formats of single tasks do
    return "voc"
  if len(found) != 1:
    what = "several formats fit it" if found else "its format is not recognised"
    raise InputError(f"{root}: {what}; data.format names it: {', '.join(found or known)}")
  return found[0]


def _told(error: BaseException | None) -> str:
  """The message of an error and of what it comes from, where the reason often is."""
  reasons = []
  while error is not None:
    reasons.append(str(error) or type(error).__name__)
    error = error.__cause__
  return ": ".join(reasons)


def _shapes(where: str, item: Any, table: Mapping, class_names: Sequence[str]) -> list[Shape]:
  found = []
  for number, one in enumerate(item.annotations):
    kind = one.type.name
    if kind in ("label", "caption"):  # of the whole image
      continue
    named = f"{where}: annotation {number} ({kind})"
    label = table.get(getattr(one, "label", None))
    if label is None:
      raise InputError(f"{named}: has no label")
    if isinstance(label, str):
      raise InputError(f"{named}: {unknown_label(label, class_names)}")
    if label == BACKGROUND:
      continue
    is_crowd = label == VOID or any(one.attributes.get(name) for name in _CROWDS)
    found.append(_shape(named, one, kind, label, is_crowd))
  return found


def _shape(where: str, one: Any, kind: str, label: int, is_crowd: bool) -> Shape:
  value = VOID if is_crowd else label
  if kind in ("bbox", "rotated_bbox"):
    x, y, w, h = map(float, one.get_bbox())
    return Shape(label, is_crowd, (x, y, x + w, y + h), None)
  if kind == "mask":
    return Shape(label, is_crowd, None, coco.Region(one.id, value, _encoded(where, one)))
  if kind in ("polygon", "ellipse"):
    points = [float(number) for number in one.as_polygon()]
    return Shape(label, is_crowd, None, coco.Region(one.id, value, [points]))
  raise InputError(
    f"{where}: covers no area, so it says nothing of pixels; data.label_names can leave its "
    "label out, as background"
  )


def _encoded(where: str, mask: Any) -> dict[str, Any]:
  code = getattr(mask, "rle", None)
  if isinstance(code, dict):  # decoded by `coco`, which checks it
    return code
  try:
    return coco_mask.encode(np.asfortranarray(mask.image, dtype=np.uint8))
  except Exception as error:  # the file is read only now, by the format's reader
    raise InputError(f"{where}: the mask cannot be read: {_told(error)}") from error


def _record(source: str, item: Any, shapes: Sequence[Shape], any_masks: bool) -> Record:
  where = f"{source}: image {item.id}"
  path = getattr(item.media, "path", None)
  size = _size(where, item.media, path)
  boxes, regions, without = _describe(source, item.id, size, shapes)
  complete = all(box.is_crowd for box in without)
  crowd = np.array([box.is_crowd for box in boxes], bool)
  # The class of void teaches nothing, but has to be one.
  classes = np.array([1 if box.label == VOID else box.label for box in boxes], np.int32)
  corners = np.array([box.box for box in boxes], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
  read = partial(images.read_image, path, size) if path else None
  read = read or partial(read_media, where, item.media, size)
  return Record(
    image_id=item.id,
    source=source,
    size=size,
    boxes=(corners / [*size, *size]).astype(np.float32),
    box_classes=classes,
    box_is_crowd=crowd,
    classes=frozenset(classes[~crowd].tolist()),
    read_image=read,
    read_labels=partial(coco.read_labels, source, item.id, size, tuple(regions))
    if any_masks and complete
    else None,
    read_reduced=read,
    masked_boxes=frozenset(n for n, box in enumerate(boxes) if not any(box is w for w in without)),
    regions=tuple(regions),
  )


def _size(where: str, media: Any, path: str | None) -> tuple[int, int]:
  """(height, width) as annotated, or else of the file."""
  if getattr(media, "has_size", False):
    height, width = media.size
    return int(height), int(width)
  if path:
    return images.image_size(path)
  if not getattr(media, "bytes", None):
    raise InputError(f"{where}: its photograph is not in the set")
  return images.image_size(where, media.bytes)


def _describe(source, image_id, size, shapes) -> tuple[list[Shape], list[coco.Region], list[Shape]]:
  """All boxes of an image, what its label map is painted of, and the boxes without a mask."""
  boxes, regions, maskless = [], [], []
  for label, is_crowd in sorted({(shape.label, shape.is_crowd) for shape in shapes}):
    own = [shape for shape in shapes if (shape.label, shape.is_crowd) == (label, is_crowd)]
    drawn = [shape.region for shape in own if shape.region]
    masks = [coco.read_labels(source, image_id, size, [one._replace(value=1)]) > 0 for one in drawn]
    given = [shape for shape in own if shape.box]
    union = np.any([np.zeros(size, bool), *masks], axis=0)
    without = [shape for shape in given if not fits(shape.box, union)]
    maskless += without
    boxes += given
    for box in _missing_boxes([shape.box for shape in given], masks, size, is_crowd):
      boxes.append(Shape(label, is_crowd, box, None))
    regions += drawn
    # A crowd of which only the box is known is void all over its box.
    regions += [coco.Region(None, VOID, [_corners(shape.box)]) for shape in without if is_crowd]
  return boxes, regions, maskless


def _missing_boxes(given, masks, size, is_crowd) -> list[tuple[int, int, int, int]]:
  """Boxes (xmin, ymin, xmax, ymax) of masks that the boxes so far do not cover."""
  covered = np.zeros(size, bool)
  for box in given:
    covered[_window(box, size)] = True
  found = []
  # The small ones first: a mask of all objects of a class needs no box beside theirs.
  for inside in sorted(masks, key=np.count_nonzero):
    if (inside & covered).sum() >= _COVERED * inside.sum():
      continue
    parts = cityscapes.split_region(inside) if is_crowd else [_bounds(inside)]
    for ymin, xmin, ymax, xmax in parts:
      covered[ymin:ymax, xmin:xmax] = True
      found.append((xmin, ymin, xmax, ymax))
  return found


def _bounds(inside: np.ndarray) -> tuple[int, int, int, int]:
  """(ymin, xmin, ymax, xmax) of what is True, the last two one past the end."""
  rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
  return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def _window(box: Sequence[float], size: tuple[int, int]) -> tuple[slice, slice]:
  """Rows and columns of the pixels that a box touches."""
  xmin, ymin, xmax, ymax = np.nan_to_num(box)
  height, width = size
  rows = np.clip([np.floor(ymin + _ROUNDING), np.ceil(ymax - _ROUNDING)], 0, height).astype(int)
  columns = np.clip([np.floor(xmin + _ROUNDING), np.ceil(xmax - _ROUNDING)], 0, width).astype(int)
  return slice(*rows), slice(*columns)


def _corners(box: Sequence[float]) -> list[float]:
  """A box (xmin, ymin, xmax, ymax) as a polygon."""
  xmin, ymin, xmax, ymax = box
  return [xmin, ymin, xmax, ymin, xmax, ymax, xmin, ymax]
