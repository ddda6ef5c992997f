"""Boxes -> masks at an image's own size, for people who label images.

The network sees the whole image once, at `ZOOM` times the canvas, with all boxes; around each box
what it said is cut out and judged (`losses.instances`). Few shapes are compiled: one of the
network for each power of two of boxes, two of the crops.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from boxseg_jax import augment
from boxseg_jax.data.examples import fit_image
from boxseg_jax.losses import instances
from boxseg_jax.losses.instances import SIDE, Crop, Outcome
from boxseg_jax.models import refiner
from boxseg_jax.models.layers import blocks_of_four

# Networks learn from images at up to twice the canvas's scale, and boxes are small: chosen among
# 1, 1.5, 2, 3, 4 and their means (launch/results/method.md).
ZOOM = 2
SHARE = 0.75  # of a crop that its box takes, so that there is something around it
_SLIMMEST = 4.0  # times longer than wide; slimmer boxes are stretched, to have some pixels
_NEAR = 12  # other boxes of a crop, those that cover most of the box first
_CHUNKS = 8, 32  # crops at once
_FEWEST_BOXES = 8  # slots

# (state, batch as from `augment.prepare`) -> (logits, own_logits, features), see
# `step.make_evidence_fn`.
EvidenceFn = Callable[[Any, Any], tuple[jax.Array, jax.Array, jax.Array]]


class BoxMask(NamedTuple):
  """The object in a box.

  Attributes:
    top: first row, in pixels of the image.
    left: first column.
    pixels: bool [rows, columns], the pixels of the box: those whose centres it holds, or the one in
      its middle. At least one is True.
    certainty: float in [0, 1], the IoU that is to be expected.
  """

  top: int
  left: int
  pixels: np.ndarray
  certainty: float

  def whole(self, size: tuple[int, int]) -> np.ndarray:
    """The mask of the whole image, bool [height, width]."""
    mask = np.zeros(size, bool)
    height, width = self.pixels.shape
    mask[self.top : self.top + height, self.left : self.left + width] = self.pixels
    return mask


class SeenBox(NamedTuple):
  """What a refiner sees of one box.

  Attributes:
    outcome: `losses.instances.Outcome` of its crop, numpy.
    y: float32 [side], rows of the crop in pixels of the image.
    x: float32 [side], its columns.
  """

  outcome: Outcome
  y: np.ndarray
  x: np.ndarray

  def sample(self, pixels: np.ndarray) -> np.ndarray:
    """A mask of the image in the crop: bool [height, width] -> float64 [side, side] in [0, 1]."""
    down, across = (
      _between(at, np.arange(length) + 0.5)
      for at, length in zip((self.y, self.x), pixels.shape, strict=True)
    )
    return down @ pixels @ across.T


class BoxLabeller:
  """A network bound to how boxes are made into masks."""

  def __init__(
    self,
    evidence_fn: EvidenceFn,
    state: Any,
    *,
    canvas: tuple[int, int],
    mean_masks: Any,
    fill_bands: Any,
    refiner_variables: Any = None,
  ):
    """Binds the network; each shape is compiled when it is first met.

    Args:
      evidence_fn: see `EvidenceFn`; of any size of image.
      state: what it takes.
      canvas: (height, width) in pixels that images were fitted to in training.
      mean_masks: of the classes, see `data.box_priors.BoxPriors`.
      fill_bands: likewise.
      refiner_variables: of `models.refiner`, learned with this network; None: the rules alone.
    """
    self._canvas = (ZOOM * canvas[0], ZOOM * canvas[1])

    def judge(refiner_variables, seen, extent, crops):
      refine = refiner_variables and partial(refiner.build().apply, refiner_variables, train=False)
      crops = _with_evidence(seen, extent, crops)
      return instances.masks(crops, mean_masks, fill_bands, refine)

    def outcomes(seen, extent, crops):
      crops = _with_evidence(seen, extent, crops)
      return instances.outcomes(crops, mean_masks, fill_bands)

    self._state, self._look = state, jax.jit(partial(look, evidence_fn))
    self._judge = partial(jax.jit(judge), refiner_variables)
    self._outcomes = jax.jit(outcomes)

  def masks(
    self,
    image: np.ndarray,
    boxes: np.ndarray,
    box_classes: np.ndarray,
    wanted: Sequence[int] | None = None,
  ) -> list[BoxMask | None]:
    """Masks of boxes of one image.

    Args:
      image: uint8 [height, width, 3], RGB.
      boxes: float [n, 4], (ymin, xmin, ymax, xmax) in pixels; all that are known of the image,
        crowds left out. What lies beyond the image is cut off.
      box_classes: int [n], >= 1.
      wanted: positions of the boxes whose masks are wanted; None: all.

    Returns:
      One for each wanted box, in order; None for a box that covers nothing of the image.
    """
    size = np.array(image.shape[:2])
    boxes, box_classes = _of_image(boxes, size), np.asarray(box_classes, np.int32)
    wanted = range(len(boxes)) if wanted is None else wanted
    real = _covering(boxes, wanted)
    found = {}
    if real:
      seen, extent = self._seen(image, boxes, box_classes)
      crops = [_crop(image, boxes, box_classes, index) for index in real]
      judged = _in_chunks(partial(self._judge, seen, extent), crops)
      for index, crop, outcome in zip(real, crops, judged, strict=True):
        found[index] = _at_own_size(boxes[index], size, (crop["y"], crop["x"]), *outcome)
    return [found.get(int(index)) for index in wanted]

  def seen_boxes(
    self,
    image: np.ndarray,
    boxes: np.ndarray,
    box_classes: np.ndarray,
    wanted: Sequence[int],
    share: float = SHARE,
  ) -> list[SeenBox]:
    """What a refiner sees of each wanted box; arguments as of `masks`.

    Args:
      image: uint8 [height, width, 3], RGB.
      boxes: float [n, 4].
      box_classes: int [n].
      wanted: positions of boxes that cover something of the image.
      share: of a crop's side that its box takes.
    """
    boxes, box_classes = _of_image(boxes, image.shape[:2]), np.asarray(box_classes, np.int32)
    seen, extent = self._seen(image, boxes, box_classes)
    crops = [_crop(image, boxes, box_classes, int(index), share) for index in wanted]
    found = _in_chunks(partial(self._outcomes, seen, extent), crops)
    return [
      SeenBox(Outcome(*outcome), crop["y"], crop["x"])
      for outcome, crop in zip(found, crops, strict=True)
    ]

  def _seen(self, image, boxes, box_classes):
    """`Seen` on the canvas, and what of it is image."""
    fitted, extent = fit_image(image, self._canvas)
    slots = max(_FEWEST_BOXES, 1 << (len(boxes) - 1).bit_length())
    filling = slots - len(boxes)
    shares = np.pad(boxes / np.tile(image.shape[:2], 2), ((0, filling), (0, 0)))
    classes = np.pad(box_classes, (0, filling))
    extent = extent[None]
    seen = self._look(
      self._state, fitted[None], extent, shares[None].astype(np.float32), classes[None]
    )
    return seen, extent[0]


def _of_image(boxes, size):
  """Boxes float64 [n, 4] without what lies beyond the image."""
  return np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0.0, np.tile(size, 2))


def _covering(boxes, wanted) -> list[int]:
  """Positions of the boxes that cover something of the image."""
  return [int(index) for index in wanted if (boxes[index, 2:] > boxes[index, :2]).all()]


def _in_chunks(judge, crops) -> list[tuple]:
  """What `judge` gives of each crop, from as few shapes as `_CHUNKS` has."""
  started, done = [], 0
  while done < len(crops):
    rest = len(crops) - done
    count = next((c for c in _CHUNKS if c >= rest), _CHUNKS[-1])
    chunk = crops[done : done + count]
    filled = chunk + chunk[-1:] * (count - len(chunk))
    stacked = {name: np.stack([crop[name] for crop in filled]) for name in filled[0]}
    started.append(judge(stacked))
    done += count
  # Fetched when all are started. What fills up the last chunk comes last.
  outcomes = [one for chunk in jax.device_get(started) for one in zip(*chunk, strict=True)]
  return outcomes[: len(crops)]


class Seen(NamedTuple):
  """What the network sees of one image that is shown with its boxes, on the canvas.

  Attributes:
    logits: float32 [height, width, num_classes], of the network and its teacher.
    own_logits: float32 [height, width, num_classes], of the network alone.
    features: float32 [h, w, f], from which they tell them.
  """

  logits: jax.Array
  own_logits: jax.Array
  features: jax.Array


def look(evidence_fn: EvidenceFn, state, image, extent, boxes, box_classes) -> Seen:
  """Shows the network an image and its boxes.

  Args:
    evidence_fn: see `EvidenceFn`.
    state: what it takes.
    image: uint8 [1, height, width, 3], RGB, on a canvas.
    extent: float32 [1, 2], the part of it that is image.
    boxes: float32 [1, n, 4], (ymin, xmin, ymax, xmax) in [0, 1] of the image.
    box_classes: int32 [1, n], 0 = padding.
  """
  batch = augment.unlabelled(image, extent) | {
    "boxes": boxes,
    "box_classes": box_classes,
    "box_is_crowd": jnp.zeros_like(box_classes, bool),
  }
  return Seen(*(x[0] for x in evidence_fn(state, augment.prepare(batch))))


def _with_evidence(seen: Seen, extent, crops) -> Crop:
  """The crops, with what the network saw in them."""
  crops = dict(crops)
  size = crops.pop("size")
  crops["image"] = crops["image"].astype(jnp.float32) / 255
  shape = jnp.array(seen.logits.shape[:2])
  shares = jnp.round(extent * shape) / shape  # of the canvas, as the image was fitted to it

  def sample(grid):
    covered = shares * jnp.array(grid.shape[:2])
    rows, columns = (crops[name] * covered[i] / size[:, i, None] for i, name in enumerate("yx"))
    places = rows[:, :, None], columns[:, None, :]
    return jax.vmap(lambda y, x: augment.sample_bilinear(grid, y, x, covered))(*places)

  logits, own_logits, features = map(sample, seen)
  return Crop(logits, own_logits, blocks_of_four(features).mean((2, 4)), **crops)


def _crop(image, boxes, box_classes, index, share=SHARE) -> dict[str, np.ndarray]:
  """The surroundings of a box, without what the network sees in them."""
  size, box = np.array(image.shape[:2]), boxes[index]
  sides = box[2:] - box[:2]
  steps = np.minimum(sides.max(), _SLIMMEST * sides) / (share * SIDE)
  low = (box[:2] + box[2:]) / 2 - SIDE / 2 * steps
  high = low + SIDE * steps
  y, x = low[:, None] + (np.arange(SIDE) + 0.5) * steps[:, None]
  near = [index, *_neighbours(boxes, index, low, high)]
  filling = _NEAR + 1 - len(near)
  return {
    "image": _patch(image, low, high),
    "y": y.astype(np.float32),
    "x": x.astype(np.float32),
    "shown": ((y >= 0) & (y < size[0]))[:, None] & ((x >= 0) & (x < size[1])),
    "boxes": np.pad(boxes[near], ((0, filling), (0, 0))).astype(np.float32),
    "box_classes": np.pad(box_classes[near], (0, filling)),
    "size": size.astype(np.float32),
  }


def _neighbours(boxes, index, low, high):
  """Positions of other boxes in a crop, first those that cover most of its box, then of it."""
  of_box = _common(boxes, boxes[index, :2], boxes[index, 2:])
  of_crop = _common(boxes, low, high)
  of_crop[index] = 0.0
  ranked = np.lexsort((-of_crop, -of_box))
  return [other for other in ranked.tolist() if of_crop[other] > 0][:_NEAR]


def _common(boxes, low, high):
  """Pixels that boxes share with a rectangle, [n]."""
  sides = np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)
  return np.prod(np.maximum(sides, 0.0), axis=1)


def _patch(image, low, high) -> np.ndarray:
  """A rectangle of an image, uint8 [SIDE, SIDE, 3]; the border pixels go on beyond the image."""
  first, last = np.floor(low).astype(int) - 1, np.ceil(high).astype(int) + 1
  rows, columns = (
    np.clip(np.arange(start, stop), 0, length - 1)
    for start, stop, length in zip(first, last, image.shape[:2], strict=True)
  )
  part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  part = part[(rows - rows[0])[:, None], columns - columns[0]]
  (top, left), (bottom, right) = low - first, high - first
  resized = Image.fromarray(part).resize(
    (SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
  )
  return np.asarray(resized)


def _at_own_size(box, size, place, probability, certainty) -> BoxMask:
  """The mask of a box, from the probabilities of its crop."""
  rows, columns = (_held(box[axis], box[axis + 2], size[axis]) for axis in (0, 1))
  down, across = (_between(own + 0.5, at) for own, at in zip((rows, columns), place, strict=True))
  own = down @ probability @ across.T
  # Never empty: who drew a box saw something.
  pixels = own >= min(instances.THRESHOLD, own.max())
  return BoxMask(int(rows[0]), int(columns[0]), pixels, float(certainty))


def _held(low, high, length) -> np.ndarray:
  """Pixels of one axis whose centres lie in [low, high), or the one in the middle."""
  first, last = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
  if first < last:
    return np.arange(first, last)
  return np.array([min(int((low + high) / 2), length - 1)])


def _between(points, places) -> np.ndarray:
  """Weights [points, places] of linear interpolation between equally spaced places."""
  position = (points - places[0]) / (places[1] - places[0])
  position = np.clip(position, 0.0, len(places) - 1.0)
  return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(len(places))))
