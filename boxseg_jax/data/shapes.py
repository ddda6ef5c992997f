"""Source `shapes`: scenes that the program makes itself, for a run without any files.

Stars, crescents and triangles lie among distractors (ellipses, bars, blobs) on a
textured ground, cover each other in random order, and are cut off by the border.
Colour is a hint at the class that misleads now and then, so that form counts, too.
The forms fill a third to a half of their boxes: a box filled with its class is a bad
mask. Each image is a pure function of (seed, split, index).
"""

import colorsys
import zlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError

SIZE = 96  # height and width in pixels
OBJECTS = ("star", "crescent", "triangle")
DISTRACTORS = ("ellipse", "bar", "blob")
# An object of which less is seen is not drawn at all: no one would draw its box.
MIN_VISIBLE_PIXELS = 24
MIN_VISIBLE_SHARE = 0.3
# How often an object has the hue of its kind, and a distractor none to speak of.
# Lower values make the forms count more, and training take longer.
OWN_HUE_SHARE = 0.95
DULL_SHARE = 0.8
DULL, VIVID = (0.05, 0.4), (0.45, 0.95)  # ranges of the saturation


class Thing(NamedTuple):
  """An object or a distractor.

  Attributes:
    kind: one of OBJECTS or DISTRACTORS.
    centre: (y, x) in pixels.
    radius: of the circle around it, in pixels.
    angle: radians.
    form: three numbers in [0, 1] that vary the form within its kind.
  """

  kind: str
  centre: tuple[float, float]
  radius: float
  angle: float
  form: tuple[float, float, float]


def load(split: str, count: int, seed: int, class_names: Sequence[str]) -> list[Record]:
  """Makes the records of a split. Textures are only drawn when an image is read.

  Args:
    split: any name; splits of different names share no image.
    count: number of images.
    seed: draws another data set.
    class_names: class names by class id, the background first, then any of OBJECTS;
      one that is not named is a distractor.

  Returns:
    Records 0 ... count - 1, with masks; more of them do not change the first ones.

  Raises:
    InputError: a class that this source does not have, or none at all.
  """
  foreground = tuple(class_names[1:])
  for name in foreground:
    if name not in OBJECTS:
      raise InputError(
        f'data.class_names: the source "shapes" has no class "{name}", only {", ".join(OBJECTS)}'
      )
  if not foreground or count < 1 or seed < 0:
    raise InputError(f"data.shapes: no {count} images of classes {foreground} with seed {seed}")
  return [_record(foreground, seed, split, index) for index in range(count)]


def _record(foreground, seed, split, index):
  things = draw_things(_random_stream(seed, split, index, "things"))
  names = [thing.kind for thing in things if thing.kind in foreground]
  masks = _objects(things, foreground)
  boxes = np.array([_bounds(mask) for mask in masks], np.float32).reshape(-1, 4)
  classes = np.array([1 + foreground.index(name) for name in names], np.int32)
  return Record(
    image_id=f"{split}_{index:05d}",
    source=f"shapes, seed {seed}",
    size=(SIZE, SIZE),
    boxes=boxes / np.float32(SIZE),
    box_classes=classes,
    box_is_crowd=np.zeros(len(names), bool),
    classes=frozenset(classes.tolist()),
    read_image=partial(read_image, seed, split, index),
    read_labels=partial(read_labels, seed, split, index, foreground),
  )


def _bounds(mask):
  """(ymin, xmin, ymax, xmax) in pixels around all pixels of a mask."""
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def read_labels(seed: int, split: str, index: int, foreground: tuple[str, ...]) -> np.ndarray:
  """Draws the label map of an image.

  Args:
    seed: seed of the data set.
    split: name of the split.
    index: number of the image in its split.
    foreground: names of the classes 1, 2, ...

  Returns:
    uint8 [SIZE, SIZE], class ids.
  """
  things = draw_things(_random_stream(seed, split, index, "things"))
  ids = [foreground.index(t.kind) + 1 if t.kind in foreground else 0 for t in things]
  # The owner -1, the ground, picks the last entry.
  return np.array([*ids, 0], np.uint8)[visible_owner(things)]


def read_objects(seed: int, split: str, index: int, foreground: tuple[str, ...]) -> np.ndarray:
  """Draws the masks of an image's objects one by one, as annotation tools have them.

  Args:
    seed: seed of the data set.
    split: name of the split.
    index: number of the image in its split.
    foreground: names of the classes 1, 2, ...

  Returns:
    bool [n, SIZE, SIZE], what is seen of each object, in the order of the record's boxes.
  """
  return _objects(draw_things(_random_stream(seed, split, index, "things")), foreground)


