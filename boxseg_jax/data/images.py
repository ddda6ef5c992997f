"""Image files -> arrays, with errors that a person can act on.

What a file may hold, and what is read:

| a photograph | is read as |
|---|---|
| grey, palette, black and white | its colours |
| with transparency | the colours that are stored, as if it were opaque (as OpenCV reads it) |
| CMYK | RGB by Pillow's formula, without its colour profile |
| with an EXIF orientation | turned, see `read_image` |
| several frames | the first |
| more than 8 bits per channel | refused: which values are black and white is not known |
| more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows | refused before it is decoded |
| a format that is not in `FORMATS` | refused: EPS, for one, is a program, and Pillow runs it |

Pillow refuses twice that number, 179 million pixels, and warns from once on; here an image
of 100 million pixels is nothing to be warned of.
"""

import contextlib
import functools
import io
import re
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile

from boxseg_jax.errors import InputError

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# By Pillow's names. What nobody keeps photographs in is left out: each is a decoder more that
# a file made to do harm can be aimed at.
FORMATS = ("JPEG", "PNG", "MPO", "TIFF", "WEBP", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
_PHOTO = ("image file", "an image")
_MAP = ("label map", "a label map")
_INDEX_MODES = ("L", "P", "1")
_COLOR_MODES = ("RGB", "P", "L")
_INSTANCE_MODES = ("I;16", "I")
# How an image is turned to be shown, by its EXIF orientation; without one, or at 1, it is not.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def read_image(
  path: str,
  size: tuple[int, int] | None = None,
  at_least: tuple[int, int] | None = None,
  *,
  content: bytes | None = None,
) -> np.ndarray:
  """Reads a photograph.

  One with an EXIF orientation is turned, as viewers, annotation tools and OpenCV turn it,
  unless the size that the annotation gives shows that it was made on the pixels as stored.
  Where both have that size (a square, a half turn), it is turned.

  Args:
    path: an image file in one of `FORMATS`, 8 bits per channel.
    size: (height, width) that the annotation gives, in pixels; None: any.
    at_least: (height, width) in pixels. A JPEG may then come back at 1/2, 1/4 or
      1/8 of its size, but not below this: decoding costs less.
    content: what is in the file, where it is no file of its own; `path` is then
      only its name in messages.

  Returns:
    uint8 [height, width, 3], RGB.

  Raises:
    InputError: no such file, not readable, more than 8 bits, too many pixels, or
      another size.
  """
  with _opened(path, content, _PHOTO) as image:
    _require_eight_bits(path, image)
    turn = _turn(path, image, size)
    if at_least is not None:
      height, width = at_least[::-1] if turn in _SIDEWAYS else at_least
      image.draft(None, (width, height))
    pixels = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    return np.asarray(pixels.transpose(_TURNS[turn]) if turn in _TURNS else pixels)


def image_size(path: str, content: bytes | None = None) -> tuple[int, int]:
  """(height, width) in pixels of what `read_image` gives, without decoding it.

  Args:
    path: an image file.
    content: as for `read_image`.

  Raises:
    InputError: no such file, or no image.
  """
  with _opened(path, content, _PHOTO) as image:
    size = (image.height, image.width)
    return size[::-1] if _orientation(image) in _SIDEWAYS else size


def read_reduced(path: str, size: tuple[int, int] | None, at_least: tuple[int, int]) -> np.ndarray:
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
  with _opened(path, content, _MAP) as image:
    _require_size(path, (image.height, image.width), size)
    if image.mode not in modes:
      raise InputError(f"{path}: the label map has pixels of mode {image.mode}; {wanted}")
    if _orientation(image) in _TURNS:
      raise InputError(
        f"{path}: the label map has EXIF orientation {_orientation(image)}; save it as it "
        "shall lie on its image, without an orientation"
      )
    return np.asarray(image.convert(as_mode) if as_mode else image)


