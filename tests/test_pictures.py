"""The contact sheet: what lies where, and in which colour."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from boxseg_jax.evaluation import pictures
from boxseg_jax.evaluation.paint import overlay, palette, save
from boxseg_jax.evaluation.pictures import Views, panel

NAMES = ("background", "car", "person")
CANVAS = (40, 50)  # enlarged four times
TILE = (160, 200)
COLOURS = palette(3).astype(int)
GAP, TOP = 6, 26  # between tiles, and above the first


def make_views(size=2, **changes):
  """A grey photo with a car at rows 10-30, columns 5-25; odd images have boxes only."""
  labels = np.zeros((size, *CANVAS), np.int32)
  labels[:, 10:30, 5:25] = 1
  given = labels.copy()
  given[1::2] = 255
  box = np.array([10 / 40, 5 / 50, 30 / 40, 25 / 50], np.float32)
  boxes = np.zeros((size, 3, 4), np.float32)
  boxes[:, 0] = box
  views = Views(
    image=np.full((size, *CANVAS, 3), 100, np.uint8),
    given_labels=given,
    boxes=boxes,
    box_classes=np.tile([1, 0, 0], (size, 1)),
    predicted=labels,
    sigma=np.where(labels == 1, 3.0, 0.0),
    target=np.eye(3)[labels],
    true_labels=labels,
  )
  return views._replace(**changes)


def tile_of(sheet, row, column):
  top = TOP + row * (TILE[0] + GAP)
  left = GAP + column * (TILE[1] + GAP)
  return sheet[top : top + TILE[0], left : left + TILE[1]].astype(int)


def test_layout():
  sheet = panel(make_views(), NAMES)
  assert sheet.dtype == np.uint8
  assert sheet.shape[1] == 6 * (TILE[1] + GAP) + GAP
  # Titles, two rows, the scale of sigma, one line of legend.
  assert sheet.shape[0] == TOP + 2 * (TILE[0] + GAP) + 30 + 26
  assert (sheet[:TOP] < 100).any(), "no titles"


def test_columns_without_target_and_truth_are_left_out():
  sheet = panel(make_views(target=None, true_labels=None), NAMES)
  assert sheet.shape[1] == 4 * (TILE[1] + GAP) + GAP


def test_image_tile_is_the_photo_of_either_kind():
  for image in (np.full((1, *CANVAS, 3), 102, np.uint8), np.full((1, *CANVAS, 3), 0.4, np.float32)):
    tile = tile_of(panel(make_views(1, image=image), NAMES), 0, 0)
    assert (tile == 102).all()


def test_prediction_and_truth_are_coloured_where_they_are():
  sheet = panel(make_views(), NAMES)
  for column in (2, 5):
    tile = tile_of(sheet, 0, column)
    assert (tile[20:30, 20:30] == 80).all(), "background is the faded photo"
    expected = np.round(0.45 * 80 + 0.55 * COLOURS[1])
    np.testing.assert_array_equal(tile[80, 60], expected)
    np.testing.assert_array_equal(tile[40, 60], COLOURS[1])  # outline
    np.testing.assert_array_equal(tile[119, 60], COLOURS[1])
    assert (tile[120, 60] == 80).all()


def test_box_is_drawn_in_its_class_colour_on_its_last_pixels_inside():
  views = make_views(box_classes=np.tile([2, 0, 0], (2, 1)))
  tile = tile_of(panel(views, NAMES), 1, 1)  # boxes only: the photo shows through
  assert (tile[80, 60] == 100).all()
  for inside, outside in (((40, 60), (39, 60)), ((119, 60), (120, 60)), ((80, 20), (80, 19))):
    np.testing.assert_array_equal(tile[inside], COLOURS[2])
    assert (tile[outside] == 100).all()


def test_crowd_box_is_grey_and_padding_is_not_drawn():
  crowd = np.tile([True, False, False], (2, 1))
  tile = tile_of(panel(make_views(box_is_crowd=crowd), NAMES), 1, 1)
  assert (tile[40, 60] == 128).all()
  assert (tile[0, 0] == 100).all(), "padding box drawn"


def test_mask_image_shows_its_mask_and_void_is_hatched():
  views = make_views()
  views.given_labels[0, :5] = 255
  tile = tile_of(panel(views, NAMES), 0, 1)
  np.testing.assert_array_equal(tile[80, 60], np.round(0.45 * 80 + 0.55 * COLOURS[1]))
  void = tile[:16, :]
  assert (void == void[..., :1]).all(), "void has a colour"
  assert len(np.unique(void)) == 2, "void is not hatched"


def test_sigma_has_one_scale_for_all_rows():
  views = make_views()
  views.sigma[1] *= 0.5
  sheet = panel(views, NAMES)
  low, high = np.array([68, 1, 84]), np.array([253, 231, 37])
  first, second = tile_of(sheet, 0, 3), tile_of(sheet, 1, 3)
  np.testing.assert_array_equal(first[0, 0], low)
  np.testing.assert_array_equal(first[80, 60], high)
  np.testing.assert_array_equal(second[80, 60], [33, 144, 141])  # the middle of viridis
  bar = sheet[TOP + 2 * (TILE[0] + GAP) + 5, GAP + 3 * (TILE[1] + GAP) :]
  np.testing.assert_array_equal(bar[0], low)
  np.testing.assert_array_equal(bar[TILE[1] - 1], high)


def test_sigma_that_is_no_number_is_white_and_does_not_hide_the_rest():
  views = make_views()
  views.sigma[0, 0, 0] = np.nan
  tile = tile_of(panel(views, NAMES), 0, 3)
  assert (tile[0, 0] == 255).all()
  np.testing.assert_array_equal(tile[80, 60], [253, 231, 37])


def test_target_shows_its_strength_and_mixture():
  views = make_views(1)
  views.target[0, 10:30, 5:15] = (0.5, 0.5, 0.0)
  views.target[0, 10:30, 15:25] = (0.0, 0.5, 0.5)
  tile = tile_of(panel(views, NAMES), 0, 4)
  half, mixed = tile[80, 30], tile[80, 80]
  np.testing.assert_array_equal(half, np.round(0.625 * 80 + 0.375 * COLOURS[1]))
  between = (COLOURS[1] + COLOURS[2]) / 2
  np.testing.assert_allclose(mixed, 0.25 * 80 + 0.75 * between, atol=1)


def test_padding_of_the_canvas_is_paper_and_shortens_the_page():
  visible = np.ones((2, *CANVAS), bool)
  visible[:, 30:] = False
  visible[:, :, 45:] = False
  sheet = panel(make_views(visible=visible), NAMES)
  whole = panel(make_views(), NAMES)
  assert whole.shape[0] - sheet.shape[0] == 2 * 10 * 4
  tile = sheet[TOP : TOP + 120, GAP + 3 * (TILE[1] + GAP) :][:, : TILE[1]]
  assert (tile[:, 180:] == 255).all()
  assert not (tile[:, :180] == 255).all(-1).any()


@pytest.mark.parametrize(
  ("canvas", "tile"), [((96, 96), (192, 192)), ((180, 240), (180, 240)), ((512, 1024), (171, 342))]
)
def test_tiles_are_enlarged_or_shrunk_to_be_readable(canvas, tile):
  labels = np.zeros((1, *canvas), np.int32)
  views = Views(
    image=np.zeros((1, *canvas, 3), np.uint8),
    given_labels=labels,
    boxes=np.zeros((1, 0, 4), np.float32),
    box_classes=np.zeros((1, 0), np.int32),
    predicted=labels,
    sigma=np.zeros((1, *canvas)),
  )
  sheet = panel(views, NAMES)
  assert sheet.shape[1] == 4 * (tile[1] + GAP) + GAP
  assert sheet.shape[0] == TOP + tile[0] + GAP + 30 + 26


def test_a_long_legend_goes_on_in_the_next_line():
  views = make_views(target=None)
  short, long = panel(views, NAMES), panel(views, [f"class {n}" for n in range(40)])
  # 39 entries of 90 to 100 pixels and void do not fit into 1036 pixels three times.
  assert long.shape[0] - short.shape[0] == 3 * 20
  assert long.shape[1] == short.shape[1]


def test_palette_has_distinct_colours_for_twenty_classes():
  colours = palette(21)
  assert len({tuple(colour) for colour in colours}) == 21
  assert tuple(colours[0]) == (0, 0, 0)
  saturations = [colorsys.rgb_to_hsv(*(colour / 255))[1] for colour in colours[1:]]
  assert min(saturations) > 0.15, "a class colour is as grey as void"


def test_overlay_keeps_size_and_leaves_the_photo_alone():
  photo = np.full((3, 4, 3), 100, np.uint8)
  shown = overlay(photo, np.zeros((3, 4), np.int32), palette(2))
  assert (shown == 80).all() and (photo == 100).all()


def test_save_writes_what_it_was_given(tmp_path):
  picture = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
  path = tmp_path / "pictures" / "step_10.png"
  save(path, picture)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
  assert [p.name for p in path.parent.iterdir()] == ["step_10.png"]


def test_panel_leaves_its_input_alone():
  views = make_views()
  before = [view.copy() for view in views if view is not None]
  pictures.panel(views, NAMES)
  for old, new in zip(before, [view for view in views if view is not None], strict=True):
    np.testing.assert_array_equal(old, new)
