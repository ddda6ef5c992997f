import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boxseg_jax import augment as module
from boxseg_jax.augment import AffineMap, Geometry, Photometry, augment, prepare
from boxseg_jax.batch import VOID, padding_example
from boxseg_jax.errors import InputError

STILL = Geometry(scale=(1.0, 1.0), rotation_degrees=0.0, flip=0.0)
NO_COLOUR = Photometry(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)

run = jax.jit(augment, static_argnames=("geometry", "photometry", "crop"))


def make_batch(image, labels=None, boxes=(), classes=(), extent=(1.0, 1.0)):
  image = np.asarray(image, np.uint8)
  labels = np.zeros(image.shape[:3], np.uint8) if labels is None else np.asarray(labels, np.uint8)
  batch = len(image)
  return {
    "image": image,
    "labels": labels,
    "boxes": np.tile(np.asarray(boxes, np.float32).reshape(1, -1, 4), (batch, 1, 1)),
    "box_classes": np.tile(np.asarray(classes, np.int32).reshape(1, -1), (batch, 1)),
    "box_is_crowd": np.zeros((batch, len(classes)), bool),
    "has_mask": np.ones(batch, bool),
    "valid": np.ones(batch, bool),
    "extent": np.tile(np.asarray(extent, np.float32), (batch, 1)),
    "image_id": np.arange(batch, dtype=np.int32),
  }


def noise_batch(batch=4, height=24, width=32):
  rng = np.random.default_rng(0)
  return make_batch(
    rng.integers(0, 256, (batch, height, width, 3)),
    rng.integers(0, 3, (batch, height, width)),
    boxes=[(0.1, 0.2, 0.5, 0.6), (0.3, 0.0, 1.0, 0.4), (0, 0, 0, 0)],
    classes=[1, 2, 0],
  )


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def plain_map(scale=1.0, shift=(0.0, 0.0), size=(4.0, 4.0), linear=None):
  linear = scale * np.eye(2) if linear is None else linear
  return AffineMap(*(jnp.asarray(part, jnp.float32) for part in (linear, shift, scale, size)))


def assert_same_pixels(image, original):
  """Up to how a division by 255 is rounded."""
  np.testing.assert_allclose(image, original / 255, atol=1.2e-7, rtol=0)


def test_identity_changes_nothing():
  batch = noise_batch()
  moved, prepared = run(batch, keys(4), geometry=STILL, photometry=NO_COLOUR), prepare(batch)
  for name in ("labels", "boxes", "box_classes", "box_is_crowd", "visible"):
    np.testing.assert_allclose(moved[name], prepared[name], atol=1e-7, rtol=0, err_msg=name)
    assert moved[name].dtype == prepared[name].dtype
  for image in (moved["image"], prepared["image"]):
    assert_same_pixels(image, batch["image"])
  assert set(moved) == set(prepared) - {"extent"}
  assert np.all(prepared["visible"])


def test_prepare_brings_boxes_to_the_canvas():
  batch = make_batch(np.full((1, 4, 10, 3), 255), boxes=[(0.5, 0.2, 1, 1)], classes=[1])
  batch["extent"] = np.array([[0.5, 0.8]], np.float32)
  prepared = prepare(batch)
  np.testing.assert_allclose(prepared["boxes"][0], [[0.25, 0.16, 0.5, 0.8]], atol=1e-7)
  expected = np.zeros((4, 10), bool)
  expected[:2, :8] = True
  np.testing.assert_array_equal(prepared["visible"][0], expected)
  np.testing.assert_array_equal(prepared["image"][0, :2, :8], np.ones((2, 8, 3)))
  np.testing.assert_allclose(prepared["image"][0, 3, 9], module.IMAGE_MEAN)


