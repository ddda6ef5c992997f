"""Record -> example of the batch contract: the one reader that every feed uses."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from boxseg_jax.batch import VOID, padding_example
from boxseg_jax.data.records import Record

_JPEG_BLOCK = 8  # pixels, the largest factor by which decoding can reduce


def fitted_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
  """Largest size of the same aspect that fits the canvas, in whole pixels.

  Args:
    size: (height, width) of the image in pixels.
    canvas: (height, width) of the canvas in pixels.

  Returns:
    (height, width), each at least 1; one of them is the canvas's.
  """
  scale = min(canvas[0] / size[0], canvas[1] / size[1])
  height, width = (
    min(max(round(side * scale), 1), limit) for side, limit in zip(size, canvas, strict=True)
  )
  return height, width


def decoded_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
  """Least size at which a JPEG may be decoded before `fit_image` fits it to the canvas.

  The decoder all but averages areas (0.5 levels off on photographs, where Pillow's filters are 1.3
  apart), and needs half the time of decoding everything and filtering it. It counts in blocks:
  where they do not fill the image, its pixels lie up to one off those of the labels, and only at
  twice the size that is needed is that half a pixel.

  Args:
    size: (height, width) of the image in pixels.
    canvas: (height, width) of the canvas in pixels.

  Returns:
    (height, width).
  """
  height, width = fitted_size(size, canvas)
  spare = 2 if any(side % _JPEG_BLOCK for side in size) else 1
  return spare * height, spare * width


def fit_image(image: np.ndarray, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Scales an image to fit the canvas and lays it at the top left.

  Args:
    image: uint8 [height, width, 3], RGB.
    canvas: (height, width) in pixels.

  Returns:
    uint8 [*canvas, 3], black beyond the image (the image itself where it is as large as
    the canvas); and its extent float32 [2], the (height, width) share of the canvas that it
    covers.
  """
  if image.shape[:2] == tuple(canvas):
    return image, np.ones(2, np.float32)
  size = fitted_size(image.shape[:2], canvas)
  fitted = np.zeros((*canvas, 3), np.uint8)
  fitted[: size[0], : size[1]] = _resized(image, size, Image.Resampling.BILINEAR)
  return fitted, (np.array(size) / np.array(canvas)).astype(np.float32)


def fit_labels(labels: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
  """Does to a label map what `fit_image` does to its image, without mixing classes.

  Args:
    labels: uint8 [height, width], class ids.
    canvas: (height, width) in pixels.

  Returns:
    uint8 [*canvas], 255 beyond the image (the labels themselves where they are as large as the
    canvas).
  """
  if labels.shape == tuple(canvas):
    return labels
  size = fitted_size(labels.shape, canvas)
  fitted = np.full(canvas, VOID, np.uint8)
  fitted[: size[0], : size[1]] = _resized(labels, size, Image.Resampling.NEAREST)
  return fitted


class ExampleReader:
  """Reads examples by their position in the split's records.

  Safe to call from several threads at once.

  Attributes:
    records: the records, by position.
    canvas: (height, width) of every example, in pixels.
    max_boxes: box slots of every example.
  """

  def __init__(
    self,
    records: Sequence[Record],
    canvas: tuple[int, int],
    max_boxes: int,
    hide_labels: np.ndarray,
    cache: bool,
    pseudo_labels: Callable[[Record], np.ndarray] | None = None,
  ):
    """Binds the reader; nothing is read yet.

    Args:
      records: the records.
      canvas: (height, width) in pixels.
      max_boxes: box slots; no record may have more boxes (`records.max_boxes`).
      hide_labels: bool [records], True for box images: their masks are not even
        opened for training.
      cache: keep decoded canvases in memory, 4 bytes per pixel and image.
      pseudo_labels: gives box images a mask to learn from in place of their own:
        record -> uint8 [height, width] of the image.
    """
    if len(hide_labels) != len(records):
      raise ValueError(f"{len(hide_labels)} flags for {len(records)} records")
    self.records = list(records)
    self.canvas = (int(canvas[0]), int(canvas[1]))
    self.max_boxes = max_boxes
    self._hide_labels = np.array(hide_labels, bool)
    self._cache = cache
    self._pseudo_labels = pseudo_labels
    self._images: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._labels: dict[int, np.ndarray] = {}

  def __len__(self) -> int:
    return len(self.records)

  def __call__(self, index: int) -> dict[str, np.ndarray]:
    """Reads an example for training.

    Args:
      index: position of the record.

    Returns:
      One example of the batch contract, without batch axis. Arrays may be shared
      with the cache and are then read-only.

    Raises:
      InputError: a file is missing or unreadable.
    """
    given = self._given_labels(index)
    if given is None:
      return self._example(index, None)
    read = partial(self._fitted_labels, given)
    return self._example(index, self._remembered(self._labels, index, read))

  def _fitted_labels(self, given: Callable[[], np.ndarray], _: int) -> np.ndarray:
    return fit_labels(given(), self.canvas)

  def evaluation(self, index: int) -> dict[str, np.ndarray]:
    """Reads an example for evaluation: true labels, whatever training may see.

    Args:
      index: position of the record.

    Returns:
      One example of the batch contract with `full_labels` uint8 [height, width] at
      the image's own size, not padded yet, and `full_size` int32 [2]. All labels
      are 255 and `has_mask` is False where no mask is known.

    Raises:
      InputError: a file is missing or unreadable.
    """
    record = self.records[index]
    read = record.read_labels
    full = np.full(record.size, VOID, np.uint8) if read is None else read()
    example = self._example(index, None if read is None else fit_labels(full, self.canvas))
    return example | {
      "full_labels": full,
      "full_size": np.array(full.shape, np.int32),
    }

  def _example(self, index: int, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    record = self.records[index]
    boxes = len(record.boxes)
    image, extent = self._canvas_image(index)
    example = padding_example((0, 0), self.max_boxes)
    example["boxes"][:boxes] = record.boxes
    example["box_classes"][:boxes] = record.box_classes
    example["box_is_crowd"][:boxes] = record.box_is_crowd
    known = labels is not None
    shown = np.full(self.canvas, VOID, np.uint8) if labels is None else labels
    return example | {
      "image": image,
      "labels": shown,
      "has_mask": np.array(known),
      "valid": np.array(True),
      "extent": extent,
      "image_id": np.array(index, np.int32),
    }

  def _canvas_image(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    return self._remembered(self._images, index, self._read_canvas_image)

  def _read_canvas_image(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    record = self.records[index]
    if record.read_reduced is None:
      return fit_image(record.read_image(), self.canvas)
    return fit_image(record.read_reduced(decoded_size(record.size, self.canvas)), self.canvas)

  def _given_labels(self, index: int) -> Callable[[], np.ndarray] | None:
    """Reads what training may learn from, at the image's own size; None if there is nothing."""
    record = self.records[index]
    if record.read_labels is not None and not self._hide_labels[index]:
      return record.read_labels
    pseudo_labels = self._pseudo_labels
    return None if pseudo_labels is None else partial(pseudo_labels, record)

  def _remembered(self, store, index, read):
    # Two threads may read the same image at once; both get equal arrays, and the
    # dict takes either, so no lock is needed.
    if index in store:
      return store[index]
    value = read(index)
    if self._cache:
      for array in value if isinstance(value, tuple) else (value,):
        array.flags.writeable = False
      store[index] = value
    return value


def _resized(array: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
  if array.shape[:2] == size:
    return array
  return np.asarray(Image.fromarray(array).resize(size[::-1], method))
