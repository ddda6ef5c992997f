"""YOLO with polygons and Supervisely, as their tools write them."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from data_cases import CLASSES, make_image
from PIL import Image
from test_data_datumaro import CAR, PERSON, SIZE, boxes_in_pixels, expected_labels, inside

from boxseg_jax.data import check
from boxseg_jax.data import datumaro as source
from boxseg_jax.errors import InputError

HEIGHT, WIDTH = SIZE
# A car with a dent, so that it is not taken for four corners.
DENTED = [10, 5, 25, 5, 25, 15, 10, 15, 10, 10]


@pytest.fixture(autouse=True)
def _library():
  pytest.importorskip("datumaro", reason="the extra formats is not installed")


def box_row(label, box):
  xmin, ymin, xmax, ymax = box
  centre = ((xmin + xmax) / 2 / WIDTH, (ymin + ymax) / 2 / HEIGHT)
  return f"{label} {centre[0]} {centre[1]} {(xmax - xmin) / WIDTH} {(ymax - ymin) / HEIGHT}"


def polygon_row(label, points):
  shares = np.reshape(points, (-1, 2)) / [WIDTH, HEIGHT]
  return " ".join(map(str, [label, *shares.ravel()]))


def corners(box):
  xmin, ymin, xmax, ymax = box
  return [xmin, ymin, xmax, ymin, xmax, ymax, xmin, ymax]


def write_yolo(root, labels, *, yaml="train: images/train\nnames: [person, car]\n", at="{}/train"):
  """Writes photographs, and rows of labels; None: no file."""
  for kind in ("images", "labels"):
    (root / at.format(kind)).mkdir(parents=True, exist_ok=True)
  for number, rows in enumerate(labels):
    photo = Image.fromarray(make_image(SIZE, number))
    photo.save(root / at.format("images") / f"im{number}.png")
    if rows is not None:
      (root / at.format("labels") / f"im{number}.txt").write_text("\n".join(rows) + "\n")
  (root / "data.yaml").write_text(yaml)
  return str(root)


BOTH = [polygon_row(1, DENTED), polygon_row(0, corners(PERSON))]
BOXES = [box_row(1, CAR), box_row(0, PERSON)]


@pytest.mark.parametrize("asked", ["auto", "yolo"])
def test_yolo_with_boxes_and_polygons(tmp_path, asked):
  root = write_yolo(tmp_path, [BOTH, BOXES, None, [BOTH[0], BOXES[1]], []])
  records = source.load(root, "train", CLASSES, dataset_format=asked)
  assert [record.image_id for record in records] == [f"images/train/im{n}.png" for n in range(5)]
  for record in (records[0], records[1], records[3]):
    assert boxes_in_pixels(record) == [(1, list(map(float, CAR))), (2, list(map(float, PERSON)))]
  np.testing.assert_array_equal(records[0].read_labels(), expected_labels())
  assert records[1].read_labels is None and records[3].read_labels is None
  # An image without labels shows no object.
  assert not records[2].read_labels().any() and not records[4].read_labels().any()
  assert not any(seen.problems for seen in check.look_at(records, num_classes=3, workers=1))


@pytest.mark.parametrize(
  ("yaml", "at"),
  [
    ("path: /made/elsewhere\ntrain: images/train\nnames: {1: car, 0: person}\n", "{}/train"),
    # Roboflow's folders, from one level above.
    ("train: ../train/images\nnames: [person, car]\n", "train/{}"),
    ("train: [images/a]\nnames: [person, car]\n", "{}/a"),
    ("train: list.txt\nnames: [person, car]\n", "{}/a"),
  ],
)
def test_yolo_in_the_layouts_of_its_tools(tmp_path, yaml, at):
  (tmp_path / "list.txt").write_text("images/a/im0.png\n\n")
  (record,) = source.load(write_yolo(tmp_path, [BOTH], yaml=yaml, at=at), "train", CLASSES)
  np.testing.assert_array_equal(record.read_labels(), expected_labels())


def test_four_corners_may_be_oriented_boxes_and_are_not_guessed(tmp_path):
  root = write_yolo(tmp_path, [[polygon_row(1, corners(CAR))], BOXES])
  with pytest.raises(InputError, match="data.yaml: .*data.format=yolo_segment or yolo_obb"):
    source.load(root, "train", CLASSES)
  drawn, _ = source.load(root, "train", CLASSES, dataset_format="yolo_segment")
  np.testing.assert_array_equal(drawn.read_labels(), inside(CAR))
  boxed, _ = source.load(root, "train", CLASSES, dataset_format="yolo_obb")
  assert boxed.read_labels is None
  assert boxes_in_pixels(boxed) == [(1, list(map(float, CAR)))]


@pytest.mark.parametrize(
  ("rows", "words"),
  [
    (["2 0.5 0.5 0.1 0.1"], "im0.txt: line 1: class 2 is none of the 2"),
    (["0 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1"], "im0.txt: line 2: class 0.5"),
    (["0 0.5 0.5 0.1"], "im0.txt: line 1: 4 numbers are neither a box"),
    (["0 0.1 0.1 0.2 0.2 0.3 0.1 0.4"], "im0.txt: line 1: 8 numbers"),
    (["0 0.5 0.5 0.1 x"], "im0.txt: line 1: .*'x'"),
  ],
)
def test_a_wrong_row_is_named(tmp_path, rows, words):
  with pytest.raises(InputError, match=words):
    source.load(write_yolo(tmp_path, [rows]), "train", CLASSES)


@pytest.mark.parametrize(
  ("yaml", "words"),
  [
    ("train: images/train\n", 'data.yaml: "names" is None'),
    ("train: images/train\nnames: {1: car}\n", 'data.yaml: "names" is {1'),
    ("val: images/train\nnames: [car]\n", "no split 'train', but val"),
    ("train: images/other\nnames: [car]\n", "no folder or list images/other"),
    ("train: labels/train\nnames: [car]\n", "holds no image"),
    ("train: [\n", "data.yaml: cannot be read"),
    ("car\n", "data.yaml: cannot be read"),
  ],
)
def test_a_wrong_yaml_is_named(tmp_path, yaml, words):
  with pytest.raises(InputError, match=words):
    source.load(write_yolo(tmp_path, [BOXES], yaml=yaml), "train", CLASSES)


def test_a_broken_photograph_is_named(tmp_path):
  root = write_yolo(tmp_path, [BOXES])
  (tmp_path / "images" / "train" / "im0.png").write_bytes(b"no image")
  with pytest.raises(InputError, match="im0.png: cannot be read as an image"):
    source.load(root, "train", CLASSES)


def bitmap(mask, mode):
  """A bitmap as in a project: the part of the mask that holds it, and where it is."""
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  image = Image.fromarray(part.astype(np.uint8) * 255)
  if mode == "RGBA":
    image = Image.merge("RGBA", [image.point(lambda _: 255)] * 3 + [image])
  written = io.BytesIO()
  image.convert(mode).save(written, "PNG")
  data = base64.b64encode(zlib.compress(written.getvalue())).decode()
  return {"data": data, "origin": [int(columns[0]), int(rows[0])]}


def thing(title, kind, **more):
  return {"classTitle": title, "geometryType": kind, **more}


def painted(title, bitmap):
  return thing(title, "bitmap", bitmap=bitmap)


def exterior(*points, holes=()):
  return {"points": {"exterior": [list(point) for point in points], "interior": list(holes)}}


def write_supervisely(root, objects):
  for kind in ("ann", "img"):
    (root / "first" / kind).mkdir(parents=True)
  names = [{"title": "person", "shape": "any"}, {"title": "car", "shape": "any"}]
  (root / "meta.json").write_text(json.dumps({"classes": names, "tags": []}))
  for number, own in enumerate(objects):
    Image.fromarray(make_image(SIZE, number)).save(root / "first" / "img" / f"{number}.png")
    content = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": own, "tags": []}
    (root / "first" / "ann" / f"{number}.png.json").write_text(json.dumps(content))
  return str(root)


def test_supervisely_projects(tmp_path):
  # Corners name pixels, the last one included.
  hole = [[14, 8], [19, 8], [19, 11], [14, 11]]
  car = exterior((10, 5), (24, 5), (24, 14), (10, 14), holes=[hole])
  person = exterior((2, 18), (11, 27))
  root = write_supervisely(
    tmp_path,
    [
      [
        thing("car", "polygon", **car),
        thing("person", "bitmap", bitmap=bitmap(inside(PERSON), "1")),
      ],
      [painted("car", bitmap(inside(CAR), "RGBA"))],
      [thing("person", "rectangle", **person)],
    ],
  )
  holed, pasted, boxed = source.load(root, "first", CLASSES)
  expected = inside(CAR, hole=(14, 8, 20, 12)) * 1 + inside(PERSON) * 2
  np.testing.assert_array_equal(holed.read_labels(), expected)
  assert boxes_in_pixels(holed) == [(1, list(map(float, CAR))), (2, list(map(float, PERSON)))]
  np.testing.assert_array_equal(pasted.read_labels(), inside(CAR))
  assert boxed.read_labels is None
  assert boxes_in_pixels(boxed) == [(2, list(map(float, PERSON)))]
  found = check.look_at([holed, pasted, boxed], num_classes=3, workers=1)
  assert not any(seen.problems for seen in found)
  with pytest.raises(InputError, match="no second/ann with files, but first"):
    source.load(root, "second", CLASSES)


@pytest.mark.parametrize(
  ("one", "words"),
  [
    (thing("car", "line", **exterior((1, 2), (3, 4))), "0.png.json: .*geometryType is 'line'"),
    (thing("tram", "rectangle", **exterior((1, 2), (3, 4))), "0.png.json: .*'tram'"),
    (thing("car", "bitmap", bitmap={"data": "AAAA", "origin": [0, 0]}), "0.png.json: an object"),
    (thing("car", "bitmap"), "0.png.json: there is no 'bitmap'"),
    (
      thing("car", "bitmap", bitmap=bitmap(inside(CAR), "1") | {"origin": [30, 5]}),
      "a bitmap of 15 x 10 pixels at 30, 5 leaves the image",
    ),
  ],
)
def test_a_wrong_object_is_named(tmp_path, one, words):
  with pytest.raises(InputError, match=words):
    source.load(write_supervisely(tmp_path, [[one]]), "first", CLASSES)