def test_twofold_magnification_by_hand():
  image = jnp.array([0.0, 1.0, 3.0, 3.0])[:, None, None] * jnp.ones((1, 4, 3))
  y, x = module.source_points(plain_map(scale=2.0), (8, 8))
  np.testing.assert_array_equal(y[:, 0], [0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75])
  np.testing.assert_array_equal(y.T, x)
  sampled = module.sample_bilinear(image, y, x, jnp.array([4.0, 4.0]))
  np.testing.assert_allclose(sampled[:, 5, 1], [0, 0.25, 0.75, 1.5, 2.5, 3, 3, 3], atol=1e-6)


def test_quarter_turn_by_hand():
  # Image (y, x) -> canvas (x, 4 - y): the top left pixel goes to the top right.
  affine = plain_map(linear=[[0.0, 1.0], [-1.0, 0.0]], shift=(0.0, 4.0))
  image = jnp.arange(16.0).reshape(4, 4, 1) * jnp.ones(3)
  y, x = module.source_points(affine, (4, 4))
  sampled = module.sample_bilinear(image, y, x, affine.size)
  np.testing.assert_array_equal(sampled[..., 0], np.rot90(np.arange(16.0).reshape(4, 4), -1))
  boxes, kept = module.move_boxes(jnp.array([[0.0, 0.0, 0.25, 0.5]]), affine, (4, 4))
  np.testing.assert_allclose(boxes, [[0.0, 0.75, 0.5, 1.0]], atol=1e-7)
  assert kept.tolist() == [True]


def test_boxes_are_clipped_and_dropped_by_hand():
  boxes = jnp.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 0.25, 1.0]])
  affine = plain_map(scale=2.0, shift=(-2.0, -4.0), size=(8.0, 8.0))  # canvas 8 x 8
  moved, kept = module.move_boxes(boxes, affine, (8, 8))
  # In canvas pixels: (-2, -4, 6, 4), (6, 4, 14, 12), (-2, 4, 2, 12).
  np.testing.assert_allclose(
    moved, [[0, 0, 0.75, 0.5], [0.75, 0.5, 1, 1], [0, 0.5, 0.25, 1]], atol=1e-6
  )
  assert kept.tolist() == [True, True, True]
  _, kept = module.move_boxes(boxes, affine._replace(shift=jnp.array([-8.0, -4.0])), (8, 8))
  assert kept.tolist() == [False, True, False]


def test_dropped_boxes_become_padding():
  batch = make_batch(np.zeros((16, 8, 8, 3)), boxes=[(0, 0, 0.1, 0.1)], classes=[2])
  batch["box_is_crowd"][:] = True
  out = run(batch, keys(16), geometry=Geometry((4.0, 4.0), 0.0, 0.0), photometry=NO_COLOUR)
  dropped = np.asarray(out["box_classes"][:, 0] == 0)
  assert 0 < dropped.sum() < 16  # the corner of the image is seen now and then
  np.testing.assert_array_equal(out["boxes"][dropped], np.zeros((dropped.sum(), 1, 4)))
  np.testing.assert_array_equal(out["box_is_crowd"][:, 0], ~dropped)
  areas = np.prod(np.asarray(out["boxes"][~dropped, 0, 2:] - out["boxes"][~dropped, 0, :2]), -1)
  assert np.all(areas > 0)


