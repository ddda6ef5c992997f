"""Augmentation on the device: one affine map per example moves everything.

Points are (y, x) in pixels, measured from the top left corner, so that pixel i
covers [i, i + 1) and its centre is i + 0.5. The map is drawn once and used in both
directions: forwards for the corners of the boxes, backwards to ask, for every pixel
of what training sees (the view), where in the image it comes from.
"""

import dataclasses
import math
from typing import NamedTuple

import chex
import dm_pix as pix
import jax
import jax.numpy as jnp

from boxseg_jax.batch import IMAGE_MEAN, VOID, Batch, visible_pixels
from boxseg_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Geometry:
  """Ranges from which the affine map of an example is drawn.

  Attributes:
    scale: (low, high), magnification of the image, log-uniform.
    rotation_degrees: the angle is uniform in plus or minus this.
    flip: probability of mirroring left and right.
  """

  scale: tuple[float, float] = (0.5, 2.0)
  rotation_degrees: float = 5.0
  flip: float = 0.5

  def __post_init__(self):
    if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
      raise InputError(f"augment scale must be (low, high) with 0 < low <= high, is {self.scale}")
    if not 0 <= self.rotation_degrees <= 180:
      raise InputError(f"augment rotation_degrees must be in [0, 180], is {self.rotation_degrees}")
    if not 0 <= self.flip <= 1:
      raise InputError(f"augment flip must be a probability in [0, 1], is {self.flip}")


@dataclasses.dataclass(frozen=True)
class Photometry:
  """Largest changes of colour; each example draws its own, uniformly. 0 = none.

  Attributes:
    brightness: added to every channel, of a full range of 1.
    contrast: the factor around the mean colour is in 1 plus or minus this.
    saturation: the factor on the saturation is in 1 plus or minus this.
    hue: turn of the colour circle, of a full circle of 1.
  """

  brightness: float = 0.2
  contrast: float = 0.2
  saturation: float = 0.2
  hue: float = 0.02

  def __post_init__(self):
    for name, amount in dataclasses.asdict(self).items():
      if not 0 <= amount <= 1:
        raise InputError(f"augment {name} must be in [0, 1], is {amount}")


class AffineMap(NamedTuple):
  """view point = linear @ image point + shift, both (y, x) in pixels.

  Attributes:
    linear: float32 [2, 2], a rotation times `scale`, perhaps mirrored.
    shift: float32 [2].
    scale: float32 [], view pixels per image pixel.
    size: float32 [2], (height, width) of the image in its own pixels.
  """

  linear: jax.Array
  shift: jax.Array
  scale: jax.Array
  size: jax.Array


def augment(
  batch: Batch,
  rng_keys: jax.Array,
  *,
  geometry: Geometry = Geometry(),  # noqa: B008, frozen
  photometry: Photometry = Photometry(),  # noqa: B008, frozen
  crop: tuple[int, int] | None = None,
) -> dict:
  """Moves and recolours every example of a training batch in its own random way.

  Image: bilinear with antialiasing. Labels: nearest. Boxes: bounds of the moved
  corners, clipped to the view. An image larger than the view after scaling is
  cropped anywhere, a smaller one placed anywhere.

  Args:
    batch: the training contract of `boxseg_jax.batch`.
    rng_keys: one PRNG key per example [batch]; an example's result depends on its
      own key and content only, not on its neighbours.
    geometry: ranges of the affine map.
    photometry: ranges of the changes of colour.
    crop: (height, width) of the view in pixels; None = as large as the canvas.

  Returns:
    The batch with, where (height, width) is the size of the view,
      image float32 [batch, height, width, 3], RGB in [0, 1];
      labels int32 [batch, height, width], 255 beyond the image;
      boxes float32 [batch, max_boxes, 4], yxyx in [0, 1] of the VIEW, zeros where
        nothing is left of a box, where also box_classes is 0 and box_is_crowd False;
      visible bool [batch, height, width], the pixels that show the image;
    and without `extent`, which no longer holds. All other keys are passed on.
  """
  chex.assert_rank([batch["image"], batch["labels"], batch["boxes"]], [4, 3, 3])
  chex.assert_equal(rng_keys.shape[0], batch["image"].shape[0])
  names = ("image", "labels", "boxes", "box_classes", "box_is_crowd", "extent")

  def one(example, key):
    return _augment_example(example, key, geometry, photometry, crop)

  moved = jax.vmap(one)({name: batch[name] for name in names}, rng_keys)
  rest = {name: value for name, value in batch.items() if name not in names}
  return rest | moved


