"""Pictures of what the network was given and what it made of it (numpy and Pillow only)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from boxseg_jax.batch import VOID
from boxseg_jax.evaluation import paint

_PAPER = 255
_INK = (40, 40, 40)
_GAP = 6  # pixels between tiles
_LINE = 20  # pixels per line of text
_SMALLEST_TILE, _LARGEST_TILE = 160, 480  # pixels


class Views(NamedTuple):
  """What `panel` shows of some images, numpy arrays on the canvas.

  Attributes:
    image: uint8, or float in [0, 1], [batch, height, width, 3].
    given_labels: int [batch, height, width], what training sees; 255 all over where only boxes
      are given.
    boxes: float [batch, max_boxes, 4], (ymin, xmin, ymax, xmax) in [0, 1] of the canvas.
    box_classes: int [batch, max_boxes], 0 = padding.
    predicted: int [batch, height, width], class ids.
    sigma: float [batch, height, width], >= 0.
    target: float [batch, height, width, num_classes] in [0, 1], bootstrapped target, or None.
    true_labels: int [batch, height, width], or None.
    visible: bool [batch, height, width], canvas pixels that show the image; None = all.
    box_is_crowd: bool [batch, max_boxes], or None.
  """

  image: np.ndarray
  given_labels: np.ndarray
  boxes: np.ndarray
  box_classes: np.ndarray
  predicted: np.ndarray
  sigma: np.ndarray
  target: np.ndarray | None = None
  true_labels: np.ndarray | None = None
  visible: np.ndarray | None = None
  box_is_crowd: np.ndarray | None = None


class _Boxes(NamedTuple):
  """The boxes of one image, as in `Views`, without the batch axis."""

  boxes: np.ndarray
  box_classes: np.ndarray
  box_is_crowd: np.ndarray | None = None


def panel(views: Views, class_names: Sequence[str]) -> np.ndarray:
  """A contact sheet: one row per image, one titled column per view, a legend.

  Small canvases are enlarged pixel by pixel, large ones shrunk, to tiles of 160 to 480 pixels.

  Args:
    views: what to show, of at least one image.
    class_names: names by class id, background first.

  Returns:
    uint8 [page_height, page_width, 3].
  """
  colours = paint.palette(len(class_names))
  top = _sigma_scale(views)
  titles = ["image", "given label and boxes", "prediction", "sigma"]
  titles += ["bootstrapped target"] if views.target is not None else []
  titles += ["true mask"] if views.true_labels is not None else []
  rows = [_row(_one(views, index), colours, top) for index in range(len(views.image))]
  tile_width = rows[0][0].shape[1]
  page_width = len(titles) * (tile_width + _GAP) + _GAP
  scale_bar = (_GAP + titles.index("sigma") * (tile_width + _GAP), tile_width, top)
  bands = [_title_band(titles, tile_width, page_width)]
  bands += [_tile_band(tiles, page_width) for tiles in rows]
  bands += [_scale_band(*scale_bar, page_width), _legend_band(class_names, colours, page_width)]
  return np.concatenate(bands)


def annotated(
  image: np.ndarray,
  labels: np.ndarray | None,
  boxes: np.ndarray,
  box_classes: np.ndarray,
  box_is_crowd: np.ndarray,
  num_classes: int,
) -> np.ndarray:
  """A photograph with the annotation that it came with.

  Args:
    image: uint8 [height, width, 3].
    labels: int [height, width], class ids, 255 = void; None = no mask, only boxes are drawn.
    boxes: float [n, 4], (ymin, xmin, ymax, xmax) in [0, 1] of the image.
    box_classes: int [n].
    box_is_crowd: bool [n].
    num_classes: number of classes, background included.

  Returns:
    uint8 [tile_height, tile_width, 3]; small images are enlarged, large ones shrunk.
  """
  colours = paint.palette(num_classes)
  size = _tile_size(image.shape[:2])
  tile = _photo(image, size)
  if labels is not None:
    tile = paint.overlay(tile, _nearest(labels, size), colours)
  drawn = _draw_boxes(tile, _Boxes(boxes, box_classes, box_is_crowd), colours)
  return _tagged(drawn, "boxes only" if labels is None else "mask")


def predicted(
  image: np.ndarray, classes: np.ndarray, certainty: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
  """What a network says of one photograph: image, prediction and certainty side by side.

  Args:
    image: uint8 [height, width, 3].
    classes: int [height, width], class ids.
    certainty: float [height, width] in [0, 1].
    class_names: names by class id, background first.

  Returns:
    uint8 [page_height, page_width, 3]; small images are enlarged, large ones shrunk.
  """
  colours = paint.palette(len(class_names))
  size = _tile_size(image.shape[:2])
  photo = _photo(image, size)
  tiles = [
    photo,
    paint.overlay(photo, _nearest(classes, size), colours),
    paint.heat(_nearest(certainty, size)),
  ]
  titles = ["image", "prediction", "certainty"]
  width = size[1]
  page_width = len(titles) * (width + _GAP) + _GAP
  scale = _scale_band(_GAP + 2 * (width + _GAP), width, 1.0, page_width)
  bands = [_title_band(titles, width, page_width), _tile_band(tiles, page_width), scale]
  return np.concatenate([*bands, _legend_band(class_names, colours, page_width)])


def judged(
  image: np.ndarray,
  labels: np.ndarray,
  classes: np.ndarray,
  certainty: np.ndarray | None,
  num_classes: int,
  *,
  side: int,
) -> dict[str, np.ndarray]:
  """A photograph, what it should be taken for and what it is, as separate pictures by title.

  Args:
    image: uint8 [height, width, 3].
    labels: int [height, width], class ids, 255 = void.
    classes: int [height, width], predicted class ids.
    certainty: float [height, width] in [0, 1]; None = not shown.
    num_classes: number of classes, background included.
    side: longer side of the pictures in pixels.

  Returns:
    "image", "true mask", "prediction" and "certainty", uint8 [h, w, 3] each.
  """
  colours, size = paint.palette(num_classes), _with_side(image.shape[:2], side)
  photo = _photo(image, size)
  views = {
    "image": photo,
    "true mask": paint.overlay(photo, _nearest(labels, size), colours),
    "prediction": paint.overlay(photo, _nearest(classes, size), colours),
  }
  return (
    views if certainty is None else views | {"certainty": paint.heat(_nearest(certainty, size))}
  )


def box_history(
  image: np.ndarray,
  box: np.ndarray,
  targets: Sequence[np.ndarray],
  true_labels: np.ndarray | None,
  *,
  label: int,
  side: int,
) -> list[np.ndarray]:
  """What a box was taken for, time after time: the same part of an image in each picture.

  Args:
    image: uint8 [height, width, 3].
    box: float [4], (ymin, xmin, ymax, xmax) in [0, 1] of the image; drawn in each picture.
    targets: float [height, width, num_classes] in [0, 1] each, the oldest first.
    true_labels: int [height, width], class ids; None = not known.
    label: class of the box.
    side: of the pictures in pixels.

  Returns:
    The image, a picture for each of the targets, and the true mask where it is known; uint8 [side,
    side, 3] each.
  """
  colours = paint.palette(targets[0].shape[-1])
  rows, columns, place = _around(box, image.shape[:2])
  crop = (slice(*rows), slice(*columns))
  height, width = rows[1] - rows[0], columns[1] - columns[0]
  size = _with_side((height, width), side)
  photo = _photo(image[crop], size)
  tiles = [
    photo,
    *(paint.mixture(photo, _nearest(target[crop], size), colours) for target in targets),
  ]
  if true_labels is not None:
    tiles.append(paint.overlay(photo, _nearest(true_labels[crop], size), colours))
  view = _Boxes(place[None], np.array([label]))
  return [_draw_boxes(tile, view, colours) for tile in tiles]


def _around(box, canvas):
  """((top, bottom), (left, right)) in pixels, a square around a box; and the box in it."""
  ymin, xmin, ymax, xmax = np.asarray(box) * np.tile(canvas, 2)
  reach = 0.65 * max(ymax - ymin, xmax - xmin, 4.0)
  spans = []
  for low, high, limit in ((ymin, ymax, canvas[0]), (xmin, xmax, canvas[1])):
    length = min(limit, math.ceil(2 * reach))
    start = min(max(round((low + high) / 2 - length / 2), 0), limit - length)
    spans.append((start, start + length))
  (top, bottom), (left, right) = spans
  scale = np.array([bottom - top, right - left] * 2)
  return *spans, (np.array([ymin, xmin, ymax, xmax]) - (top, left, top, left)) / scale


def _with_side(size, side):
  """(height, width) of the same aspect whose longer side is given."""
  scale = side / max(size)
  return tuple(max(round(scale * length), 1) for length in size)


def labelled_box(
  image: np.ndarray, box: np.ndarray, mask: np.ndarray, *, label: int, num_classes: int, text: str
) -> np.ndarray:
  """One box and the mask that was made of it: the photograph around it, plain and with the mask.

  Args:
    image: uint8 [height, width, 3].
    box: float [4], (ymin, xmin, ymax, xmax) in [0, 1] of the image; drawn in both.
    mask: bool [height, width].
    label: class of the box.
    num_classes: number of classes, background included.
    text: written into the first.

  Returns:
    uint8 [160, 326, 3].
  """
  colours = paint.palette(num_classes)
  rows, columns, place = _around(box, image.shape[:2])
  crop = (slice(*rows), slice(*columns))
  size = _with_side((rows[1] - rows[0], columns[1] - columns[0]), _SMALLEST_TILE)
  photo = _photo(image[crop], size)
  shown = [photo, paint.overlay(photo, label * _nearest(mask[crop], size).astype(int), colours)]
  view = _Boxes(place[None], np.array([label]))
  tiles = [_padded(_draw_boxes(tile, view, colours), _SMALLEST_TILE) for tile in shown]
  gap = np.full((_SMALLEST_TILE, _GAP, 3), _PAPER, np.uint8)
  return np.concatenate([_tagged(tiles[0], text), gap, tiles[1]], axis=1)


def sheet(tiles: Sequence[np.ndarray], columns: int, class_names: Sequence[str]) -> np.ndarray:
  """Pictures of one size in rows, with a legend of the classes.

  Args:
    tiles: uint8 [tile_height, tile_width, 3] each, at least one.
    columns: in a row.
    class_names: names by class id, background first.

  Returns:
    uint8 [page_height, page_width, 3].
  """
  columns = min(columns, len(tiles))
  page_width = columns * (tiles[0].shape[1] + _GAP) + _GAP
  rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
  bands = [np.full((_GAP, page_width, 3), _PAPER, np.uint8)]
  bands += [_tile_band(row, page_width) for row in rows]
  return np.concatenate(
    [*bands, _legend_band(class_names, paint.palette(len(class_names)), page_width)]
  )


def _padded(tile, side):
  """The tile in the middle of a square."""
  square = np.full((side, side, 3), _PAPER, np.uint8)
  top, left = ((side - length) // 2 for length in tile.shape[:2])
  square[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
  return square


def _one(views: Views, index: int) -> Views:
  """The views of one image, without the batch axis."""
  shown = {name: view for name, view in views._asdict().items() if view is not None}
  return Views(**{name: np.asarray(view[index]) for name, view in shown.items()})


def _row(view: Views, colours: np.ndarray, top: float) -> list[np.ndarray]:
  """The tiles of one image; `view` without the batch axis."""
  size = _tile_size(view.image.shape[:2])
  photo = _photo(view.image, size)
  visible = _nearest(np.ones(view.image.shape[:2], bool), size)
  if view.visible is not None:
    visible = _nearest(view.visible, size)
  given = _nearest(view.given_labels, size)
  boxes_only = bool((given[visible] == VOID).all())
  with_boxes = photo if boxes_only else paint.overlay(photo, given, colours)
  tiles = [
    photo,
    with_boxes,
    paint.overlay(photo, _nearest(view.predicted, size), colours),
    paint.heat(_nearest(view.sigma, size) / top),
  ]
  if view.target is not None:
    tiles.append(paint.mixture(photo, _nearest(view.target, size), colours))
  if view.true_labels is not None:
    tiles.append(paint.overlay(photo, _nearest(view.true_labels, size), colours))
  tiles[1] = _draw_boxes(tiles[1], view, colours)
  tiles = [np.where(visible[..., None], tile, _PAPER).astype(np.uint8) for tile in tiles]
  # The image lies at the top left: what is below it would only make the page longer.
  bottom = 1 + max(np.flatnonzero(visible.any(axis=1)), default=size[0] - 1)
  tiles = [tile[:bottom] for tile in tiles]
  tiles[1] = _tagged(tiles[1], "boxes only" if boxes_only else "mask")
  return tiles


def _tile_size(canvas: tuple[int, int]) -> tuple[int, int]:
  """(height, width) of a tile: the canvas times an integer, or divided by one."""
  height, width = canvas
  enlarge = math.ceil(_SMALLEST_TILE / min(canvas))
  shrink = math.ceil(max(canvas) / _LARGEST_TILE)
  if enlarge > 1:
    return height * enlarge, width * enlarge
  return math.ceil(height / shrink), math.ceil(width / shrink)


def _photo(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The image as uint8 [*size, 3]."""
  if image.dtype != np.uint8:
    image = (255 * np.clip(image, 0, 1)).round().astype(np.uint8)
  resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
  return np.asarray(resized)


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Samples [height, width, ...] at the centres of the pixels of [*size, ...]."""
  height, width = values.shape[:2]
  rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
  columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
  return values[rows][:, columns]


def _sigma_scale(views: Views) -> float:
  """Upper end of the colour scale: nearly the largest visible sigma, two digits, never 0."""
  sigma = np.asarray(views.sigma, np.float32)
  sigma = sigma if views.visible is None else sigma[np.asarray(views.visible)]
  sigma = sigma[np.isfinite(sigma)]
  top = np.percentile(sigma, 99.5) if sigma.size else 0.0
  return max(float(f"{top:.2g}"), 0.01)


def _draw_boxes(tile: np.ndarray, view: Views | _Boxes, colours: np.ndarray) -> np.ndarray:
  """Outlines the boxes in the colour of their class (crowds grey), the largest first."""
  height, width = tile.shape[:2]
  picture = Image.fromarray(tile)
  draw = ImageDraw.Draw(picture)
  crowd = view.box_is_crowd
  areas = (view.boxes[:, 2] - view.boxes[:, 0]) * (view.boxes[:, 3] - view.boxes[:, 1])
  for slot in np.argsort(-areas):
    label = int(view.box_classes[slot])
    if label == 0:
      continue
    colour = paint.GREY if crowd is not None and crowd[slot] else tuple(map(int, colours[label]))
    ymin, xmin, ymax, xmax = view.boxes[slot] * (height, width, height, width)
    # The last pixel inside, not the first one outside; tiny boxes keep one pixel.
    left, top, right, bottom = round(xmin), round(ymin), round(xmax) - 1, round(ymax) - 1
    thick = 2 if min(bottom - top, right - left) > 16 else 1  # or it would fill small boxes
    corners = (left, top, max(right, left), max(bottom, top))
    draw.rectangle(corners, outline=colour, width=thick)
  return np.asarray(picture)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(size=13)


def _tagged(tile: np.ndarray, text: str) -> np.ndarray:
  """Writes a word into the lower left corner."""
  picture = Image.fromarray(tile)
  draw = ImageDraw.Draw(picture)
  bottom = tile.shape[0] - 4
  frame = draw.textbbox((5, bottom), text, font=_font(), anchor="lb")
  draw.rectangle((frame[0] - 3, frame[1] - 2, frame[2] + 3, frame[3] + 2), fill=_INK)
  draw.text((5, bottom), text, font=_font(), anchor="lb", fill="white")
  return np.asarray(picture)


def _blank(height: int, width: int) -> Image.Image:
  return Image.new("RGB", (width, height), (_PAPER,) * 3)


def _title_band(titles: Sequence[str], tile_width: int, page_width: int) -> np.ndarray:
  """Column titles, each over the middle of its tiles."""
  band = _blank(_LINE + _GAP, page_width)
  for column, title in enumerate(titles):
    middle = _GAP + column * (tile_width + _GAP) + tile_width / 2
    place = (middle, (_LINE + _GAP) / 2)
    ImageDraw.Draw(band).text(place, title, font=_font(), anchor="mm", fill=_INK)
  return np.asarray(band)


def _tile_band(tiles: Sequence[np.ndarray], page_width: int) -> np.ndarray:
  """Tiles beside each other."""
  tile_height, tile_width = tiles[0].shape[:2]
  band = np.full((tile_height + _GAP, page_width, 3), _PAPER, np.uint8)
  for column, tile in enumerate(tiles):
    left = _GAP + column * (tile_width + _GAP)
    band[:tile_height, left : left + tile_width] = tile
  return band


def _scale_band(left: int, width: int, top: float, page_width: int) -> np.ndarray:
  """The colour scale of sigma under its column, the same for all rows."""
  band = np.asarray(_blank(10 + _LINE, page_width)).copy()
  band[:10, left : left + width] = paint.heat(np.linspace(0, 1, width)[None])
  picture = Image.fromarray(band)
  draw = ImageDraw.Draw(picture)
  for share, value, anchor in ((0, 0, "lt"), (0.5, top / 2, "mt"), (1, top, "rt")):
    place = (left + share * width, 13)
    draw.text(place, f"{value:.2g}", font=_font(), anchor=anchor, fill=_INK)
  return np.asarray(picture)


def _legend_band(names: Sequence[str], colours: np.ndarray, page_width: int) -> np.ndarray:
  """One swatch and name per foreground class, then void; in as many lines as they need."""
  entries = [*zip(names[1:], colours[1:], strict=True), ("void", None)]
  places, left, line = [], _GAP, 0
  for name, _ in entries:
    length = 14 + 5 + math.ceil(_font().getlength(name)) + 16
    if left + length > page_width and left > _GAP:
      left, line = _GAP, line + 1
    places.append((left, line * _LINE + 3))
    left += length
  picture = _blank((line + 1) * _LINE + _GAP, page_width)
  draw = ImageDraw.Draw(picture)
  for (name, colour), (left, top) in zip(entries, places, strict=True):
    swatch = np.full((14, 14, 3), _PAPER if colour is None else colour, np.uint8)
    swatch = paint.hatch(swatch, np.full((14, 14), colour is None))
    picture.paste(Image.fromarray(swatch), (left, top))
    draw.text((left + 19, top + 7), name, font=_font(), anchor="lm", fill=_INK)
  return np.asarray(picture)
