"""Photos as people name them."""

import numpy as np
import pytest
from data_cases import make_image
from PIL import Image

from boxseg_jax.data import photos
from boxseg_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
  for number, name in enumerate(["b.png", "a.jpg", "deep/c.PNG", "note.txt"]):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(make_image((6, 8), number)).save(path, format="PNG")
  return tmp_path


def found(folder, patterns):
  return [path.relative_to(folder).as_posix() for path in photos.find(patterns)]


def test_folders_patterns_and_files(folder):
  assert found(folder, folder) == ["a.jpg", "b.png", "deep/c.PNG"]
  assert found(folder, f"{folder}/*") == ["a.jpg", "b.png"]
  assert found(folder, f"{folder}/**/*.PNG") == ["deep/c.PNG"]
  assert found(folder, folder / "b.png") == ["b.png"]
  # A file that is named is taken whatever its suffix, and each file once.
  assert found(folder, [f"{folder}/note.txt", str(folder), f"{folder}/b.png"]) == [
    "note.txt",
    "a.jpg",
    "b.png",
    "deep/c.PNG",
  ]


@pytest.mark.parametrize("pattern", ["nothing", "nothing/*.png", "*.gif", "empty"])
def test_nothing_found_is_told_with_the_pattern(folder, pattern):
  (folder / "empty").mkdir()
  with pytest.raises(InputError, match=pattern.replace("*", r"\*")):
    photos.find(f"{folder}/{pattern}")


def test_one_image_or_many(folder):
  pixels = make_image((6, 8), 0)
  for one in (folder / "b.png", str(folder / "b.png"), pixels, Image.fromarray(pixels)):
    given, single = photos.as_photos(one)
    assert single and len(given) == 1
    np.testing.assert_array_equal(given[0].read(), pixels)
    assert tuple(given[0].size()) == (6, 8)
  for many in (folder, [pixels], [folder / "b.png", pixels], np.stack([pixels, pixels])):
    given, single = photos.as_photos(many)
    assert not single
    assert all(photo.read().shape == (6, 8, 3) for photo in given)


def test_grey_becomes_rgb():
  grey = make_image((6, 8), 0)[..., 0]
  ((photo,), _) = photos.as_photos(grey)
  np.testing.assert_array_equal(photo.read(), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(
  "given",
  [
    3,
    None,
    np.zeros((4, 5, 3)),
    np.zeros((4, 5, 4), np.uint8),
    np.zeros((0, 5, 3), np.uint8),
    [np.zeros((4, 5, 1), np.uint8)],
  ],
)
def test_what_is_no_image_is_refused(given):
  with pytest.raises(InputError, match="is no image|is expected"):
    photos.as_photos(given)