def test_flip_mirrors_image_labels_and_boxes():
  batch = noise_batch(batch=16)
  out = run(batch, keys(16), geometry=Geometry((1.0, 1.0), 0.0, 0.5), photometry=NO_COLOUR)
  flipped = np.any(np.asarray(out["labels"]) != batch["labels"], axis=(1, 2))
  assert 0 < flipped.sum() < 16
  image = np.where(flipped[:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
  assert_same_pixels(out["image"], image)
  labels = np.where(flipped[:, None, None], batch["labels"][:, :, ::-1], batch["labels"])
  np.testing.assert_array_equal(out["labels"], labels)
  np.testing.assert_allclose(out["boxes"][flipped][0, 0], [0.1, 0.4, 0.5, 0.8], atol=1e-6)
  np.testing.assert_allclose(out["boxes"][~flipped], batch["boxes"][~flipped], atol=1e-6)


def test_scale_of_one_moves_by_whole_pixels_inside_the_canvas():
  batch = noise_batch(batch=8)
  batch["extent"][:] = (0.5, 0.75)  # 12 x 24 of 24 x 32
  out = run(batch, keys(8), geometry=STILL, photometry=NO_COLOUR)
  places = set()
  for example in range(8):
    rows, columns = np.nonzero(np.asarray(out["visible"][example]))
    top, left = rows.min(), columns.min()
    places.add((top, left))
    seen = np.s_[example, top : top + 12, left : left + 24]
    assert_same_pixels(out["image"][seen], batch["image"][example, :12, :24])
    np.testing.assert_array_equal(out["labels"][seen], batch["labels"][example, :12, :24])
    assert np.sum(out["visible"][example]) == 12 * 24
    outside = ~np.asarray(out["visible"][example])
    assert np.all(np.asarray(out["labels"][example])[outside] == VOID)
    fill = np.asarray(out["image"][example])[outside]
    np.testing.assert_array_equal(fill, np.broadcast_to(module.IMAGE_MEAN, fill.shape).astype("f4"))
  assert len(places) > 3


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_smaller_images_are_seen_whole_and_larger_ones_fill_the_canvas(scale):
  geometry = Geometry((scale, scale), 0.0, 0.5)
  batch = make_batch(np.zeros((8, 16, 16, 3)), boxes=[(0, 0, 1, 1)], classes=[1])
  out = run(batch, keys(8), geometry=geometry, photometry=NO_COLOUR)
  np.testing.assert_array_equal(
    np.sum(out["visible"], axis=(1, 2)), [8**2 if scale < 1 else 16**2] * 8
  )
  shown = np.asarray(out["boxes"][:, 0, 2:] - out["boxes"][:, 0, :2])
  np.testing.assert_allclose(shown, np.full((8, 2), min(scale, 1.0)), atol=1e-6)


@pytest.mark.parametrize("size", [(4, 12), (12, 4)])
def test_what_lies_beyond_an_image_does_not_leak_into_it_when_it_is_shrunk(size):
  image = np.random.default_rng(0).random((12, 12, 3)).astype(np.float32)
  image[: size[0], : size[1]] = 0.25
  smooth = module.low_pass(jnp.asarray(image), plain_map(scale=0.4, size=size))
  np.testing.assert_allclose(smooth[: size[0], : size[1]], 0.25, rtol=1e-6)


def test_draws_fill_their_ranges():
  geometry = Geometry((0.5, 2.0), 30.0, 0.5)
  maps = jax.vmap(lambda key: module.draw_map(key, jnp.array([64.0, 64.0]), (64, 64), geometry))(
    keys(512)
  )
  logarithm = np.log2(maps.scale)
  assert logarithm.min() >= -1 and logarithm.max() <= 1
  np.testing.assert_allclose(np.mean(logarithm), 0, atol=0.1)
  np.testing.assert_allclose(np.std(logarithm), 1 / np.sqrt(3), atol=0.05)  # log-uniform
  determinant = np.linalg.det(maps.linear)
  np.testing.assert_allclose(np.abs(determinant), maps.scale**2, rtol=1e-5)
  np.testing.assert_allclose(np.mean(determinant < 0), 0.5, atol=0.08)
  turn = np.degrees(np.arctan2(maps.linear[:, 1, 0], maps.linear[:, 0, 0]))
  assert 28 < np.max(np.abs(turn)) <= 30.001
  np.testing.assert_allclose(np.mean(turn), 0, atol=3)


def shapes_labels(size=64):
  """A rectangle of class 1, and a disc of class 2 that does not touch it."""
  y, x = np.mgrid[:size, :size]
  labels = np.zeros((size, size), np.uint8)
  labels[8:28, 10:40] = 1
  labels[(y - 45) ** 2 + (x - 40) ** 2 < 12**2] = 2
  return labels


def bounds(mask):
  rows, columns = np.nonzero(mask)
  return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1], np.float32)


