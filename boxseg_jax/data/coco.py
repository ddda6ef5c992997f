"""Source `coco`: boxes and masks from one `instances.json`.

Layout: `<root>/<split>/instances.json` and `<root>/<split>/images/`. A mask is a
list of polygons, a run-length code as a string or as a list of counts; an
annotation without one is a box only, and then its image is a box image. So files
that give masks of some images and boxes of others are read as they are.
"""

import reprlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from boxseg_jax.batch import VOID
from boxseg_jax.data import images, instances
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError

_LONGEST = 2_000_000  # pixels around a polygon, of which each takes pycocotools 100 bytes


Runs = tuple[np.ndarray, np.ndarray]


class Region(NamedTuple):
  """One object: its id in the file, its value in the label map, its COCO segmentation."""

  annotation: Any
  value: int
  segmentation: Any


def load(root: str, split: str, class_names: Sequence[str]) -> list[Record]:
  """Loads the records of a split; no pixels are read.

  Args:
    root: folder of the data set.
    split: name of the split, a folder in `root`.
    class_names: class names by class id; the first is the background.

  Returns:
    Records in the order of the file.

  Raises:
    InputError: see `instances.read_instances`.
  """
  folder = Path(root) / split
  annotated = instances.read_instances(folder, class_names)
  # In a file of boxes only, an image without objects is no mask image either.
  any_masks = any(_segmentation(a) for image in annotated for a in image.annotations)
  source = str(folder / "instances.json")
  return [_record(source, image, any_masks) for image in annotated]


def read_labels(
  source: str, image_id: str, size: tuple[int, int], regions: Sequence[Region]
) -> np.ndarray:
  """Paints the label map of an image: crowds first, then the largest object to the smallest.

  Args:
    source: path of the annotation file, for messages.
    image_id: name of the image, for messages.
    size: (height, width) in pixels.
    regions: the objects, in any order.

  Returns:
    uint8 [height, width], class ids, 255 where only a crowd lies.

  Raises:
    InputError: a segmentation that is no mask of this size.
  """
  where = f"{source}: image {image_id}"
  runs = [_region_runs(f"{where}: annotation {r.annotation}", size, r) for r in regions]
  areas = [int((ends - starts).sum()) for starts, ends in runs]
  order = sorted(range(len(runs)), key=lambda i: (regions[i].value != VOID, -areas[i]))
  columns = np.zeros(size[0] * size[1], np.uint8)  # COCO counts down the columns
  for index in order:
    for start, end in zip(*runs[index], strict=True):
      columns[start:end] = regions[index].value
  return np.ascontiguousarray(columns.reshape(size[::-1]).T)


def _record(source: str, image: instances.AnnotatedImage, any_masks: bool) -> Record:
  complete = all(_segmentation(a) or a.get("iscrowd") for a in image.annotations)
  regions = tuple(
    Region(
      a.get("id"),
      VOID if a.get("iscrowd") else a["class"],
      _segmentation(a) or [_rectangle(a["bbox"])],
    )
    for a in image.annotations
  )
  given = [index for index, a in enumerate(image.annotations) if _segmentation(a)]
  labels = partial(read_labels, source, image.name, image.size, regions)
  return Record(
    image_id=image.name,
    source=source,
    size=image.size,
    read_image=partial(images.read_image, image.path, image.size),
    read_labels=labels if any_masks and complete else None,
    read_reduced=partial(images.read_reduced, image.path, image.size),
    masked_boxes=frozenset(given),
    regions=tuple(regions[index] for index in given),
    **instances.box_fields(image),
  )


def _segmentation(annotation: dict) -> Any:
  """The mask of an annotation; nothing where it is absent or a list of empty polygons."""
  code = annotation.get("segmentation")
  return [part for part in code if part != []] if isinstance(code, list) else code


def _rectangle(box: Sequence[float]) -> list[float]:
  x, y, w, h = box
  return [x, y, x + w, y, x + w, y + h, x, y + h]


def checked_code(where: str, size: tuple[int, int], segmentation: Any) -> dict[str, Any]:
  """A mask of a file as pycocotools may be given it, which trusts whatever it is given.

  Args:
    where: begins the message.
    size: (height, width) of the image in pixels.
    segmentation: any of COCO's three kinds of mask.

  Returns:
    {"size", "counts"}, the counts as compressed bytes.

  Raises:
    InputError: no mask of this size.
  """
  counts = _counts(where, size, segmentation).tolist()
  return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)