def prepare(batch: Batch) -> dict:
  """The same keys as `augment`, with nothing moved or recoloured (evaluation).

  Args:
    batch: the contract of `boxseg_jax.batch`.

  Returns:
    The batch with image float32 in [0, 1] (the fill colour beyond the image), labels
    int32, boxes in [0, 1] of the canvas, and `visible` bool [batch, height, width].
    `extent` still holds and stays, as does all the rest.
  """
  chex.assert_rank([batch["image"], batch["boxes"], batch["extent"]], [4, 3, 2])
  visible = visible_pixels(batch["extent"], batch["image"].shape[1:3])
  image = jnp.asarray(batch["image"], jnp.float32) / 255
  return dict(batch) | {
    "image": jnp.where(visible[..., None], image, jnp.asarray(IMAGE_MEAN)),
    "labels": jnp.asarray(batch["labels"], jnp.int32),
    "boxes": batch["boxes"] * jnp.tile(batch["extent"], 2)[:, None, :],
    "visible": visible,
  }


def unlabelled(images, extents) -> dict:
  """Images of which nothing is known, as `prepare` takes them.

  Args:
    images: uint8 [batch, height, width, 3].
    extents: float32 [batch, 2], (height, width) share of the canvas that each covers.
  """
  return {
    "image": images,
    "extent": extents,
    "labels": jnp.full(images.shape[:3], VOID, jnp.uint8),
    "boxes": jnp.zeros((len(images), 1, 4), jnp.float32),
  }


def _augment_example(example, key, geometry, photometry, crop):
  """`augment` for one example without batch axis."""
  canvas = example["image"].shape[:2]
  view = crop or canvas
  key_geometry, key_colour = jax.random.split(key)
  size = jnp.round(example["extent"] * jnp.array(canvas, jnp.float32))
  affine = draw_map(key_geometry, size, view, geometry)
  y, x = source_points(affine, view)
  visible = (y >= 0) & (y < affine.size[0]) & (x >= 0) & (x < affine.size[1])
  image = example["image"].astype(jnp.float32) / 255
  if geometry.scale[0] < 1:
    image = low_pass(image, affine)
  image = change_colours(sample_bilinear(image, y, x, affine.size), key_colour, photometry)
  nearest = example["labels"][y.astype(jnp.int32), x.astype(jnp.int32)]
  labels = jnp.where(visible, nearest.astype(jnp.int32), VOID)
  boxes, kept = move_boxes(example["boxes"], affine, view)
  kept &= example["box_classes"] > 0
  return {
    # Filled after the colours were changed: the padding is the same in every image.
    "image": jnp.where(visible[..., None], image, jnp.asarray(IMAGE_MEAN)),
    "labels": labels,
    "boxes": jnp.where(kept[:, None], boxes, 0.0),
    "box_classes": jnp.where(kept, example["box_classes"], 0),
    "box_is_crowd": example["box_is_crowd"] & kept,
    "visible": visible,
  }


def draw_map(key, size, view: tuple[int, int], geometry: Geometry) -> AffineMap:
  """Draws the affine map of one example.

  Args:
    key: PRNG key.
    size: float32 [2], (height, width) of the image in pixels.
    view: (height, width) of what is seen of it, in pixels.
    geometry: ranges to draw from.

  Returns:
    The map from the image to the view.
  """
  key_scale, key_place, key_turn, key_flip = jax.random.split(key, 4)
  low, high = geometry.scale
  scale = low * (high / low) ** jax.random.uniform(key_scale)
  turn = math.radians(geometry.rotation_degrees) * jax.random.uniform(key_turn, minval=-1)
  flipped = jax.random.bernoulli(key_flip, geometry.flip)
  # The free room is negative where the scaled image is larger than the view, and
  # the same product is then a crop. Whole pixels: a scale of 1 must not blur.
  room = jnp.array(view, jnp.float32) - scale * size
  corner = jnp.round(jax.random.uniform(key_place, (2,)) * room)
  # Turning about the middle of what is seen uncovers the least padding.
  pivot = (jnp.maximum(corner, 0) + jnp.minimum(corner + scale * size, jnp.array(view))) / 2
  rotation = jnp.array([[jnp.cos(turn), -jnp.sin(turn)], [jnp.sin(turn), jnp.cos(turn)]])
  mirror = jnp.where(flipped, jnp.array([1.0, -1.0]), jnp.ones(2))
  mirrored_at = jnp.where(flipped, scale * size * jnp.array([0.0, 1.0]), 0.0)
  # Written out instead of `@`: matrix units round their inputs on some devices.
  shift = jnp.sum(rotation * (mirrored_at + corner - pivot), axis=1) + pivot
  return AffineMap(linear=scale * rotation * mirror, shift=shift, scale=scale, size=size)