def _objects(things, foreground):
  owner = visible_owner(things)
  masks = [owner == i for i, thing in enumerate(things) if thing.kind in foreground]
  return np.array(masks, bool).reshape(-1, SIZE, SIZE)


def read_image(seed: int, split: str, index: int) -> np.ndarray:
  """Paints an image: ground, things from back to front, light, lens and sensor.

  Args:
    seed: seed of the data set.
    split: name of the split.
    index: number of the image in its split.

  Returns:
    uint8 [SIZE, SIZE, 3], RGB.
  """
  things = draw_things(_random_stream(seed, split, index, "things"))
  random = _random_stream(seed, split, index, "colours")
  image = _textured(random, _two_colours(random, random.uniform(), DULL), cell_counts=(3, 8, 24))
  shadow_offset = random.uniform(-3, 3, 2)
  shadow_depth = random.uniform(0.1, 0.45)
  for thing in things:
    shadow = thing._replace(centre=tuple(thing.centre + shadow_offset))
    image *= 1 - shadow_depth * np.clip(0.5 - distance(shadow) / 5, 0, 1)[..., None]
    # Half a pixel to either side of the outline is mixed, as a camera would.
    cover = np.clip(0.5 - distance(thing), 0, 1)[..., None]
    image += cover * (_textured(random, _thing_colours(random, thing.kind), (2, 6, 20)) - image)
  return _photographed(random, image)


def draw_things(random: np.random.RandomState) -> list[Thing]:
  """Draws what lies in a scene, from back to front.

  Args:
    random: random numbers.

  Returns:
    Objects and distractors; of every object enough is seen to have a box.
  """
  kinds = [*random.choice(OBJECTS, random.randint(2, 7))]
  kinds += [*random.choice(DISTRACTORS, random.randint(2, 6))]
  random.shuffle(kinds)
  things: list[Thing] = []
  for kind in kinds:
    centre = random.uniform(6, SIZE - 6, 2)
    if things and random.uniform() < 0.4:  # crowd together, so that boxes overlap
      neighbour = things[random.randint(len(things))]
      centre = np.clip(neighbour.centre + random.normal(0, 14, 2), 4, SIZE - 4)
    radius = random.uniform(11, 25) if kind in OBJECTS else random.uniform(6, 17)
    angle, *form = random.uniform(0, 1, 4)
    things.append(Thing(str(kind), tuple(centre), radius, 2 * np.pi * angle, tuple(form)))
  owner = visible_owner(things)
  return [thing for i, thing in enumerate(things) if _is_seen(thing, owner == i)]


def _is_seen(thing, visible):
  if thing.kind in DISTRACTORS:
    return True
  needed = MIN_VISIBLE_SHARE * np.count_nonzero(distance(thing) < 0)
  return np.count_nonzero(visible) >= max(needed, MIN_VISIBLE_PIXELS)


def visible_owner(things: Sequence[Thing]) -> np.ndarray:
  """Whose pixel it is.

  Args:
    things: from back to front.

  Returns:
    int [SIZE, SIZE], position of the foremost thing over the pixel, -1 = the ground.
  """
  owner = np.full((SIZE, SIZE), -1)
  for position, thing in enumerate(things):
    owner[distance(thing) < 0] = position
  return owner


@lru_cache(maxsize=64)  # several passes over the things of one scene
def distance(thing: Thing) -> np.ndarray:
  """How far pixels are from the outline of a thing.

  Args:
    thing: object or distractor.

  Returns:
    float32 [SIZE, SIZE], about the distance in pixels, negative inside.
  """
  centres = np.arange(SIZE, dtype=np.float32) + 0.5
  y, x = centres[:, None] - thing.centre[0], centres[None, :] - thing.centre[1]
  sine, cosine = np.sin(thing.angle), np.cos(thing.angle)
  along, across = cosine * x + sine * y, cosine * y - sine * x
  outlines = {
    "star": _star,
    "crescent": _crescent,
    "triangle": _triangle,
    "ellipse": _ellipse,
    "bar": _bar,
    "blob": _blob,
  }
  return outlines[thing.kind](along, across, thing.radius, thing.form).astype(np.float32)


def _star(x, y, radius, form):
  """Five or six points; the inner corners at 0.38 to 0.55 of the radius."""
  half = np.pi / (5 + (form[0] > 0.5))
  inner = radius * (0.38 + 0.17 * form[1])
  # Folded around the nearest point, the outline is one straight edge.
  turn = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
  length = np.hypot(x, y)
  edge_x, edge_y = inner * np.cos(half) - radius, inner * np.sin(half)
  away = (length * np.cos(turn) - radius) * edge_y - length * np.sin(turn) * edge_x
  return away / np.hypot(edge_x, edge_y)