@contextlib.contextmanager
def _opened(path: str, content: bytes | None, names: tuple[str, str]):
  """The opened file, not decoded yet; what goes wrong until it is closed becomes an InputError."""
  try:
    with Image.open(path if content is None else io.BytesIO(content), formats=_known()) as image:
      yield image
  except InputError:
    raise
  except MemoryError as error:  # a file may claim parts of any length
    raise InputError(f"{path}: takes more memory to be read than there is") from error
  except FileNotFoundError:
    raise InputError(f"{path}: no such {names[0]}") from None
  except Exception as error:  # decoders raise whatever a broken file makes them raise
    raise InputError(f"{path}: cannot be read as {names[1]} ({error})") from error


@functools.cache
def _known() -> tuple[str, ...]:
  """Those of `FORMATS` that this Pillow can read; AVIF is new."""
  Image.init()
  return tuple(name for name in FORMATS if name in Image.OPEN)


def require_near(where: str, points: Any, size: tuple[int, int]) -> None:
  """Refuses corners of which drawing could take any time and memory.

  Args:
    where: begins the message.
    points: [n, 2], x and y in pixels.
    size: (height, width) of the image in pixels.

  Raises:
    InputError: a corner that is far outside of the image, infinite or no number.
    TypeError, ValueError, OverflowError: they are no numbers at all.
  """
  points = np.asarray(points, np.float64).reshape(-1, 2)
  far = ~(np.abs(points) <= 2 * np.array(size[::-1])).all(axis=1)
  if far.any():
    x, y = points[far][0]
    raise InputError(
      f"{where}: the polygon's point ({x:g}, {y:g}) lies far outside of the image "
      f"({size[1]} x {size[0]} pixels)"
    )


def require_possible_size(where: str, size: tuple[int, int]) -> None:
  """Refuses sizes that no image here can have, before memory is taken for one.

  Args:
    where: begins the message.
    size: (height, width) in pixels, as a file claims it.

  Raises:
    InputError: sides that are no whole numbers above 0, or more pixels than are decoded.
  """
  height, width = size
  if not all(type(side) is int and side > 0 for side in size):  # true and false are ints, too
    raise InputError(f"{where} is {width} x {height} pixels (width x height)")
  limit = Image.MAX_IMAGE_PIXELS  # None: whoever set it has no limit
  if limit is not None and height * width > 2 * limit:
    raise InputError(
      f"{where} is {width} x {height} pixels (width x height), more than the "
      f"{2 * limit:,} that are read"
    )


def _require_eight_bits(path: str, image: ImageFile.ImageFile) -> None:
  # Pillow opens colours of 16 bits as mode RGB and would keep their upper halves alone.
  deep = [str(tile.args) for tile in image.tile if re.search(r";16[BLN]", str(tile.args))]
  if deep or image.mode.startswith(("I", "F")):
    raise InputError(
      f"{path}: the image has pixels of mode {image.mode} with more than 8 bits per channel; "
      "convert it to 8 bits, or its contrast would be cut off"
    )


def _turn(path: str, image: Image.Image, annotated: tuple[int, int] | None) -> int:
  """The orientation, a key of `_TURNS`, that fits the annotation; 1 = as stored."""
  stored, turn = (image.height, image.width), _orientation(image)
  shown = stored[::-1] if turn in _SIDEWAYS else stored
  if annotated is None or shown == tuple(annotated):
    return turn
  _require_size(path, stored, annotated)
  return 1


def _orientation(image: Image.Image) -> int:
  """The EXIF orientation; 1 where there is none, and of a TIFF, which Pillow turns by itself."""
  return 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)


def _require_size(path: str, found: tuple[int, int], annotated: tuple[int, int] | None) -> None:
  if annotated is not None and found != tuple(annotated):
    raise InputError(
      f"{path}: the file is {found[1]} x {found[0]} pixels (width x height), its annotation "
      f"says {annotated[1]} x {annotated[0]}"
    )
