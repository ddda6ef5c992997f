"""Source `cityscapes`: the official folders, as they are unpacked.

Layout: `<root>/leftImg8bit/<split>/<city>/*_leftImg8bit.png` and
`<root>/gtFine/<split>/<city>/*_gtFine_{labelIds,instanceIds}.png`; where these are not there,
they are drawn from `*_gtFine_polygons.json` as the official scripts do. Which of the official
classes are told apart is what `data.class_names` says, by their official
names; the others are background, but for those that the official evaluation
ignores: they are void.

Boxes are the bounds of instances. Regions of objects not told apart (`cargroup`, in
`instanceIds` the plain label id) and instances of void classes (caravan, trailer) are
crowds: void in box images. In a mask image a group has its class like any car.

The task of all 19 classes has no background: no pixel is of class 0, and
`foreground_iou` is the official mean. Nor has a box image certain background there,
since road and sky have no boxes: a crowd over the whole image says so.
"""

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.data import images
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError

# Position = official label id: labels.py of github.com/mcordts/cityscapesScripts, as are
# the ids that its evaluation ignores and those that have instances.
LABELS = (
  *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic"),
  *("ground", "road", "sidewalk", "parking", "rail track", "building", "wall", "fence"),
  *("guard rail", "bridge", "tunnel", "pole", "polegroup", "traffic light", "traffic sign"),
  *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan"),
  *("trailer", "train", "motorcycle", "bicycle"),
)
VOID_IDS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
FIRST_WITH_INSTANCES = LABELS.index("person")

_PER_LABEL = 1000  # instance id = label id * 1000 + number
_PHOTO, _LABELS, _INSTANCES = (
  f"_{kind}.png" for kind in ("leftImg8bit", "gtFine_labelIds", "gtFine_instanceIds")
)
_POLYGONS = "_gtFine_polygons.json"


def load(root: str, split: str, class_names: Sequence[str], *, workers: int) -> list[Record]:
  """Loads the records of a split; the instance maps are read for their boxes.

  Args:
    root: folder that holds `leftImg8bit` and `gtFine`.
    split: name of the split, a folder in both.
    class_names: class names by class id; the first is the background.
    workers: threads that read.

  Returns:
    Records by name, e.g. "ulm/ulm_000000_000019_leftImg8bit.png".

  Raises:
    InputError: an unknown class, no photograph, or an instance map that is missing,
      unreadable or has an id of no label.
  """
  table = class_table(class_names)
  folder = Path(root) / "leftImg8bit" / split
  photos = sorted(folder.glob(f"*/*{_PHOTO}"))
  if not photos:
    raise InputError(
      f"{folder}: there is no <city>/*{_PHOTO}; data.root is the folder with the official "
      "leftImg8bit and gtFine, data.train_split and data.eval_split are folders in both"
    )
  with ThreadPoolExecutor(max(workers, 1)) as pool:
    return list(pool.map(partial(_record, Path(root) / "gtFine" / split, table), photos))


def official_ids(class_names: Sequence[str]) -> np.ndarray:
  """Official label ids, in which the official evaluation wants predictions.

  Args:
    class_names: class names by class id; the first is the background.

  Returns:
    uint8 [num_classes], 0 ("unlabeled") for the background.

  Raises:
    InputError: a name that is not official, or no background at the first place.
  """
  if class_names[0] in LABELS:
    raise InputError(
      f"data.class_names begins with {class_names[0]!r}, but its first name is that of the "
      f"background: {('background', *class_names)}"
    )
  for name in class_names[1:]:
    if name not in LABELS:
      nearest = difflib.get_close_matches(str(name), LABELS, n=1, cutoff=0.0)
      raise InputError(
        f'data.class_names: "{name}" is no label of CityScapes (nearest: "{nearest[0]}")'
      )
  return np.array([0, *(LABELS.index(name) for name in class_names[1:])], np.uint8)


def class_table(class_names: Sequence[str]) -> np.ndarray:
  """Official label id -> class id.

  Args:
    class_names: as for `official_ids`.

  Returns:
    uint8 [number of labels]: a named label's class, else 255 where the official
    evaluation ignores the label, else 0.

  Raises:
    InputError: see `official_ids`.
  """
  table = np.full(len(LABELS), BACKGROUND, np.uint8)
  table[list(VOID_IDS)] = VOID
  table[official_ids(class_names)[1:]] = np.arange(1, len(class_names))
  return table


