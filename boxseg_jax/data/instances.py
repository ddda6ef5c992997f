"""COCO's `instances.json`: which boxes lie on which image.

Shared by the sources `coco` (masks from the same file) and `labels` (masks from
index images). Categories are matched to class names by name, so the numbering
in the file does not matter.
"""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxseg_jax import files
from boxseg_jax.batch import VOID
from boxseg_jax.data import images
from boxseg_jax.data.records import require_inside
from boxseg_jax.errors import InputError

_SHOWN = 100  # characters of a category's name in a message
_WHOLE = 2**53  # whole numbers beyond are no pixels, and JSON's may have any number of digits


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
  """One image of the file with its annotations.

  Attributes:
    name: `file_name` of the image; its id everywhere else.
    path: where the image lies.
    size: (height, width) in pixels.
    annotations: the entries of the file, each with its class id under "class".
  """

  name: str
  path: str
  size: tuple[int, int]
  annotations: list[dict[str, Any]]


def read_instances(folder: Path, class_names: Sequence[str]) -> list[AnnotatedImage]:
  """Reads `<folder>/instances.json`.

  Args:
    folder: a split's folder, with `instances.json` and `images/`.
    class_names: class names by class id; the first is the background.

  Returns:
    The images in the order of the file.

  Raises:
    InputError: no such file, not COCO, an unknown category or image, a box that
      is not four numbers, a crowd that is neither 0 nor 1, or an image listed twice.
  """
  path = folder / "instances.json"
  content = _load_json(path)
  listed = {}
  for entry in content["images"]:
    listed[entry["id"]] = _annotated_image(path, folder / "images", entry)
  if len({image.name for image in listed.values()}) < len(content["images"]):
    raise InputError(f"{path}: image {_first_twice(content['images'])} is listed twice")
  categories = {entry.get("id"): entry.get("name") for entry in content["categories"]}
  for entry in content["annotations"]:
    image = listed.get(entry.get("image_id"))
    if image is None:
      raise InputError(
        f"{path}: annotation {entry.get('id')} is of image_id {entry.get('image_id')}, "
        "which is not among the file's images"
      )
    where = f"{path}: image {image.name}: annotation {entry.get('id')}"
    _require_box(where, entry.get("bbox"))
    if entry.get("iscrowd") not in (None, 0, 1):  # the text "0" would be taken for true
      raise InputError(f'{where}: "iscrowd" is {reprlib.repr(entry["iscrowd"])}, not 0 or 1')
    # Not copied: of a large file the annotations are most of the memory.
    entry["class"] = _class_of(where, entry.get("category_id"), categories, class_names)
    image.annotations.append(entry)
  return list(listed.values())


def box_fields(image: AnnotatedImage) -> dict[str, Any]:
  """The boxes of an image as the fields of a `Record`.

  Args:
    image: one of `read_instances`.

  Returns:
    `boxes` float32 [n, 4] (ymin, xmin, ymax, xmax) in [0, 1] of the image,
    `box_classes` int32 [n], `box_is_crowd` bool [n], `classes` frozenset of the
    classes of the boxes that are no crowd.
  """
  height, width = image.size
  pixels = np.array([a["bbox"] for a in image.annotations], np.float64).reshape(-1, 4)
  x, y, w, h = pixels.T
  # Numbers too large become infinite and are told by `check`, as what lies outside of the image.
  with np.errstate(over="ignore", invalid="ignore"):
    boxes = np.stack([y / height, x / width, (y + h) / height, (x + w) / width], axis=-1)
    boxes = boxes.astype(np.float32)
  classes = np.array([a["class"] for a in image.annotations], np.int32)
  crowd = np.array([bool(a.get("iscrowd", 0)) for a in image.annotations], bool)
  return {
    "boxes": boxes,
    "box_classes": classes,
    "box_is_crowd": crowd,
    "classes": frozenset(classes[~crowd].tolist()),
  }


def class_id(name: str, class_names: Sequence[str]) -> int:
  """Class id of a name in one of `data.label_names`, `label_values`, `label_colors`.

  Args:
    name: a class, or "void".
    class_names: class names by class id.

  Returns:
    The class id; 255 for "void".
  """
  return VOID if name == "void" else list(class_names).index(name)


