"""Formats that datumaro does not read, or not in full, as items of datumaro.

- YOLO with a `data.yaml`, as Ultralytics and Roboflow write it: boxes, polygons, or both. The
  library leaves out images with polygons, and those without a file of labels, and does not say so.
- Supervisely: a project's `meta.json`, with `ann/` and `img/` in a folder for each split.
"""

import base64
import io
import os
import reprlib
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from boxseg_jax import files
from boxseg_jax.data import images
from boxseg_jax.errors import InputError

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_CORNERS = 9  # fields of a row of four corners
_PIXEL_BYTES, _HEADER_BYTES = 8, 1 << 16  # of a PNG, at most
_SPLITS = ("train", "val", "test")


def find(root: str, name: str) -> str | None:
  """Which of the formats here it is.

  Args:
    root: folder of the data set.
    name: `data.format`.

  Returns:
    A key of `READERS`, or None: it is for datumaro.
  """
  if name in ("auto", "yolo", "roboflow_yolo") and (Path(root) / "data.yaml").is_file():
    return "yolo"
  if name == "auto" and (Path(root) / "meta.json").is_file() and any(Path(root).glob("*/ann")):
    return "supervisely"
  return name if name in READERS and name != "yolo" else None


def read_yolo(root: str, split: str, *, corners: str) -> tuple[list, list[str]]:
  """Reads a set with a `data.yaml`.

  A row of four corners is a polygon, but also how oriented boxes are written. Where a split
  has no other rows of corners, it has to be told which.

  Args:
    root: folder with `data.yaml`.
    split: "train", "val" or "test", as in that file.
    corners: what rows of four corners are: "polygon", "box" or "unknown".

  Returns:
    Items of datumaro, and the names of the labels by their number.

  Raises:
    InputError: a file that is missing or cannot be read, or a row that is no object.
  """
  path = Path(root) / "data.yaml"
  content = _read_yaml(path)
  names = content.get("names")
  names = dict(enumerate(names)) if isinstance(names, list) else names
  if not isinstance(names, dict) or set(names) != set(range(len(names))):
    raise InputError(
      f'{path}: "names" is {reprlib.repr(names)}, not the names of the classes by number'
    )
  photos = _photos(path, content, split)
  rows = [_rows(photo, len(names)) for photo in photos]
  lengths = {len(row) for own in rows for row in own if len(row) > 5}
  if corners == "unknown" and lengths == {_CORNERS}:
    raise InputError(
      f"{path}: every row of corners in {split} has four, which may be polygons or oriented "
      "boxes; data.format=yolo_segment or yolo_obb says which"
    )
  items = [
    _yolo_item(root, split, photo, own, corners) for photo, own in zip(photos, rows, strict=True)
  ]
  return items, [str(names[number]) for number in range(len(names))]


def read_supervisely(root: str, split: str) -> tuple[list, list[str]]:
  """Reads a project of Supervisely.

  Args:
    root: folder with `meta.json`.
    split: name of a folder in it, with `ann` and `img`.

  Returns:
    Items of datumaro, and the names of the labels by their number.

  Raises:
    InputError: a file that is missing or cannot be read, or an object of another kind than
      polygon, bitmap and rectangle.
  """
  meta = files.read_json(Path(root) / "meta.json")
  try:
    names = [entry["title"] for entry in meta["classes"]]
  except (KeyError, TypeError) as error:
    raise InputError(f"{root}/meta.json: its classes have no titles ({error})") from error
  paths = sorted((Path(root) / split / "ann").glob("*.json"))
  if not paths:
    found = ", ".join(sorted(folder.parent.name for folder in Path(root).glob("*/ann")))
    raise InputError(f"{root}: there is no {split}/ann with files, but {found}")
  return [_supervisely_item(path, split, names) for path in paths], names


def _read_yaml(path: Path) -> dict:
  try:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
    raise InputError(f"{path}: cannot be read ({error})") from error
  if not isinstance(content, dict):
    raise InputError(f"{path}: cannot be read (it holds no keys)")
  return content


def _photos(path: Path, content: dict, split: str) -> list[Path]:
  """The photographs of a split, of one folder or several."""
  given = content.get(split)
  if not given:
    known = ", ".join(name for name in _SPLITS if content.get(name))
    raise InputError(f"{path}: there is no split {split!r}, but {known}")
  folders = given if isinstance(given, list) else [given]
  found = [photo for name in folders for photo in _listed(path, content, str(name))]
  if not found:
    raise InputError(f"{path}: {split} ({given}) holds no image")
  return found


def _listed(path: Path, content: dict, name: str) -> list[Path]:
  root = path.parent
  # "path" is where the set lay when it was made, and Roboflow's folders are off by one level.
  given = [root / str(content.get("path", "")) / name, root / name, root / name.lstrip("./")]
  # Where the file leads out of the set's folder it is not followed.
  for place in [place for place in map(_normal, given) if place.is_relative_to(_normal(root))]:
    if place.is_dir():
      found = sorted(one for one in place.rglob("*") if one.suffix.lower() in _IMAGES)
      return [_inside(place, root, one) for one in found]
    if place.is_file():
      lines = place.read_text(encoding="utf-8", errors="replace").split("\n")
      named = [_normal(place.parent / line.strip()) for line in lines if line.strip()]
      return [_inside(place, root, one) for one in named]
  raise InputError(f"{path}: there is no folder or list {name} in {root}")


def _normal(path: Path) -> Path:
  """Absolute, without ".."; links are left as they are."""
  return Path(os.path.abspath(path))