def read_labels(path: str, size: tuple[int, int], table: np.ndarray) -> np.ndarray:
  """Reads a mask.

  Args:
    path: a `*_labelIds.png`.
    size: (height, width) in pixels.
    table: of `class_table`.

  Returns:
    uint8 [height, width], class ids, 255 = void.

  Raises:
    InputError: see `images.read_index_image`, or a value that is no label.
  """
  values = images.read_index_image(path, size)
  _require_labels(path, values.max(initial=0))
  return table[values]


def draw_instances(path: str) -> np.ndarray:
  """Draws the map of instances from polygons, later ones over earlier ones.

  Args:
    path: a `*_polygons.json`.

  Returns:
    int32 [height, width], values as in `*_instanceIds.png`.

  Raises:
    InputError: no such file, not readable, or a label that is not official.
  """
  try:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    size = (content["imgHeight"], content["imgWidth"])
    images.require_possible_size(f"{path}: the image", size)
    canvas = Image.new("I", size[::-1], 0)
    counts: Counter[str] = Counter()
    for one in (one for one in content["objects"] if not one.get("deleted")):
      value = _instance_value(path, one["label"], counts)
      images.require_near(path, one["polygon"], size)
      if value >= 0:
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in one["polygon"]], fill=value)
  except InputError:
    raise
  except Exception as error:  # whatever is where something else should be
    raise InputError(f"{path}: cannot be read as polygons ({error})") from error
  return np.asarray(canvas)


