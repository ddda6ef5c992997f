"""Odd image files: each is read right, or refused by name."""

import io
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
from data_cases import make_image, make_record
from PIL import Image
from places import ROOT

from boxseg_jax.batch import padding_example
from boxseg_jax.data import images
from boxseg_jax.data.examples import ExampleReader
from boxseg_jax.errors import InputError

ORIENTATION = 0x0112


def oriented(path, pixels, orientation, **options):
  """Writes pixels as they are, with an EXIF orientation."""
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  Image.fromarray(pixels).save(path, exif=exif, **options)
  return str(path)


def png_that_claims(width, height):
  """A grey PNG of a few bytes whose header claims any size."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_more_than_eight_bits_are_refused(tmp_path, kind, channels):
  """Twelve bits in sixteen: what Pillow keeps of the colours would be all but black."""
  path = str(tmp_path / f"deep.{kind}")
  assert cv2.imwrite(path, np.full((4, 5, channels), 3000, np.uint16))
  with pytest.raises(InputError, match=rf"deep.{kind}: .*more than 8 bits"):
    images.read_image(path)


def test_floats_are_refused(tmp_path):
  path = str(tmp_path / "float.tif")
  Image.fromarray(np.ones((4, 5), np.float32)).save(path)
  with pytest.raises(InputError, match=r"float.tif: .* mode F with more than 8 bits"):
    images.read_image(path)


def test_grey_palette_and_black_and_white_are_read_as_their_colours(tmp_path):
  grey = make_image((6, 7), 0)[..., 0]
  files = {
    "grey": Image.fromarray(grey),
    "grey_alpha": Image.merge("LA", [Image.fromarray(grey), Image.new("L", (7, 6), 9)]),
  }
  for name, image in files.items():
    image.save(tmp_path / f"{name}.png")
    read = images.read_image(str(tmp_path / f"{name}.png"))
    np.testing.assert_array_equal(read, np.repeat(grey[..., None], 3, -1), err_msg=name)
  Image.fromarray(grey > 99).save(tmp_path / "two.png")
  two = images.read_image(str(tmp_path / "two.png"))
  np.testing.assert_array_equal(two, 255 * np.repeat(grey[..., None] > 99, 3, -1))
  colours = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 7]], np.uint8)
  palette = Image.fromarray((grey % 3).astype(np.uint8))
  palette.putpalette(colours.ravel().tolist())
  palette.save(tmp_path / "palette.png", transparency=1)
  np.testing.assert_array_equal(images.read_image(str(tmp_path / "palette.png")), colours[grey % 3])


def test_transparency_is_left_out(tmp_path):
  colours, alpha = make_image((6, 7), 1), make_image((6, 7), 2)[..., :1]
  path = str(tmp_path / "cut_out.png")
  Image.fromarray(np.concatenate([colours, alpha], -1)).save(path)
  np.testing.assert_array_equal(images.read_image(path), colours)
  np.testing.assert_array_equal(images.read_image(path), cv2.imread(path)[..., ::-1])


def test_print_colours_are_read_as_rgb(tmp_path):
  """Eight patches, ink by ink: white, cyan, magenta, yellow, black and their mixtures."""
  inks = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (1, 1, 0, 0), (0, 0, 0, 1)]
  expected = [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 0, 0)]
  patches = np.repeat(np.repeat(np.array([inks], np.uint8) * 255, 16, 0), 16, 1)
  path = str(tmp_path / "print.jpg")
  Image.fromarray(patches, "CMYK").save(path, quality=95)
  with Image.open(path) as saved:
    assert saved.mode == "CMYK"
  read = images.read_image(path)[8, 8::16]
  np.testing.assert_allclose(read, np.array(expected) * 255, atol=3)


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_applied_as_opencv_applies_them(tmp_path, orientation, kind):
  pixels = make_image((6, 9), orientation)
  lossless = {"lossless": True} if kind == "webp" else {}
  path = oriented(tmp_path / f"phone.{kind}", pixels, orientation, **lossless)
  size = (9, 6) if orientation >= 5 else (6, 9)
  read = images.read_image(path, size)
  assert read.shape == (*size, 3)
  reference = str(tmp_path / "reference.jpg")  # the kind whose orientation OpenCV knows for sure
  blocks = np.repeat(np.repeat(pixels, 16, 0), 16, 1)
  oriented(reference, blocks, orientation, quality=98, subsampling=0)
  turned = cv2.imread(reference)[8::16, 8::16, ::-1]
  np.testing.assert_allclose(read, turned, atol=4)


def test_an_annotation_of_the_stored_pixels_is_taken_at_its_word(tmp_path):
  pixels = make_image((6, 9), 0)
  path = oriented(tmp_path / "phone.png", pixels, 6)
  np.testing.assert_array_equal(images.read_image(path, (6, 9)), pixels)
  np.testing.assert_array_equal(images.read_image(path, (9, 6)), np.rot90(pixels, -1))
  np.testing.assert_array_equal(images.read_image(path), np.rot90(pixels, -1))
  with pytest.raises(InputError, match=r"phone.png: the file is 9 x 6 .* says 7 x 5"):
    images.read_image(path, (5, 7))


def test_reduced_reading_turns_too(tmp_path):
  ramp = np.linspace(0, 255, 400, dtype=np.uint8)
  pixels = np.broadcast_to(ramp[None, :, None], (200, 400, 3)).copy()
  path = oriented(tmp_path / "phone.jpg", pixels, 6)  # stored lying, shown standing
  reduced = images.read_reduced(path, (400, 200), (90, 40))
  assert reduced.shape == (100, 50, 3)
  np.testing.assert_allclose(reduced[:, 25, 0], ramp.reshape(100, 4).mean(1), atol=3)
  assert images.read_reduced(path, (400, 200), (90, 60)).shape == (200, 100, 3)


def test_label_maps_with_an_orientation_are_refused(tmp_path):
  path = oriented(tmp_path / "label.png", np.zeros((6, 9), np.uint8), 3)
  with pytest.raises(InputError, match=r"label.png: .*EXIF orientation 3"):
    images.read_index_image(path)


@pytest.mark.parametrize("read", [images.read_image, images.read_index_image])
def test_claims_of_enormous_sizes_are_refused_before_decoding(tmp_path, read):
  path = tmp_path / "bomb.png"
  path.write_bytes(png_that_claims(60_000, 60_000))
  with pytest.raises(InputError, match=r"bomb.png: .*3600000000 pixels.* limit of 178956970"):
    read(str(path))
  path.write_bytes(png_that_claims(300, 200))
  with pytest.raises(InputError, match=r"bomb.png: cannot be read"):
    read(str(path))


def test_a_hundred_megapixels_are_read_without_a_warning(tmp_path):
  path = tmp_path / "survey.png"
  Image.new("L", (10_000, 10_000), 77).save(path, compress_level=1)
  code = (
    "import sys; from boxseg_jax.data import images\n"
    "image = images.read_image(sys.argv[1], (10_000, 10_000))\n"
    "print(image.shape, image.min(), image.max())"
  )
  command = [sys.executable, "-W", "error::Warning:PIL", "-c", code, str(path)]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.stdout.strip() == "(10000, 10000, 3) 77 77", done.stderr
  assert "DecompressionBomb" not in done.stderr


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1)])
def test_one_pixel_high_or_wide(tmp_path, size):
  path = str(tmp_path / "line.jpg")
  Image.new("RGB", size[::-1], (90, 120, 30)).save(path, quality=98)
  assert images.read_image(path, size).shape == (*size, 3)
  record = replace(make_record(0, size=size), read_reduced=partial(images.read_reduced, path, size))
  reader = ExampleReader([record], (16, 24), 2, np.zeros(1, bool), cache=False)
  example, padding = reader(0), padding_example((16, 24), 2)
  assert example["image"].shape == padding["image"].shape
  shown = example["labels"] != 255
  assert shown.sum() == round(float((example["extent"] * (16, 24)).prod()))
  np.testing.assert_allclose(example["image"][shown], [[90, 120, 30]] * shown.sum(), atol=3)


def test_broken_files_in_memory_are_named():
  with pytest.raises(InputError, match=r"record 7: cannot be read as an image"):
    images.read_image("record 7", content=b"GIF89a")
  buffer = io.BytesIO()
  Image.fromarray(make_image((8, 8), 0)).save(buffer, "PNG")
  with pytest.raises(InputError, match=r"record 8: cannot be read as an image"):
    images.read_image("record 8", content=buffer.getvalue()[:-60])


def test_a_file_that_asks_for_too_much_memory_is_named(tmp_path, monkeypatch):
  def greedy(*args, **kwargs):
    raise MemoryError

  monkeypatch.setattr(Image, "open", greedy)
  with pytest.raises(InputError, match=r"greedy.png: takes more memory"):
    images.read_index_image(str(tmp_path / "greedy.png"))