def class_table(
  labels: Iterable[str], class_names: Sequence[str], label_names: Sequence[tuple[str, str]]
) -> dict[int, int | str]:
  """What the labels of a set stand for, by their number.

  Args:
    labels: the names of the labels.
    class_names: class names by class id.
    label_names: see `config.data.label_names`.

  Returns:
    Class id by number, 255 = void; the name of a label that is no class and not mapped.
  """
  known = {name: number for number, name in enumerate(class_names)}
  known |= {name: class_id(target, class_names) for name, target in label_names}
  return {number: known.get(name, known.get("*", name)) for number, name in enumerate(labels)}


def unknown_label(name: str, class_names: Sequence[str]) -> str:
  """What to tell about a label that is no class."""
  foreground = list(class_names[1:])
  nearest = difflib.get_close_matches(name, foreground, n=1, cutoff=0.0)
  return (
    f'unknown label "{name}"; the foreground classes of data.class_names are '
    f'{", ".join(foreground)} (nearest: "{nearest[0]}"), and data.label_names says what others '
    f'stand for: (("{name}", "{class_names[0]}"),)'
  )


def _load_json(path: Path) -> dict[str, list]:
  if not path.exists():
    raise InputError(
      f"{path}: no such file; a split's folder holds instances.json and images/ "
      "(data.root, data.train_split and data.eval_split say where)"
    )
  content = files.read_json(path)
  for key in ("images", "annotations", "categories"):
    if not isinstance(content.get(key), list):
      raise InputError(f'{path}: not a COCO instances file: there is no list "{key}"')
    _require_entries(path, key, content[key])
  if not content["images"]:
    raise InputError(f'{path}: the list "images" is empty')
  return content


def _require_entries(path: Path, key: str, entries: list) -> None:
  for number, entry in enumerate(entries):
    if not isinstance(entry, dict):
      raise InputError(f'{path}: entry {number} of "{key}" is {reprlib.repr(entry)}, not an object')
    for name in ("id", "image_id", "category_id"):
      if not isinstance(entry.get(name), int | float | str | None):
        raise InputError(
          f'{path}: "{name}" of entry {number} of "{key}" is {reprlib.repr(entry[name])}, not a '
          "number or name"
        )


def _annotated_image(path: Path, folder: Path, entry: dict) -> AnnotatedImage:
  missing = [key for key in ("id", "file_name", "width", "height") if key not in entry]
  if missing:
    name = entry.get("file_name", entry.get("id"))
    raise InputError(f'{path}: image {name} has no "{missing[0]}"')
  if not isinstance(entry["file_name"], str):
    name = reprlib.repr(entry["file_name"])
    raise InputError(f'{path}: "file_name" of image {entry["id"]} is {name}')
  size = (entry["height"], entry["width"])
  require_inside(f'{path}: "file_name" of image {entry["id"]}', entry["file_name"])
  images.require_possible_size(f"{path}: image {entry['file_name']}", size)
  return AnnotatedImage(entry["file_name"], str(folder / entry["file_name"]), size, [])


def _first_twice(entries: list[dict]) -> str:
  seen: set[tuple] = set()
  for entry in entries:
    keys = {("id", entry["id"]), ("name", entry["file_name"])}
    if keys & seen:
      return f"{entry['file_name']} (id {entry['id']})"
    seen |= keys
  raise AssertionError("no image is listed twice")


def _require_box(where: str, box: Any) -> None:
  if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
    raise InputError(f'{where}: "bbox" is {reprlib.repr(box)}, not [x, y, width, height] in pixels')


def _is_number(value: Any) -> bool:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return isinstance(value, float) or abs(value) < _WHOLE


def _shown(name: Any) -> str:
  return name[:_SHOWN] if isinstance(name, str) else reprlib.repr(name)


def _class_of(
  where: str, category_id: Any, categories: dict[int, str], class_names: Sequence[str]
) -> int:
  if category_id not in categories:
    raise InputError(
      f"{where}: category_id {category_id} is not among the file's categories "
      f"({', '.join(f'{key} {_shown(name)}' for key, name in categories.items())})"
    )
  name = categories[category_id]
  # Class 0 is what no box covers, so a category of that name is unknown, too.
  foreground = list(class_names[1:])
  if name not in foreground:
    name = _shown(name)
    nearest = difflib.get_close_matches(name, foreground, n=1, cutoff=0.0)
    raise InputError(
      f'{where}: unknown category "{name}"; the foreground classes of data.class_names are '
      f'{", ".join(foreground)} (nearest: "{nearest[0] if nearest else ""}")'
    )
  return 1 + foreground.index(name)