def test_image_and_labels_move_together():
  labels = np.tile(shapes_labels(), (24, 1, 1))
  batch = make_batch(255 * (labels[..., None] == np.arange(3)), labels)
  out = run(batch, keys(24), geometry=Geometry((0.5, 2.0), 20.0), photometry=NO_COLOUR)
  moved = np.asarray(out["labels"])
  neighbours = np.stack([np.roll(moved, s, axis) for s in (-2, -1, 1, 2) for axis in (1, 2)])
  sure = np.all(neighbours == moved, axis=0) & np.asarray(out["visible"])
  sure[:, [0, 1, -1, -2]] = sure[:, :, [0, 1, -1, -2]] = False
  colours = np.asarray(out["image"])[sure]
  assert all(np.sum(moved[sure] == label) > 1000 for label in range(3))
  np.testing.assert_array_equal(np.argmax(colours, -1), moved[sure])
  assert np.mean(np.max(colours, -1)) > 0.97


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_boxes_are_the_bounds_of_the_masks(degrees):
  labels = shapes_labels()
  boxes = [bounds(labels == 1) / 64, bounds(labels == 2) / 64]
  batch = make_batch(np.zeros((24, 64, 64, 3)), np.tile(labels, (24, 1, 1)), boxes, [1, 2])
  out = run(batch, keys(24), geometry=Geometry((0.5, 2.0), degrees), photometry=NO_COLOUR)
  checked = 0
  for mask, box, label in zip(
    np.repeat(np.asarray(out["labels"]), 2, 0),
    np.asarray(out["boxes"]).reshape(-1, 4) * 64,
    np.asarray(out["box_classes"]).ravel(),
    strict=True,
  ):
    if label == 0:
      continue
    if not np.any(mask == label):  # less than a pixel of the box is left, or a round corner
      assert label == 2 or np.min(box[2:] - box[:2]) <= 1
      continue
    checked += 1
    outer = bounds(mask == label)
    assert np.all(outer[:2] >= box[:2] - 0.501) and np.all(outer[2:] <= box[2:] + 0.501)
    if degrees == 0 and label == 1:  # a clipped disc no longer fills its box
      np.testing.assert_allclose(outer, box, atol=1.0)
  assert checked > 30


def test_shrinking_a_checkerboard_gives_grey():
  board = np.indices((48, 48)).sum(0) % 2 * np.ones((3, 1, 1), int)
  batch = make_batch(255 * np.moveaxis(board, 0, -1)[None])
  for scale, tolerance in ((0.5, 1e-5), (1 / 3, 1 / 81 / 2 + 1e-5)):
    # At one third the centres of the pixels are hit: without a low-pass all is 0 or 1,
    # with 1 2 3 2 1 (over 9) along both axes a contrast of (1 / 9)^2 is left.
    geometry = Geometry((scale, scale), 0.0, 0.0)
    out = run(batch, keys(1), geometry=geometry, photometry=NO_COLOUR)
    corners = bounds(np.asarray(out["visible"][0])).astype(int)
    inner = out["image"][0, corners[0] + 2 : corners[2] - 2, corners[1] + 2 : corners[3] - 2]
    np.testing.assert_allclose(inner, np.full_like(inner, 0.5), atol=tolerance)


def test_shrinking_agrees_with_an_antialiased_resize():
  rng = np.random.default_rng(1)
  batch = make_batch(rng.integers(0, 256, (1, 48, 48, 3)))
  geometry = Geometry((0.5, 0.5), 0.0, 0.0)
  out = run(batch, keys(1), geometry=geometry, photometry=NO_COLOUR)
  top, left, bottom, right = bounds(np.asarray(out["visible"][0])).astype(int)
  resized = jax.image.resize(batch["image"][0] / 255.0, (24, 24, 3), "linear")
  difference = np.asarray(out["image"][0, top:bottom, left:right]) - resized
  assert np.sqrt(np.mean(difference**2)) < 0.25 * np.std(resized)


