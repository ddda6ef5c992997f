"""Windows of the canvas's size that cover an image of any size.

A pixel belongs to the window in which it lies deepest and is judged there alone, with half
the overlap around it on every side but the image's own: the overlap-tile strategy of
Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015 (arXiv 1505.04597). So windows can be
judged apart, in any order and on several devices, and what belongs to them adds up to exactly
the image; averaging them where they overlap would need all of them at once.
"""

import math
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
  """One axis of a window, in pixels of the image.

  Attributes:
    start: the first pixel that is seen.
    stop: the first one that is not, behind it.
    own_start: the first pixel that belongs to the window.
    own_stop: the first one that does not, behind it.
  """

  start: int
  stop: int
  own_start: int
  own_stop: int

  @property
  def seen(self) -> slice:
    """What is seen, in the image."""
    return slice(self.start, self.stop)

  @property
  def own(self) -> slice:
    """What belongs to the window, in the image."""
    return slice(self.own_start, self.own_stop)

  @property
  def own_inside(self) -> slice:
    """What belongs to the window, counted from the window's first pixel."""
    return slice(self.own_start - self.start, self.own_stop - self.start)


class Window(NamedTuple):
  """A part of an image, no larger than the canvas."""

  rows: Span
  columns: Span

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) of what is seen, in pixels."""
    return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def windows(size: tuple[int, int], canvas: tuple[int, int], overlap: float) -> list[Window]:
  """The windows of an image, row by row.

  Args:
    size: (height, width) of the image in pixels.
    canvas: (height, width) of a window in pixels.
    overlap: least share of a window that the next one sees too, in [0, 1).

  Returns:
    Evenly spread windows, as few as the overlap allows; one, as large as the image, where
    that fits the canvas. Each pixel of the image belongs to one of them.
  """
  rows, columns = (_spans(length, side, overlap) for length, side in zip(size, canvas, strict=True))
  return [Window(row, column) for row in rows for column in columns]


def _spans(length: int, side: int, overlap: float) -> list[Span]:
  stride = max(1, side - math.ceil(overlap * side))
  count = 1 + max(0, -(-(length - side) // stride))
  starts = np.linspace(0, max(length - side, 0), count).astype(int)
  stops = np.minimum(starts + side, length)
  between = (starts[1:] + stops[:-1]) // 2  # the middle of what two neighbours both see
  own = np.concatenate([[0], between, [length]])
  return [Span(*map(int, ends)) for ends in zip(starts, stops, own[:-1], own[1:], strict=True)]


def cut(image: np.ndarray, window: Window, canvas: tuple[int, int]) -> np.ndarray:
  """Cuts a window out of an image and lays it at the top left of a canvas.

  Args:
    image: [height, width, ...].
    window: one of `windows`.
    canvas: (height, width) in pixels.

  Returns:
    [*canvas, ...] of the same type, 0 beyond the image.
  """
  tile = np.zeros((*canvas, *image.shape[2:]), image.dtype)
  tile[: window.size[0], : window.size[1]] = image[window.rows.seen, window.columns.seen]
  return tile


def extent(window: Window, canvas: tuple[int, int]) -> np.ndarray:
  """The (height, width) share of the canvas that a window covers, float32 [2]."""
  return (np.array(window.size) / np.array(canvas)).astype(np.float32)
