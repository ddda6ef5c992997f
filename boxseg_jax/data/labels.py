"""Source `labels`: masks from index images, boxes from `instances.json`.

Their values are class ids, or what `data.label_values` or `data.label_colors` says.

Layout: `<root>/<split>/instances.json`, `<root>/<split>/images/` and
`<root>/<split>/labels/<stem of the image>.png`. An image without a label map is
a box image.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from boxseg_jax.data import images, instances
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError


def load(
  root: str,
  split: str,
  class_names: Sequence[str],
  *,
  label_values: Sequence[tuple[int, str]] = (),
  label_colors: Sequence[tuple[Sequence[int], str]] = (),
) -> list[Record]:
  """Loads the records of a split; no pixels are read.

  Args:
    root: folder of the data set.
    split: name of the split, a folder in `root`.
    class_names: class names by class id; the first is the background.
    label_values: (value in the label maps, name of a class or "void"); empty: values are
      class ids, 255 = void.
    label_colors: ((r, g, b), name of a class or "void"); empty: label maps have no colours.

  Returns:
    Records in the order of the file.

  Raises:
    InputError: see `instances.read_instances`, or two images that share a label map.
  """
  folder = Path(root) / split
  read = images.read_index_image
  if label_values:
    by_value = {value: instances.class_id(name, class_names) for value, name in label_values}
    read = partial(read_values, table=by_value)
  if label_colors:
    by_color = {
      (r, g, b): instances.class_id(name, class_names) for (r, g, b), name in label_colors
    }
    read = partial(read_colors, table=by_color)
  annotated = instances.read_instances(folder, class_names)
  records = [_record(folder, image, read) for image in annotated]
  require_own_files(str(folder), [r.image_id for r in records if r.read_labels is not None])
  return records


def read_values(path: str, size: tuple[int, int], *, table: Mapping[int, int]) -> np.ndarray:
  """Reads a label map whose values are no class ids.

  Args:
    path: see `images.read_index_image`.
    size: (height, width) in pixels.
    table: value -> class id, 255 = void.

  Returns:
    uint8 [height, width], class ids, 255 = void.

  Raises:
    InputError: see `images.read_index_image`, or a value that is not in the table.
  """
  return translate(f"{path}: value", images.read_index_image(path, size), table)


def read_colors(
  path: str, size: tuple[int, int], *, table: Mapping[tuple[int, int, int], int]
) -> np.ndarray:
  """Reads a label map in colours.

  Args:
    path: see `images.read_color_labels`.
    size: (height, width) in pixels.
    table: (r, g, b) -> class id, 255 = void.

  Returns:
    uint8 [height, width], class ids, 255 = void.

  Raises:
    InputError: see `images.read_color_labels`, or a colour that is not in the table.
  """
  red, green, blue = np.moveaxis(images.read_color_labels(path, size).astype(np.int32), -1, 0)
  numbers = {r << 16 | g << 8 | b: label for (r, g, b), label in table.items()}
  return translate(f"{path}: color", red << 16 | green << 8 | blue, numbers, _rgb)


def _rgb(number: int) -> str:
  return str((int(number) >> 16, int(number) >> 8 & 255, int(number) & 255))


def translate(
  what: str, values: np.ndarray, table: Mapping[int, int], show: Callable[[int], str] = str
) -> np.ndarray:
  """Values of a label map -> class ids.

  Args:
    what: begins the message about a value that is not in the table.
    values: int [height, width].
    table: value -> class id, 255 = void.
    show: value -> text, for the message.

  Returns:
    uint8 [height, width].

  Raises:
    InputError: a value that is not in the table.
  """
  known = np.array(sorted(table))
  position = np.minimum(np.searchsorted(known, values), len(known) - 1)
  wrong = np.argwhere(known[position] != values)
  if wrong.size:
    row, column = wrong[0]
    raise InputError(
      f"{what} {show(values[row, column])} of pixel (x {column}, y {row}), and of {len(wrong)} "
      f"pixels in all, stands for no class; known are {', '.join(map(show, known))}"
    )
  return np.array([table[value] for value in known.tolist()], np.uint8)[position]


def file_name(image: str) -> Path:
  """Name of the file with the label map of an image, in the folder `labels`."""
  return Path(image).with_suffix(".png")


def require_own_files(where: str, names: Iterable[str]) -> None:
  """Raises InputError where two images (a.jpg, a.png) share a label map.

  Args:
    where: begins the message.
    names: of the images that have one.
  """
  found: dict[Path, str] = {}
  for name in names:
    file = file_name(name)
    if found.setdefault(file, name) != name:
      raise InputError(
        f"{where}: {found[file]} and {name} would share the label map {file}; rename an image"
      )


def _record(folder: Path, image: instances.AnnotatedImage, read: Callable) -> Record:
  path = folder / "labels" / file_name(image.name)
  return Record(
    image_id=image.name,
    source=str(folder / "instances.json"),
    size=image.size,
    read_image=partial(images.read_image, image.path, image.size),
    read_labels=partial(read, str(path), image.size) if path.exists() else None,
    read_reduced=partial(images.read_reduced, image.path, image.size),
    labels_source=str(path),
    **instances.box_fields(image),
  )