def _crescent(x, y, radius, form):
  """A disc without another one of nearly its size."""
  bite = radius * (0.75 + 0.15 * form[0])
  offset = radius * (0.45 + 0.2 * form[1])
  return np.maximum(np.hypot(x, y) - radius, bite - np.hypot(x - offset, y))


def _triangle(x, y, radius, form):
  """Corners on the circle, a third of it apart give or take 20 degrees."""
  turns = 2 * np.pi / 3 * np.arange(3) + 0.7 * (np.array(form) - 0.5)
  middles, halves = (turns + np.roll(turns, -1)) / 2, (np.roll(turns, -1) - turns) / 2
  middles[2], halves[2] = middles[2] + np.pi, halves[2] + np.pi
  sides = [
    np.cos(middle) * x + np.sin(middle) * y - radius * np.cos(half)
    for middle, half in zip(middles, halves, strict=True)
  ]
  return np.maximum(np.maximum(sides[0], sides[1]), sides[2])


def _ellipse(x, y, radius, form):
  short = radius * (0.5 + 0.5 * form[0])
  return (np.hypot(x / radius, y / short) - 1) * short


def _bar(x, y, radius, form):
  return np.maximum(np.abs(x) - 1.5 * radius, np.abs(y) - radius * (0.15 + 0.3 * form[0]))


def _blob(x, y, radius, form):
  turn = np.arctan2(y, x)
  waves = 0.25 * np.sin(2 * turn + 6 * form[0]) + 0.2 * np.sin(3 * turn + 6 * form[1])
  return np.hypot(x, y) - radius * (0.8 + waves)


def _thing_colours(random, kind):
  """Colours that are a hint at the kind, and no more than that."""
  if kind in OBJECTS and random.uniform() < OWN_HUE_SHARE:
    hue = OBJECTS.index(kind) / len(OBJECTS) + random.normal(0, 0.05)
    return _two_colours(random, hue, VIVID)
  dull = kind in DISTRACTORS and random.uniform() < DULL_SHARE
  return _two_colours(random, random.uniform(), DULL if dull else VIVID)


def _two_colours(random, hue, saturation):
  """Two RGB colours around a hue (in turns), in [0, 1]."""
  return [
    colorsys.hsv_to_rgb(
      (hue + random.uniform(-0.06, 0.06)) % 1,
      random.uniform(*saturation),
      random.uniform(0.3, 0.95),
    )
    for _ in range(2)
  ]


def _textured(random, colours, cell_counts):
  """A surface of two colours, mixed by noise at several scales, float32 RGB."""
  first, second = np.array(colours, np.float32)
  octaves = [_noise(random, cells) / 2**i for i, cells in enumerate(cell_counts)]
  sharpness = random.uniform(0.5, 3)  # soft clouds ... patches with edges
  mix = np.clip(0.5 + sharpness * sum(octaves), 0, 1)[..., None]
  grain = random.uniform(0, 0.08) * random.standard_normal((SIZE, SIZE, 1)).astype(np.float32)
  return first + mix * (second - first) + grain


def _noise(random, cells):
  """Random values on a grid of `cells` cells, smooth in between, float32 [SIZE, SIZE]."""
  values = random.uniform(-0.5, 0.5, (cells + 1, cells + 1)).astype(np.float32)
  return _between(cells) @ values @ _between(cells).T


@lru_cache
def _between(cells):
  """Weights [SIZE, cells + 1] of the grid's points at each pixel of an axis."""
  position = (np.arange(SIZE) + 0.5) / SIZE * cells
  apart = np.clip(np.abs(position[:, None] - np.arange(cells + 1)), 0, 1)
  return (1 - apart * apart * (3 - 2 * apart)).astype(np.float32)


def _photographed(random, image):
  """Uneven light, a slightly soft lens, a noisy sensor; uint8."""
  slope = random.uniform(-0.25, 0.25, 2)
  ramp = np.linspace(-1, 1, SIZE)
  light = random.uniform(0.7, 1.15) * (1 + slope[0] * ramp[:, None] + slope[1] * ramp)
  image = image * light[..., None].astype(np.float32)
  blur = random.uniform(0, 0.25)
  for axis in (0, 1):
    padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], "edge")
    before, after = (np.take(padded, np.arange(SIZE) + s, axis) for s in (0, 2))
    image = (1 - 2 * blur) * image + blur * (before + after)
  noise = random.uniform(0.005, 0.04) * random.standard_normal(image.shape).astype(np.float32)
  return np.uint8(np.clip(255 * (image + noise) + 0.5, 0, 255))


def _random_stream(seed, split, index, purpose):
  """Random numbers whose stream numpy has promised not to change (RandomState's)."""
  words = [seed, zlib.crc32(split.encode()), index, zlib.crc32(purpose.encode())]
  return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(words)))