def test_padding_does_not_leak_into_a_shrunken_image():
  batch = make_batch(np.full((1, 16, 16, 3), 255), extent=(0.5, 0.5))
  batch["image"][:, 8:] = batch["image"][:, :, 8:] = 0
  geometry = Geometry((0.4, 2.0), 45.0)
  for seed in range(8):
    out = run(batch, keys(1, seed), geometry=geometry, photometry=NO_COLOUR)
    seen = np.asarray(out["image"])[np.asarray(out["visible"])]
    np.testing.assert_allclose(seen, np.ones_like(seen), atol=1e-5)


def test_eager_equals_jit_equals_example_by_example():
  batch = noise_batch()
  eager, jitted = augment(batch, keys(4)), run(batch, keys(4))
  for name in eager:
    np.testing.assert_allclose(eager[name], jitted[name], atol=1e-5, err_msg=name)
  for example in range(4):
    part = {name: value[example : example + 1] for name, value in batch.items()}
    alone = run(part, keys(4)[example : example + 1])
    for name in alone:
      np.testing.assert_allclose(alone[name][0], jitted[name][example], atol=1e-5, err_msg=name)


def test_an_example_depends_on_its_key_only():
  batch = noise_batch()
  backwards = {name: value[::-1] for name, value in batch.items()}
  first, again = run(batch, keys(4)), run(batch, keys(4))
  turned = run(backwards, keys(4)[::-1])
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
    np.testing.assert_array_equal(first[name], turned[name][::-1])
  other = run(batch, keys(4, seed=1))
  assert np.mean(np.abs(first["image"] - other["image"])) > 0.05


def test_grey_pixels_stay_grey_and_finite():
  ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(1, 8, 8, 1) * np.ones(3, np.uint8)
  batch = make_batch(np.tile(ramp, (8, 1, 1, 1)))
  colours = Photometry(brightness=0.3, contrast=0.5, saturation=0.9, hue=0.5)
  image = run(batch, keys(8), geometry=STILL, photometry=colours)["image"]
  np.testing.assert_allclose(image, np.repeat(image[..., :1], 3, axis=-1), atol=1e-6)
  assert np.min(image) >= 0 and np.max(image) <= 1
  assert np.std(np.mean(image, axis=(1, 2, 3))) > 0.02  # every example its own amounts


def test_brightness_shifts_and_contrast_keeps_the_mean():
  image = np.full((16, 4, 4, 3), 100)
  image[:, :2] = 150
  batch = make_batch(image)
  brighter = run(batch, keys(16), geometry=STILL, photometry=Photometry(0.2, 0.0, 0.0, 0.0))[
    "image"
  ]
  shift = np.asarray(brighter) - image / 255
  np.testing.assert_allclose(shift, np.tile(shift[:, :1, :1, :1], (1, 4, 4, 3)), atol=1e-6)
  assert 0.1 < np.max(np.abs(shift)) <= 0.2
  contrasted = run(batch, keys(16), geometry=STILL, photometry=Photometry(0.0, 0.5, 0.0, 0.0))[
    "image"
  ]
  np.testing.assert_allclose(np.mean(contrasted, axis=(1, 2, 3)), [125 / 255] * 16, atol=1e-6)
  factor = np.asarray(contrasted[:, 0, 0, 0] - contrasted[:, 3, 0, 0]) / (50 / 255)
  assert 0.5 <= factor.min() < 0.8 and 1.2 < factor.max() <= 1.5


