"""Classes, targets and values as colours, pixel by pixel, and the files they go to."""

import os
import pathlib

import numpy as np
from PIL import Image

from boxseg_jax import files
from boxseg_jax.batch import VOID

# Okabe and Ito's colours, which people with any colour vision tell apart
# (jfly.uni-koeln.de/color), without black; the ones that photographs contain least first.
_OKABE_ITO = (
  (230, 159, 0),
  (86, 180, 233),
  (204, 121, 167),
  (0, 158, 115),
  (240, 228, 66),
  (0, 114, 178),
  (213, 94, 0),
)
# viridis at equal steps: brightness alone already tells low from high.
_VIRIDIS = np.array(
  [
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
  ],
  np.float32,
)
GREY = (128, 128, 128)  # crowd boxes and void


def palette(num_classes: int) -> np.ndarray:
  """Colours of classes that colour-blind people tell apart too.

  Args:
    num_classes: number of classes, background included.

  Returns:
    uint8 [num_classes, 3]; background black, classes 1 to 7 Okabe and Ito's colours, beyond that
    their darker and lighter shades.
  """
  base = np.array(_OKABE_ITO, np.float32)
  shades = np.concatenate([base, 0.55 * base, 0.45 * base + 0.55 * 255])
  chosen = shades[np.arange(num_classes - 1) % len(shades)]
  return np.concatenate([np.zeros((1, 3)), chosen]).round().astype(np.uint8)


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
  """Lays class colours over a photograph that is faded to grey.

  Args:
    image: uint8 [height, width, 3].
    labels: int [height, width], class ids; 255 = void, hatched.
    colours: uint8 [num_classes, 3], of `palette`.

  Returns:
    uint8 [height, width, 3]; background stays grey, regions are outlined.
  """
  labels = np.asarray(labels)
  coloured = (labels > 0) & (labels < len(colours))
  strength = np.where(coloured, np.where(_outline(labels), 1.0, 0.55), 0.0)
  colour = colours.take(np.where(coloured, labels, 0), axis=0)
  return hatch(_blend(_faded(image), colour, strength), labels == VOID)


def mixture(photo: np.ndarray, target: np.ndarray, colours: np.ndarray) -> np.ndarray:
  """Soft targets: each class's colour in proportion to its probability, background clear.

  Args:
    photo: uint8 [height, width, 3].
    target: float [height, width, num_classes] in [0, 1].
    colours: uint8 [num_classes, 3], of `palette`.

  Returns:
    uint8 [height, width, 3].
  """
  foreground = target[..., 1:]
  strength = np.clip(foreground.sum(-1), 0, 1)
  colour = foreground @ colours[1:].astype(np.float32) / np.maximum(strength, 1e-6)[..., None]
  return _blend(_faded(photo), colour, 0.75 * strength)


def heat(share: np.ndarray) -> np.ndarray:
  """Colours of values [height, width], 0 to 1 and clipped beyond; what is not a number is white."""
  place = np.clip(np.nan_to_num(share), 0, 1) * (len(_VIRIDIS) - 1)
  low = np.minimum(place.astype(int), len(_VIRIDIS) - 2)
  colour = _blend(_VIRIDIS[low], _VIRIDIS[low + 1], place - low)
  return np.where(np.isnan(share)[..., None], 255, colour).astype(np.uint8)


def hatch(image: np.ndarray, where: np.ndarray) -> np.ndarray:
  """Hatches pixels in grey, so that void looks like no class."""
  row, column = np.nonzero(where)
  strength = np.zeros(where.shape)
  strength[row, column] = np.where((row + column) % 8 < 3, 0.9, 0.35)
  return _blend(image, np.array(GREY), strength)


def save(path: str | os.PathLike, picture: np.ndarray) -> None:
  """Writes a picture; folders are made, and no half file is ever seen.

  Args:
    path: its suffix says how it is coded: ".png", ".jpg", ...
    picture: uint8 [height, width, 3] or [height, width].
  """
  _save(path, Image.fromarray(picture))


def save_index(path: str | os.PathLike, labels: np.ndarray, colours: np.ndarray) -> None:
  """Writes class ids as a PNG whose pixel values are the ids, with a palette for viewers.

  Args:
    path: of the PNG.
    labels: uint8 [height, width], class ids, 255 = void.
    colours: uint8 [num_classes, 3], of `palette`.
  """
  image = Image.fromarray(labels).convert("P")
  # With a short palette Pillow would write as few bits as that needs, and cut 255 off.
  known = np.concatenate([colours, np.tile(GREY, (256 - len(colours), 1))]).astype(np.uint8)
  image.putpalette(known.tobytes())
  _save(path, image)


def _save(path, image: Image.Image) -> None:
  suffix = pathlib.Path(path).suffix
  # PNGs: a third larger than by default, in a third of the time.
  options = {"quality": 90} if suffix in (".jpg", ".jpeg") else {"compress_level": 1}
  kind = Image.registered_extensions()[suffix]
  files.write(path, lambda unfinished: image.save(unfinished, format=kind, **options))


def _blend(image: np.ndarray, colour: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """Colour [..., 3] over image uint8 [..., 3] with strength [...] in [0, 1], uint8."""
  touched = np.flatnonzero(strength)  # mostly a small part of a photograph
  share = strength.reshape(-1, 1)[touched]
  colour = np.broadcast_to(colour, image.shape).reshape(-1, 3)[touched]
  pixels = image.reshape(-1, 3).copy()
  pixels[touched] = ((1 - share) * pixels[touched] + share * colour).round()
  return pixels.reshape(image.shape)


def _faded(image: np.ndarray) -> np.ndarray:
  """The photograph in grey and a little darker, so that class colours stand out."""
  red, green, blue = np.moveaxis(image.astype(np.uint16), -1, 0)
  faded = (0.8 / 3 * np.arange(3 * 255 + 1)).astype(np.uint8)
  return np.stack([faded.take(red + green + blue)] * 3, axis=-1)


def _outline(labels: np.ndarray) -> np.ndarray:
  """Pixels bool [height, width] with a neighbour of another class."""
  padded = np.pad(labels, 1, mode="edge")
  neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
  return np.any([labels != neighbour for neighbour in neighbours], axis=0)