def _region_runs(where: str, size: tuple[int, int], region: Region) -> Runs:
  """Starts and ends of an object's runs of pixels."""
  counts = _counts(where, size, region.segmentation)
  bounds = np.append(np.cumsum(counts), counts.sum())
  return bounds[:-1:2], bounds[1::2]


def _counts(where: str, size: tuple[int, int], code: Any) -> np.ndarray:
  """Lengths of background and object by turns, from any of COCO's three kinds of mask."""
  try:
    if isinstance(code, list):
      _require_polygons(where, size, code)
      code = coco_mask.merge(coco_mask.frPyObjects(code, *size))
    if tuple(code["size"]) != tuple(size):
      raise ValueError(f"its size is {reprlib.repr(code['size'])}, the image's {list(size)}")
    counts = code["counts"]
    if isinstance(counts, bytes | str):
      counts = decode_counts(counts)
    given, counts = counts, np.asarray(counts, np.int64)
    if counts.ndim != 1:
      raise ValueError(f"its counts have {counts.ndim} dimensions, not one")
    if not np.array_equal(counts, given):
      raise ValueError("its run lengths are no whole numbers")
    # Before they are added up: a sum beyond 64 bits could come out right.
    if counts.size and not 0 <= counts.min() <= counts.max() <= size[0] * size[1]:
      raise ValueError(f"its run lengths are {counts.min()} to {counts.max()}")
  except KeyError as error:
    raise InputError(f"{where}: the segmentation has no {error}") from error
  except (TypeError, ValueError, OverflowError) as error:
    raise InputError(f"{where}: the segmentation cannot be read: {error}") from error
  if counts.sum() != size[0] * size[1]:
    raise InputError(
      f"{where}: the mask's run lengths add up to {counts.sum()} pixels, but the image of "
      f"{size[1]} x {size[0]} has {size[0] * size[1]}"
    )
  return counts


def decode_counts(text: str | bytes) -> np.ndarray:
  """Run lengths from COCO's compressed text.

  pycocotools decodes only to whole images, 50 times slower for a photograph with
  hundreds of small objects, and hangs or reads past the end on broken text.
  Numbers are written in groups of 5 bits with a continuation bit, lowest first,
  signed; from the fourth on they are differences to the last but one
  (cocoapi, common/maskApi.c, rleFrString).

  Args:
    text: the "counts" of a run-length code.

  Returns:
    int64 [n], lengths of background and object runs by turns.

  Raises:
    ValueError: not such a text.
  """
  raw = np.frombuffer(text if isinstance(text, bytes) else text.encode(), np.uint8)
  groups = raw.astype(np.int64) - 48
  last = groups & 32 == 0
  ends = np.flatnonzero(last)
  if not groups.size or groups.min() < 0 or groups.max() > 63 or not last[-1]:
    raise ValueError("broken run-length code")
  starts = np.append(0, ends[:-1] + 1)
  lengths = ends + 1 - starts
  if lengths.max() > 7:
    raise ValueError("broken run-length code")
  shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
  numbers = np.add.reduceat((groups & 31) << shifts, starts)
  numbers -= np.where(groups[ends] & 16, 1 << 5 * lengths, 0)
  numbers[1::2] = np.cumsum(numbers[1::2])
  numbers[2::2] = np.cumsum(numbers[2::2])
  return numbers


def _require_polygons(where: str, size: tuple[int, int], polygons: list) -> None:
  for polygon in polygons:
    # Four numbers would silently be taken for a box.
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
      raise InputError(
        f"{where}: {reprlib.repr(polygon)} is no polygon [x1, y1, x2, y2, x3, y3, ...] of at "
        "least three points"
      )
    # pycocotools takes memory by the length of the edges, and as much as there is for infinity.
    images.require_near(where, polygon, size)
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    length = np.abs(points - np.roll(points, 1, axis=0)).sum()
    if length > _LONGEST:
      raise InputError(
        f"{where}: a polygon of {len(points)} points is {length:.3g} pixels long, more than the "
        f"{_LONGEST:,} that are drawn"
      )
