"""Images without annotation, as people name them: files, folders, patterns, arrays."""

import glob
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from boxseg_jax.data import images
from boxseg_jax.errors import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Photo(NamedTuple):
  """An image that is not read yet.

  Attributes:
    name: for messages: the path of a file, or "image 3".
    read: () -> uint8 [height, width, 3], RGB.
    size: () -> (height, width) in pixels.
    read_reduced: ((height, width)) -> the image at some cheaper size that is not below it.
  """

  name: str
  read: Callable[[], np.ndarray]
  size: Callable[[], tuple[int, int]]
  read_reduced: Callable[[tuple[int, int]], np.ndarray]


def find(patterns: str | Path | Iterable[str | Path]) -> list[Path]:
  """The image files that some paths stand for.

  Args:
    patterns: files, folders (all images in them and below, by their suffix) and patterns with
      "*", "?", "[...]" and "**".

  Returns:
    Each file once, in the order of the patterns, by name within each.

  Raises:
    InputError: a path that is not there, or a folder or pattern without images.
  """
  found: dict[Path, None] = {}
  for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
    found |= dict.fromkeys(_matches(str(pattern)))
  return list(found)


def _matches(pattern):
  path = Path(pattern)
  if path.is_file():
    return [path]
  if path.is_dir():
    inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return _not_empty(inside, f"{pattern}: the folder has no images ({', '.join(SUFFIXES)})")
  if not glob.has_magic(pattern):
    raise InputError(f"{pattern}: no such file or folder")
  named = sorted(Path(p) for p in glob.glob(pattern, recursive=True))
  hits = [p for p in named if p.suffix.lower() in SUFFIXES and p.is_file()]
  return _not_empty(hits, f"{pattern}: matches no image ({', '.join(SUFFIXES)})")


def _not_empty(paths, message):
  if not paths:
    raise InputError(message)
  return paths


def as_photos(given: Any) -> tuple[list[Photo], bool]:
  """Photos of whatever a person has at hand.

  Args:
    given: a path, folder or pattern, a PIL image, an array (uint8 [height, width, 3] or
      [height, width]), or a sequence of such.

  Returns:
    (photos, whether one image alone was given and not a sequence of images).

  Raises:
    InputError: something that is no image, or a file that is not there.
  """
  if isinstance(given, str | Path):
    photos = [of_file(path) for path in find(given)]
    return photos, Path(given).is_file()
  is_array = isinstance(given, np.ndarray) or hasattr(given, "__array__")
  if isinstance(given, Image.Image) or (is_array and np.ndim(given) < 4):
    return [_of_pixels(given, "the image")], True
  if not isinstance(given, Iterable):
    raise InputError(f"{given!r} is no image: a path, a PIL image or an array is expected")
  return list(_of_sequence(list(given))), False


def _of_sequence(items: Sequence[Any]):
  for number, item in enumerate(items):
    if isinstance(item, str | Path):
      yield from map(of_file, find(item))
    else:
      yield _of_pixels(item, f"image {number}")


def of_file(path: str | Path) -> Photo:
  """The photo in a file."""
  path = str(path)
  return Photo(
    path,
    partial(images.read_image, path),
    partial(images.image_size, path),
    partial(images.read_reduced, path, None),
  )


def _of_pixels(given, name) -> Photo:
  if isinstance(given, Image.Image):
    given = np.asarray(given.convert("RGB"))
  pixels = np.asarray(given)
  if pixels.ndim == 2:
    pixels = np.repeat(pixels[..., None], 3, axis=-1)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
    raise InputError(
      f"{name}: {pixels.dtype} {list(pixels.shape)} is no image: uint8 [height, width, 3], RGB, "
      "or [height, width], grey, is expected"
    )
  return Photo(name, lambda: pixels, lambda: pixels.shape[:2], lambda at_least: pixels)