def test_hue_turns_and_saturation_fades_a_pure_colour():
  batch = make_batch(np.tile(np.array([255, 0, 0]), (16, 4, 4, 1)))
  turned = run(batch, keys(16), geometry=STILL, photometry=Photometry(0.0, 0.0, 0.0, 1 / 6))
  # Red towards yellow or magenta: value and saturation stay, one other channel rises.
  np.testing.assert_allclose(turned["image"][..., 0], np.ones((16, 4, 4)), atol=1e-6)
  np.testing.assert_allclose(np.min(turned["image"][..., 1:], -1), np.zeros((16, 4, 4)), atol=1e-6)
  assert np.max(turned["image"][..., 1]) > 0.5 and np.max(turned["image"][..., 2]) > 0.5
  faded = run(batch, keys(16), geometry=STILL, photometry=Photometry(0.0, 0.0, 1.0, 0.0))
  np.testing.assert_allclose(faded["image"][..., 0], np.ones((16, 4, 4)), atol=1e-6)
  assert np.max(faded["image"][..., 1]) > 0.5


def test_a_padding_example_stays_empty():
  batch = {name: value[None] for name, value in padding_example((16, 16), 3).items()}
  out = run(batch, keys(1))
  assert np.all(out["labels"] == VOID)
  assert not np.any(out["box_classes"]) and not np.any(out["valid"])
  image = np.asarray(out["image"])
  assert np.min(image) >= 0 and np.max(image) <= 1


@pytest.mark.parametrize(
  ("make", "value"),
  [
    (lambda: Geometry(scale=(2.0, 0.5)), "(2.0, 0.5)"),
    (lambda: Geometry(scale=(0.0, 1.0)), "(0.0, 1.0)"),
    (lambda: Geometry(rotation_degrees=-1.0), "-1.0"),
    (lambda: Geometry(flip=2), "flip must be a probability in [0, 1], is 2"),
    (lambda: Photometry(hue=1.5), "hue must be in [0, 1], is 1.5"),
    (lambda: Photometry(brightness=float("nan")), "nan"),
  ],
)
def test_impossible_ranges_are_refused(make, value):
  with pytest.raises(InputError) as error:
    make()
  assert value in str(error.value)


@pytest.mark.parametrize(
  "make",
  [
    lambda: Geometry((1.0, 1.0), 0.0, 0.0),
    lambda: Geometry((0.5, 2.0), 180.0, 1.0),
    lambda: Photometry(0.0, 0.0, 0.0, 0.0),
    lambda: Photometry(1.0, 1.0, 1.0, 1.0),
  ],
)
def test_the_ends_of_ranges_are_possible(make):
  assert make()


@pytest.mark.parametrize(
  "make",
  [
    lambda: Geometry(scale=(1.0, float("inf"))),
    lambda: Geometry(scale=(-1.0, 1.0)),
    lambda: Geometry(scale=(1.0, 1.0, 1.0)),
    lambda: Geometry(rotation_degrees=180.5),
    lambda: Geometry(flip=-0.1),
    lambda: Geometry(flip=1.1),
    lambda: Photometry(saturation=-0.1),
  ],
)
def test_what_lies_beyond_the_ends_is_not(make):
  with pytest.raises(InputError):
    make()


@pytest.mark.parametrize(
  ("scale", "size"),
  [(0.5, (24.0, 24.0)), (1.0, (12.0, 24.0)), (2.0, (24.0, 32.0)), (1.0, (60, 80))],
)
def test_a_map_places_by_whole_pixels_and_turns_about_the_middle_of_what_is_seen(scale, size):
  view = np.array([24, 32])
  geometry = Geometry((scale, scale), 180.0, 0.5)
  drawn = jax.vmap(lambda key: module.draw_map(key, jnp.array(size), (24, 32), geometry))(keys(32))
  for example in zip(*drawn, strict=True):
    linear, shift, found_scale, found_size = (np.asarray(part, np.float64) for part in example)
    np.testing.assert_allclose(found_size, size)
    np.testing.assert_allclose(linear.T @ linear, scale**2 * np.eye(2), atol=1e-4)
    assert found_scale == scale
    # A small image turns about its own middle, a large one about that of the view.
    large = (scale * found_size > view).all()
    middle = view / 2 if large else linear @ (found_size / 2) + shift
    point = np.linalg.solve(linear, middle - shift)
    if np.linalg.det(linear) < 0:
      point[1] = found_size[1] - point[1]
    corner, room = middle - scale * point, view - scale * found_size
    np.testing.assert_allclose(corner, np.round(corner), atol=1e-3)
    assert (corner >= np.minimum(room, 0) - 1e-3).all()
    assert (corner <= np.maximum(room, 0) + 1e-3).all()