def draw_labels(path: str, size: tuple[int, int], table: np.ndarray) -> np.ndarray:
  """`read_labels` from a `*_polygons.json`."""
  values = draw_instances(path)
  if values.shape != tuple(size):
    raise InputError(
      f"{path}: the polygons are of an image of {values.shape[1]} x {values.shape[0]} pixels "
      f"(width x height), the instances of {size[1]} x {size[0]}"
    )
  return table[np.where(values < _PER_LABEL, values, values // _PER_LABEL)]


def _instance_value(path: str, label: str, counts: Counter) -> int:
  """Label id, with a number for an object told apart; below 0: not drawn."""
  if label == "license plate":
    return -1
  name = label if label in LABELS else label.removesuffix("group")
  if name not in LABELS:
    raise InputError(f'{path}: "{label}" is no label of CityScapes')
  number = LABELS.index(name)
  if number < FIRST_WITH_INSTANCES or name != label:
    return number
  counts[name] += 1
  return number * _PER_LABEL + counts[name] - 1


def find_boxes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Bounds of every value in a map.

  Looks at the runs of equal pixels in the rows, which are far fewer than the pixels, and
  at all values in one pass: 3 ms for a map of 2048 x 1024 pixels.

  Args:
    values: int [height, width].

  Returns:
    The values int [n], ascending, and their boxes int64 [n, 4], (ymin, xmin, ymax, xmax)
    in pixels, the last two one past the end.
  """
  begins = np.ones(values.shape, bool)
  begins[:, 1:] = values[:, 1:] != values[:, :-1]
  starts = np.flatnonzero(begins)
  rows, columns = np.divmod(starts, values.shape[1])
  ends = columns + np.diff(starts, append=values.size)
  found, number = np.unique(values.ravel()[starts], return_inverse=True)
  boxes = np.tile([*values.shape, 0, 0], (len(found), 1))
  for side, positions in enumerate((rows, columns)):
    np.minimum.at(boxes[:, side], number, positions)
  for side, positions in enumerate((rows + 1, ends), start=2):
    np.maximum.at(boxes[:, side], number, positions)
  return found, boxes


def boxes_of_labels(
  values: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Boxes where instances are not told apart: of the parts of each class, see `split_region`.

  Args:
    values: uint8 [height, width], official label ids.
    class_names: as for `official_ids`.

  Returns:
    Classes uint8 [n] (255 = void), boxes int64 [n, 4], (ymin, xmin, ymax, xmax) in pixels,
    and crowd bool [n], which is void alone: a box around two cars is one of the class still.
  """
  found, bounds = find_boxes(values)
  boxes, classes, _ = _boxes(values, found, bounds, found, class_table(class_names))
  return classes, boxes, classes == VOID


def split_region(inside: np.ndarray) -> np.ndarray:
  """Boxes of the parts of a region that empty rows or columns keep apart.

  A part that hangs together, if only by a corner, always lies in one box; cutting goes
  on until every box is tight and cannot be cut.

  Args:
    inside: bool [height, width].

  Returns:
    int64 [n, 4], (ymin, xmin, ymax, xmax) in pixels, the last two one past the end.
  """
  boxes: list[tuple[int, int, int, int]] = []
  waiting = [(0, 0, inside.shape[0], inside.shape[1])]
  while waiting:
    ymin, xmin, ymax, xmax = waiting.pop()
    part = inside[ymin:ymax, xmin:xmax]
    filled_rows, filled_columns = np.asarray(part.any(axis=1)), np.asarray(part.any(axis=0))
    rows, columns = _runs(filled_rows) + ymin, _runs(filled_columns) + xmin
    pieces = [(top, left, end, right) for top, end in rows for left, right in columns]
    (boxes if len(pieces) == 1 else waiting).extend(pieces)
  return np.array(boxes, np.int64).reshape(-1, 4)


def _runs(line: np.ndarray) -> np.ndarray:
  """Starts and ends of the runs of True in a line, int64 [n, 2]."""
  steps = np.diff(line.astype(np.int8), prepend=0, append=0)
  return np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=-1)


def _record(annotations: Path, table: np.ndarray, photo: Path) -> Record:
  stem = str(annotations / photo.parent.name / photo.name.removesuffix(_PHOTO))
  drawn = not Path(stem + _INSTANCES).exists() and Path(stem + _POLYGONS).exists()
  source = stem + (_POLYGONS if drawn else _INSTANCES)
  values = draw_instances(source) if drawn else images.read_instance_image(source)
  masks = stem + (_LABELS if Path(stem + _LABELS).exists() or not drawn else _POLYGONS)
  size = values.shape
  found, bounds = find_boxes(values)
  labels = np.where(found < _PER_LABEL, found, found // _PER_LABEL)
  _require_labels(source, labels.max(initial=0))
  boxes, classes, crowd = _boxes(values, found, bounds, labels, table)
  return Record(
    image_id=f"{photo.parent.name}/{photo.name}",
    source=source,
    size=size,
    boxes=(boxes / [*size, *size]).astype(np.float32),
    # The class of a crowd teaches nothing, but has to be one.
    box_classes=np.where(classes == VOID, 1, classes).astype(np.int32),
    box_is_crowd=crowd,
    classes=frozenset(table[labels].tolist()) - {BACKGROUND, VOID},
    read_image=partial(images.read_image, str(photo), size),
    read_labels=partial(draw_labels if masks.endswith("json") else read_labels, masks, size, table),
    read_reduced=partial(images.read_reduced, str(photo), size),
    labels_source=masks,
  )


def _boxes(values, found, bounds, labels, table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Boxes int64 [n, 4] in pixels, their classes uint8 [n] (255: void), crowd bool [n]."""
  boxes: list = []
  classes, crowd = [], []
  for value, box, label in zip(found, bounds, labels, strict=True):
    if label < FIRST_WITH_INSTANCES or table[label] == BACKGROUND:
      continue
    is_group = value < _PER_LABEL
    ymin, xmin, ymax, xmax = box
    inside = values[ymin:ymax, xmin:xmax] == value
    parts = split_region(inside) + [ymin, xmin, ymin, xmin] if is_group else [box]
    boxes.extend(parts)
    classes.extend([table[label]] * len(parts))
    crowd.extend([is_group or table[label] == VOID] * len(parts))
  without_boxes = table[:FIRST_WITH_INSTANCES]
  if ((without_boxes != BACKGROUND) & (without_boxes != VOID)).any():
    boxes.append((0, 0, *values.shape))
    classes.append(VOID)
    crowd.append(True)
  return np.array(boxes).reshape(-1, 4), np.array(classes, np.uint8), np.array(crowd, bool)


def _require_labels(path: str, highest: int) -> None:
  if highest >= len(LABELS):
    raise InputError(
      f"{path}: has pixels of label {highest}; the official ones end at {len(LABELS) - 1}"
    )
