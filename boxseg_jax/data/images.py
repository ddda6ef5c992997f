"""Image files -> arrays, with errors that a person can act on."""

import io
import struct

import numpy as np
from PIL import Image

from boxseg_jax.errors import InputError

_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
_INDEX_MODES = ("L", "P", "1")
_COLOR_MODES = ("RGB", "P", "L")
_INSTANCE_MODES = ("I;16", "I")


def read_image(
  path: str,
  size: tuple[int, int] | None = None,
  at_least: tuple[int, int] | None = None,
  *,
  content: bytes | None = None,
) -> np.ndarray:
  """Reads a photograph.

  Args:
    path: an image file of any format that Pillow knows, 8 bits per channel.
    size: (height, width) that the annotation gives, in pixels; None: any.
    at_least: (height, width) in pixels. A JPEG may then come back at 1/2, 1/4 or
      1/8 of its size, but not below this: decoding costs less.
    content: what is in the file, where it is no file of its own; `path` is then
      only its name in messages.

  Returns:
    uint8 [height, width, 3], RGB.

  Raises:
    InputError: no such file, not readable, more than 8 bits, or another size.
  """
  try:
    with Image.open(path if content is None else io.BytesIO(content)) as image:
      _require_size(path, (image.height, image.width), size)
      if image.mode.startswith(("I", "F")):
        raise InputError(
          f"{path}: the image has pixels of mode {image.mode} (more than 8 bits per channel); "
          "convert it to 8 bits, or its contrast would be cut off"
        )
      if at_least is not None:
        image.draft(None, (at_least[1], at_least[0]))
      return np.asarray(image.convert("RGB"))
  except FileNotFoundError:
    raise InputError(f"{path}: no such image file") from None
  except _UNREADABLE as error:
    raise InputError(f"{path}: cannot be read as an image ({error})") from error


def image_size(path: str, content: bytes | None = None) -> tuple[int, int]:
  """(height, width) in pixels of an image, without decoding it.

  Args:
    path: an image file.
    content: as for `read_image`.

  Raises:
    InputError: no such file, or no image.
  """
  try:
    with Image.open(path if content is None else io.BytesIO(content)) as image:
      return image.height, image.width
  except FileNotFoundError:
    raise InputError(f"{path}: no such image file") from None
  except _UNREADABLE as error:
    raise InputError(f"{path}: cannot be read as an image ({error})") from error


def read_reduced(path: str, size: tuple[int, int], at_least: tuple[int, int]) -> np.ndarray:
  """`read_image` with `at_least` as its last positional argument, for `functools.partial`."""
  return read_image(path, size, at_least)


def read_index_image(
  path: str, size: tuple[int, int] | None = None, *, content: bytes | None = None
) -> np.ndarray:
  """Reads a label map whose pixel values are class ids.

  Args:
    path: an image file with one 8-bit channel (grey or palette), losslessly coded.
    size: (height, width) that the annotation gives, in pixels; None: any.
    content: as for `read_image`.

  Returns:
    uint8 [height, width], the pixel values as they are; 255 = void.

  Raises:
    InputError: no such file, not readable, not one 8-bit channel, or another size.
  """
  wanted = (
    "one 8-bit channel of class ids is expected (mode L or P), or data.label_colors, which says "
    "what colors stand for"
  )
  return _read_channel(path, size, content, _INDEX_MODES, wanted).astype(np.uint8)


def read_color_labels(
  path: str, size: tuple[int, int] | None = None, *, content: bytes | None = None
) -> np.ndarray:
  """Reads a label map whose colours stand for classes.

  Args:
    path: an image file in RGB, grey or with a palette, losslessly coded.
    size: (height, width) that the annotation gives, in pixels; None: any.
    content: as for `read_image`.

  Returns:
    uint8 [height, width, 3], RGB.

  Raises:
    InputError: no such file, not readable, of another kind (transparency, more than 8
      bits), or another size.
  """
  wanted = "colors are expected in mode RGB, P or L"
  return _read_channel(path, size, content, _COLOR_MODES, wanted, as_mode="RGB")


def read_instance_image(path: str) -> np.ndarray:
  """Reads a map whose pixel values are instance ids.

  Args:
    path: an image file with one 16-bit channel, losslessly coded.

  Returns:
    int32 [height, width], the pixel values as they are.

  Raises:
    InputError: no such file, not readable, or not one 16-bit channel.
  """
  wanted = "one 16-bit channel of instance ids is expected (mode I;16)"
  return _read_channel(path, None, None, _INSTANCE_MODES, wanted).astype(np.int32)


def _read_channel(path, size, content, modes, wanted, as_mode=None) -> np.ndarray:
  """Pixel values of an image of one of some modes, converted to another if told to."""
  try:
    with Image.open(path if content is None else io.BytesIO(content)) as image:
      _require_size(path, (image.height, image.width), size)
      if image.mode not in modes:
        raise InputError(f"{path}: the label map has pixels of mode {image.mode}; {wanted}")
      return np.asarray(image.convert(as_mode) if as_mode else image)
  except FileNotFoundError:
    raise InputError(f"{path}: no such label map") from None
  except _UNREADABLE as error:
    raise InputError(f"{path}: cannot be read as a label map ({error})") from error


def _require_size(path: str, found: tuple[int, int], annotated: tuple[int, int] | None) -> None:
  if annotated is not None and found != tuple(annotated):
    raise InputError(
      f"{path}: the file is {found[1]} x {found[0]} pixels (width x height), its annotation "
      f"says {annotated[1]} x {annotated[0]}"
    )