def _inside(source: Path, root: Path, photo: Path) -> Path:
  """A photograph's path below the root as that was given."""
  if not photo.is_relative_to(_normal(root)):
    raise InputError(f"{source}: {photo} lies outside of the data set's folder, {root}")
  return root / photo.relative_to(_normal(root))


def _rows(photo: Path, num_labels: int) -> list[list[float]]:
  """The numbers of each row of labels; none where there is no file."""
  parts = list(photo.parts)
  if "images" in parts:
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
  path = Path(*parts).with_suffix(".txt")
  lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
  found = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    row = _numbers(f"{path}: line {number}", line)
    if not (row[0].is_integer() and 0 <= row[0] < num_labels):
      raise InputError(f"{path}: line {number}: class {row[0]:g} is none of the {num_labels}")
    found.append(row)
  return found


def _numbers(where: str, line: str) -> list[float]:
  try:
    row = [float(field) for field in line.split()]
  except ValueError as error:
    raise InputError(f"{where}: {error}") from error
  if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0):
    raise InputError(
      f"{where}: {len(row)} numbers are neither a box (class, x, y, width, height) nor a polygon "
      "(class, x1, y1, x2, y2, x3, y3, ...)"
    )
  return row


def _yolo_item(root: str, split: str, photo: Path, rows: Sequence, corners: str) -> Any:
  import datumaro

  size = images.image_size(str(photo))
  media = datumaro.Image.from_file(path=str(photo), size=size)
  scale = np.array(size[::-1])
  return datumaro.DatasetItem(
    id=photo.relative_to(root).as_posix() if photo.is_relative_to(root) else str(photo),
    subset=split,
    media=media,
    annotations=[_yolo_object(datumaro, row, scale, corners) for row in rows],
  )


def _yolo_object(datumaro: Any, row: Sequence[float], scale: np.ndarray, corners: str) -> Any:
  label, points = int(row[0]), np.reshape(row[1:], (-1, 2)) * scale
  if len(row) == 5:
    centre, size = points
    return datumaro.Bbox(*(centre - size / 2), *size, label=label)
  if len(row) == _CORNERS and corners == "box":
    low, high = points.min(axis=0), points.max(axis=0)
    return datumaro.Bbox(*low, *(high - low), label=label)
  return datumaro.Polygon(points.ravel().tolist(), label=label)


def _supervisely_item(path: Path, split: str, names: Sequence[str]) -> Any:
  import datumaro

  content = files.read_json(path)
  try:
    size = int(content["size"]["height"]), int(content["size"]["width"])
    images.require_possible_size("the image", size)
    found = [
      _supervisely_object(datumaro, one, size, names.index(one["classTitle"]))
      for one in content["objects"]
    ]
  except KeyError as error:
    raise InputError(f"{path}: there is no {error}") from error
  except Exception as error:  # whatever a broken bitmap makes its decoder raise
    raise InputError(f"{path}: an object cannot be read: {error}") from error
  photo = path.parents[1] / "img" / path.stem
  media = datumaro.Image.from_file(path=str(photo), size=size)
  return datumaro.DatasetItem(id=photo.name, subset=split, media=media, annotations=found)


def _supervisely_object(datumaro: Any, one: dict, size: tuple[int, int], label: int) -> Any:
  kind = one["geometryType"]
  if kind == "rectangle":
    corners = np.array(one["points"]["exterior"], np.float64)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return datumaro.Bbox(*low, *(high - low + 1), label=label)  # of pixels, the last included
  if kind == "polygon":
    return datumaro.Mask(_drawn(one["points"], size), label=label)
  if kind == "bitmap":
    return datumaro.Mask(_pasted(one["bitmap"], size), label=label)
  raise ValueError(f"its geometryType is {kind!r}, not polygon, bitmap or rectangle")


def _drawn(points: dict, size: tuple[int, int]) -> np.ndarray:
  """A polygon with its holes, as the pixels that its corners name are in it."""
  for ring in (points["exterior"], *points.get("interior", [])):
    images.require_near("its corners", ring, size)
  canvas = Image.new("1", size[::-1])
  draw = ImageDraw.Draw(canvas)
  draw.polygon([tuple(point) for point in points["exterior"]], fill=1)
  for hole in points.get("interior", []):
    draw.polygon([tuple(point) for point in hole], fill=0)
  return np.asarray(canvas)


def _pasted(bitmap: dict, size: tuple[int, int]) -> np.ndarray:
  """A bitmap, which covers a part of the image alone, at its place."""
  # A bitmap of the image's size has no more than a few bytes for each pixel, packed or not.
  unpacker, most = zlib.decompressobj(), _PIXEL_BYTES * size[0] * size[1] + _HEADER_BYTES
  content = unpacker.decompress(base64.b64decode(bitmap["data"]), most)
  if unpacker.unconsumed_tail:
    raise ValueError(f"a bitmap has more than {most:,} bytes")
  with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
    part = np.asarray(image.getchannel("A") if "A" in image.getbands() else image.convert("L")) > 0
  x, y = (int(number) for number in bitmap["origin"])
  height, width = part.shape
  if x < 0 or y < 0 or y + height > size[0] or x + width > size[1]:
    raise ValueError(f"a bitmap of {width} x {height} pixels at {x}, {y} leaves the image")
  canvas = np.zeros(size, bool)
  canvas[y : y + height, x : x + width] = part
  return canvas


READERS: dict[str, Callable] = {
  "yolo": partial(read_yolo, corners="unknown"),
  "yolo_segment": partial(read_yolo, corners="polygon"),
  "yolo_obb": partial(read_yolo, corners="box"),
  "supervisely": read_supervisely,
}