def test_places_fill_the_free_room():
  def corners(scale):
    maps = jax.vmap(
      lambda key: module.draw_map(
        key, jnp.array([24.0, 32.0]), (24, 32), Geometry((scale, scale), 0.0, 0.0)
      )
    )(keys(256))
    return np.asarray(maps.shift)

  for scale, low, high in ((0.5, (0, 0), (12, 16)), (2.0, (-24, -32), (0, 0))):
    np.testing.assert_array_equal(corners(scale).min(axis=0), low)
    np.testing.assert_array_equal(corners(scale).max(axis=0), high)


def test_a_crop_is_a_part_of_the_canvas_with_its_labels_and_boxes():
  batch = noise_batch(batch=16)
  moved = run(batch, keys(16), geometry=STILL, photometry=NO_COLOUR, crop=(12, 20))
  assert moved["image"].shape == (16, 12, 20, 3) and np.all(moved["visible"])
  corners = set()
  for index in range(16):
    image = batch["image"][index]
    places = [(y, x) for y in range(13) for x in range(13)]
    shown = np.asarray(moved["image"][index]) * 255
    found = [
      (y, x) for y, x in places if np.abs(image[y : y + 12, x : x + 20] - shown).max() < 1e-3
    ]
    ((y, x),) = found  # exactly one part of a noise image looks like this
    corners.add((y, x))
    np.testing.assert_array_equal(
      moved["labels"][index], batch["labels"][index, y : y + 12, x : x + 20]
    )
    for box, was, name in zip(moved["boxes"][index], batch["boxes"][index], (1, 2, 0), strict=True):
      expected = (was * (24, 32, 24, 32) - (y, x, y, x)) / (12, 20, 12, 20)
      expected = np.clip(expected, 0, 1) if name else np.zeros(4)
      left = (expected[:2] < expected[2:]).all()
      np.testing.assert_allclose(box, expected if left else np.zeros(4), atol=1e-6)
  assert len(corners) > 8


def test_a_crop_as_large_as_the_canvas_changes_nothing():
  batch = noise_batch()
  whole = run(batch, keys(4))
  chex.assert_trees_all_equal(run(batch, keys(4), crop=(24, 32)), whole)


def test_a_crop_may_be_larger_than_the_image():
  batch = make_batch(np.full((8, 6, 8, 3), 200))
  moved = run(batch, keys(8), geometry=STILL, photometry=NO_COLOUR, crop=(9, 16))
  np.testing.assert_array_equal(moved["visible"].sum(axis=(1, 2)), np.full(8, 48))
  np.testing.assert_array_equal((moved["labels"] == VOID).sum(axis=(1, 2)), np.full(8, 9 * 16 - 48))


def test_images_of_which_nothing_is_known():
  images, extents = np.full((2, 4, 6, 3), 7, np.uint8), np.ones((2, 2), np.float32)
  prepared = prepare(module.unlabelled(images, extents))
  assert prepared["boxes"].shape == (2, 1, 4) and not np.any(prepared["boxes"])
  np.testing.assert_array_equal(prepared["labels"], np.full((2, 4, 6), VOID))
  assert_same_pixels(prepared["image"], images)


@pytest.mark.parametrize("name", ["image", "labels", "boxes"])
def test_batches_of_another_rank_are_refused(name):
  batch = noise_batch()
  with pytest.raises(AssertionError):
    augment(batch | {name: batch[name][0]}, keys(4))
  if name != "labels":
    with pytest.raises(AssertionError):
      prepare(batch | {name: batch[name][0]})
  with pytest.raises(AssertionError):
    augment(batch, keys(3))