def source_points(affine: AffineMap, view: tuple[int, int]):
  """Where in the image the centre of every pixel of the view comes from.

  Args:
    affine: the map from the image to the view.
    view: (height, width) in pixels.

  Returns:
    y and x, each float32 [height, width], in image pixels, perhaps beyond the image.
  """
  height, width = view
  (a, b), (c, d) = affine.linear
  determinant = a * d - b * c
  y = (jnp.arange(height) + 0.5)[:, None] - affine.shift[0]
  x = (jnp.arange(width) + 0.5)[None, :] - affine.shift[1]
  return (d * y - b * x) / determinant, (a * x - c * y) / determinant


def low_pass(image, affine: AffineMap):
  """Removes what a shrunken image could not show (Moire, jagged edges).

  A triangle of half-width 1 / scale, sampled at whole pixels, has the variance that
  the bilinear sampling afterwards lacks for a triangle of that width in one pass (as
  Pillow and `jax.image.resize` have it). At a scale of 1 or more it is the identity.

  Args:
    image: float32 [height, width, 3].
    affine: the map that the image will be sampled with; pixels beyond its `size`
      are padding and do not leak into the image.

  Returns:
    float32 [height, width, 3].
  """
  radius = jnp.maximum(1.0, 1 / affine.scale)

  def weights(length, size):
    position = jnp.arange(length)
    triangle = jnp.maximum(0.0, 1 - jnp.abs(position[:, None] - position) / radius)
    triangle *= position < size
    return triangle / jnp.maximum(jnp.sum(triangle, axis=1, keepdims=True), 1e-6)

  rows = weights(image.shape[0], affine.size[0])
  columns = weights(image.shape[1], affine.size[1])
  image = jnp.einsum("ij,jxc->ixc", rows, image, precision="highest")
  return jnp.einsum("ij,yjc->yic", columns, image, precision="highest")


def sample_bilinear(image, y, x, size):
  """Reads an image between its pixels; its border pixels go on beyond it.

  Args:
    image: float32 [height, width, 3].
    y: float32 [out_height, out_width], in image pixels.
    x: float32 [out_height, out_width], in image pixels.
    size: float32 [2], (height, width) of the part that is image, >= 1.

  Returns:
    float32 [out_height, out_width, 3].
  """
  row, next_row, along_y = _neighbours(y, size[0])
  column, next_column, along_x = _neighbours(x, size[1])
  upper = (1 - along_x) * image[row, column] + along_x * image[row, next_column]
  lower = (1 - along_x) * image[next_row, column] + along_x * image[next_row, next_column]
  return (1 - along_y) * upper + along_y * lower


def _neighbours(position, length):
  """The two pixels around a position on one axis, and the weight [..., 1] of the second."""
  centred = jnp.clip(position - 0.5, 0.0, length - 1)
  first = jnp.floor(centred)
  second = jnp.minimum(first + 1, length - 1)
  return first.astype(jnp.int32), second.astype(jnp.int32), (centred - first)[..., None]


def move_boxes(boxes, affine: AffineMap, view: tuple[int, int]):
  """Bounds of the moved corners of boxes, clipped to the view.

  Args:
    boxes: float32 [boxes, 4], yxyx in [0, 1] of the image.
    affine: the map from the image to the view.
    view: (height, width) in pixels.

  Returns:
    float32 [boxes, 4], yxyx in [0, 1] of the view, and bool [boxes]: whether
    anything of the box is left.
  """
  corners = boxes[:, jnp.array([[0, 1], [0, 3], [2, 1], [2, 3]])] * affine.size
  corners = jnp.sum(affine.linear * corners[:, :, None, :], axis=-1) + affine.shift
  corners = jnp.clip(corners / jnp.array(view, jnp.float32), 0.0, 1.0)
  low, high = jnp.min(corners, axis=1), jnp.max(corners, axis=1)
  return jnp.concatenate([low, high], axis=1), jnp.all(low < high, axis=1)


def change_colours(image, key, photometry: Photometry):
  """Draws and applies changes of brightness, contrast, saturation and hue.

  Args:
    image: float32 [height, width, 3], RGB in [0, 1].
    key: PRNG key.
    photometry: the largest changes; a step whose amount is 0 is left out, so that it
      costs nothing and changes no bit.

  Returns:
    float32 [height, width, 3], RGB in [0, 1].
  """
  brightness, contrast, saturation, hue = jax.random.uniform(key, (4,), minval=-1)
  if photometry.brightness:
    image = pix.adjust_brightness(image, photometry.brightness * brightness)
  if photometry.contrast:
    image = pix.adjust_contrast(image, 1 + photometry.contrast * contrast)
  image = jnp.clip(image, 0.0, 1.0)  # colours beyond have no hue
  if photometry.saturation:
    image = pix.adjust_saturation(image, 1 + photometry.saturation * saturation)
  if photometry.hue:
    image = pix.adjust_hue(image, photometry.hue * hue)
  return jnp.clip(image, 0.0, 1.0)
