"""Masks of boxes -> files that annotation tools and other trainings read.

A set with its masks is a COCO document here: the file itself where the source has one, so that all
else in it stays as it is, and one made of the records where it has none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import contourpy
import numpy as np
from ml_collections import ConfigDict
from pycocotools import mask as coco_mask

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.data import coco
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError

_OF_INSTANCES = ("coco", "labels")  # sources that are such a file


class MadeMask(NamedTuple):
  """The mask that was made of a box.

  Attributes:
    code: COCO's run-length code of the image, {"size", "counts"}.
    certainty: in [0, 1].
  """

  code: dict[str, Any]
  certainty: float


def wanted(record: Record) -> list[int]:
  """Positions of the boxes that have no mask yet; crowds have no mask of an object."""
  if record.read_labels is not None:
    return []
  return [
    index
    for index in np.flatnonzero(~record.box_is_crowd).tolist()
    if index not in record.masked_boxes
  ]


def encode(size: tuple[int, int], top: int, left: int, pixels: np.ndarray) -> dict[str, Any]:
  """COCO's run-length code of a mask, without painting the whole image.

  Args:
    size: (height, width) of the image in pixels.
    top: first row of `pixels`.
    left: first column.
    pixels: bool [rows, columns]; all beyond is False.

  Returns:
    {"size": [height, width], "counts": text}, as pycocotools encodes the whole mask.
  """
  height, width = size
  sides = np.diff(np.pad(pixels.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
  starts, ends = (
    (left + column) * height + top + row
    for column, row in (np.nonzero(sides == step) for step in (1, -1))
  )
  # A run that ends with a column goes on in the next one.
  apart = starts[1:] != ends[:-1]
  starts = np.concatenate([starts[:1], starts[1:][apart]])
  ends = np.concatenate([ends[:-1][apart], ends[-1:]])
  bounds = np.stack([starts, ends], axis=1).ravel()
  counts = np.diff(np.concatenate([[0], bounds, [height * width]]))
  counts = counts[:-1] if counts[-1] == 0 else counts
  code = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
  return {"size": [height, width], "counts": code["counts"].decode()}


def polygons(code: Mapping[str, Any]) -> list[list[float]]:
  """The outlines of a mask, each [x1, y1, x2, y2, ...] in pixels.

  Args:
    code: as of `encode`.

  Returns:
    One for each connected part, halfway between pixels in and out; holes are filled, as COCO's
    polygons have none.
  """
  x, y, width, height = (int(side) for side in coco_mask.toBbox(dict(code)))
  mask = coco_mask.decode(dict(code))[y : y + height, x : x + width]
  outlines = contourpy.contour_generator(
    # Pixels have their centres at 0.5.
    x=np.arange(-1, width + 1) + x + 0.5,
    y=np.arange(-1, height + 1) + y + 0.5,
    z=np.pad(mask, 1).astype(np.float64),
    fill_type=contourpy.FillType.OuterOffset,
  ).filled(0.5, 2.0)
  return [
    _straightened(points[: offsets[1] - 1]).ravel().tolist()
    for points, offsets in zip(*outlines, strict=True)
  ]


def _straightened(points):
  """Without the points between others on one line."""
  before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
  turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
  return points[turns]


class Document(NamedTuple):
  """A set as COCO has it.

  Attributes:
    content: what its file holds.
    boxes: by image and position of the box in its record, the annotations of boxes: entries of
      `content`, in which masks can be put.
  """

  content: dict[str, Any]
  boxes: dict[str, dict[int, dict[str, Any]]]


def document(config_data: ConfigDict, split: str, records: Sequence[Record]) -> Document:
  """The set before masks are added.

  Args:
    config_data: `config.data`.
    split: name of the split, as it was read.
    records: of it.

  Returns:
    The split's `instances.json` as it is (sources coco and labels), or one made of the records:
    their names, boxes, crowds, and masks where they are known one by one.
  """
  if config_data.source not in _OF_INSTANCES:
    return _made_document(config_data.class_names, records)
  path = Path(config_data.root) / split.partition("[")[0] / "instances.json"
  content = json.loads(path.read_text(encoding="utf-8"))
  names = {entry["id"]: entry["file_name"] for entry in content["images"]}
  boxes: dict[str, dict] = {name: {} for name in names.values()}
  for entry in content["annotations"]:
    own = boxes[names[entry["image_id"]]]
    own[len(own)] = entry  # records have their boxes in the order of the file
  return Document(content, boxes)


def _made_document(class_names, records):
  categories = [{"id": number, "name": name} for number, name in enumerate(class_names) if number]
  entries: list[dict] = []
  annotations: list[dict] = []
  boxes: dict[str, dict] = {}
  for number, record in enumerate(records, start=1):
    height, width = record.size
    entries.append({"id": number, "file_name": record.image_id, "height": height, "width": width})
    own = boxes[record.image_id] = {}
    for index, entry in [*_box_annotations(record), *_mask_annotations(record)]:
      annotations.append({"id": len(annotations) + 1, "image_id": number} | entry)
      own |= {} if index is None else {index: annotations[-1]}
  return Document({"images": entries, "annotations": annotations, "categories": categories}, boxes)


def _box_annotations(record):
  """Of the boxes that have no mask of their own, each with its position."""
  pixels = (record.boxes.astype(np.float64) * np.tile(record.size, 2)).round(3).tolist()
  for index, (ymin, xmin, ymax, xmax) in enumerate(pixels):
    if index in record.masked_boxes:
      continue
    width, height = round(xmax - xmin, 3), round(ymax - ymin, 3)
    yield (
      index,
      {
        "category_id": int(record.box_classes[index]),
        "bbox": [xmin, ymin, width, height],
        "area": round(width * height, 3),
        "iscrowd": int(record.box_is_crowd[index]),
      },
    )


def _mask_annotations(record):
  for region in record.regions:
    where = f"{record.source}: image {record.image_id}: annotation {region.annotation}"
    code = coco.checked_code(where, record.size, region.segmentation)
    code = {"size": list(code["size"]), "counts": code["counts"].decode()}
    yield (
      None,
      {
        "category_id": 1 if region.value == VOID else int(region.value),
        "bbox": coco_mask.toBbox(code).tolist(),
        "area": int(coco_mask.area(code)),
        "iscrowd": int(region.value == VOID),
        "segmentation": code,
      },
    )


def put_masks(annotations: Mapping[int, dict], made: Mapping[int, MadeMask], as_polygons: bool):
  """Adds masks to an image's annotations; one that has a mask stays as it is.

  Args:
    annotations: of `Document.boxes`, changed in place.
    made: by position of the box.
    as_polygons: polygons in place of run-length codes.
  """
  for index, (code, certainty) in made.items():
    annotations[index]["segmentation"] = polygons(code) if as_polygons else dict(code)
    annotations[index]["score"] = round(certainty, 4)


def label_map(record: Record, made: Mapping[int, MadeMask]) -> np.ndarray:
  """The masks of an image, given and made, as one map: small objects lie on large ones.

  Args:
    record: of the image.
    made: by position of the box.

  Returns:
    uint8 [height, width], class ids, 255 = void (crowds). The given map where one is complete.
  """
  if record.read_labels is not None:
    return record.read_labels()
  regions = list(record.regions)
  for index, mask in made.items():
    regions.append(coco.Region(f"of box {index}", int(record.box_classes[index]), mask.code))
  for index in np.flatnonzero(record.box_is_crowd).tolist():
    if index not in record.masked_boxes:
      regions.append(coco.Region(f"of box {index}", VOID, [_corners(record, index)]))
  if not regions:
    return np.full(record.size, BACKGROUND, np.uint8)
  return coco.read_labels(record.source, record.image_id, record.size, regions)


def _corners(record, index):
  ymin, xmin, ymax, xmax = record.boxes[index].astype(np.float64) * np.tile(record.size, 2)
  return [xmin, ymin, xmax, ymin, xmax, ymax, xmin, ymax]


def exporters() -> list[str]:
  """Names of the formats that datumaro writes.

  Raises:
    InputError: datumaro is not installed.
  """
  try:
    from datumaro.components.environment import Environment
  except ImportError as error:
    raise InputError(
      'label.format=datumaro needs the extra "formats": pip install "boxseg_jax[formats]" '
      f"({error})"
    ) from error
  return sorted(Environment().exporters)


# Formats that know polygons only; the others get masks, and boxes for those that want them.
_OF_POLYGONS = ("cvat", "label_me")


def export(
  content: Mapping[str, Any], records: Sequence[Record], folder: str | Path, exporter: str
) -> None:
  """Writes a set in a format of datumaro, its photographs too.

  Args:
    content: of a `Document`, with its masks.
    records: of the same split.
    folder: for the set.
    exporter: one of `exporters`.

  Raises:
    InputError: datumaro cannot write it.
  """
  import datumaro

  labels = {entry["id"]: number for number, entry in enumerate(content["categories"])}
  by_image: dict[str, list] = {entry["file_name"]: [] for entry in content["images"]}
  names = {entry["id"]: entry["file_name"] for entry in content["images"]}
  for entry in content["annotations"]:
    by_image[names[entry["image_id"]]].append(entry)
  items = [
    _item(datumaro, record, by_image[record.image_id], labels, exporter in _OF_POLYGONS)
    for record in records
  ]
  categories = [entry["name"] for entry in content["categories"]]
  try:
    dataset = datumaro.Dataset.from_iterable(
      items, categories=categories, media_type=datumaro.Image
    )
    dataset.export(str(folder), exporter, save_media=True)
  except Exception as error:  # a format's writer raises whatever it likes
    raise InputError(f"{folder}: cannot be written as {exporter}: {error}") from error


def _item(datumaro, record, entries, labels, as_polygons):
  """An image with its annotations, as datumaro has them."""
  annotations = []
  for group, entry in enumerate(entries, start=1):
    about = {
      "label": labels[entry["category_id"]],
      "id": group,
      "group": group,
      "attributes": {"is_crowd": bool(entry.get("iscrowd"))}
      | ({"score": entry["score"]} if "score" in entry else {}),
    }
    annotations += _shapes(datumaro, record, entry, about, as_polygons)
  media = _media(datumaro, record)
  name = str(Path(record.image_id).with_suffix(""))
  return datumaro.DatasetItem(id=name, subset="default", media=media, annotations=annotations)


def _media(datumaro, record):
  """The photograph's file, so that it is copied as it is; or its pixels, where it has none."""
  path = getattr(record.read_image, "args", (None,))[0]
  if isinstance(path, str) and Path(path).is_file():
    return datumaro.Image.from_file(path=path, size=record.size)
  return datumaro.Image.from_numpy(data=record.read_image, size=record.size, ext=".png")


def _shapes(datumaro, record, entry, about, as_polygons):
  code = entry.get("segmentation")
  boxes = [datumaro.Bbox(*entry["bbox"], **about)]
  if not code:
    return boxes
  where = f"{record.source}: image {record.image_id}: annotation {entry.get('id')}"
  code = coco.checked_code(where, record.size, code)
  if as_polygons:
    return [datumaro.Polygon(points, **about) for points in polygons(code)]
  mask = coco_mask.decode(code).astype(bool)
  return [*boxes, datumaro.Mask(mask, **about)]
