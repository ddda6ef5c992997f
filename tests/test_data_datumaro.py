"""Source datumaro: sets written by the library's own exporters become records."""

import builtins
import json
import pickle

import numpy as np
import pytest
from data_cases import CLASSES, make_image
from ml_collections import ConfigDict
from PIL import Image

from boxseg_jax import data
from boxseg_jax.data import check
from boxseg_jax.data import datumaro as source
from boxseg_jax.errors import InputError

SIZE = (30, 40)
CAR, PERSON = (10, 5, 25, 15), (2, 18, 12, 28)  # (xmin, ymin, xmax, ymax)


@pytest.fixture(scope="module")
def dm():
  return pytest.importorskip("datumaro", reason="the extra formats is not installed")


def inside(box, hole=None):
  mask = np.zeros(SIZE, bool)
  for value, (xmin, ymin, xmax, ymax) in ((True, box), (False, hole or (0, 0, 0, 0))):
    mask[ymin:ymax, xmin:xmax] = value
  return mask


def polygon(dm, box, label, **more):
  return dm.Polygon(corners_of(box), label=label, **more)


def corners_of(box):
  xmin, ymin, xmax, ymax = box
  return [xmin, ymin, xmax, ymin, xmax, ymax, xmin, ymax]


def box_of(dm, box, label, **more):
  xmin, ymin, xmax, ymax = box
  return dm.Bbox(xmin, ymin, xmax - xmin, ymax - ymin, label=label, **more)


def kinds(dm):
  """The same two objects as polygons, as boxes and as masks."""
  both = [(CAR, 1, {"id": 1, "group": 1}), (PERSON, 2, {"id": 2, "group": 2})]
  return {
    "polygons": [polygon(dm, box, label, **more) for box, label, more in both],
    "boxes": [box_of(dm, box, label, **more) for box, label, more in both],
    "masks": [dm.Mask(inside(box), label=label, **more) for box, label, more in both],
  }


def write(dm, folder, name, images, labels=CLASSES, subset="train"):
  """Exports a set: images are lists of annotations."""
  items = [
    dm.DatasetItem(
      id=f"im{number}",
      subset=subset,
      media=dm.Image.from_numpy(make_image(SIZE, number)),
      annotations=annotations,
    )
    for number, annotations in enumerate(images)
  ]
  dataset = dm.Dataset.from_iterable(items, categories=list(labels))
  dataset.export(str(folder), name, save_media=True)
  return str(folder)


def expected_labels():
  return inside(CAR) * 1 + inside(PERSON) * 2


def boxes_in_pixels(record):
  height, width = record.size
  corners = record.boxes[:, [1, 0, 3, 2]] * [width, height, width, height]
  return sorted(zip(record.box_classes.tolist(), corners.round(3).tolist(), strict=True))


# What the format can hold, of the kinds above; "+": in one image. The name, where auto would
# have to guess between formats of several tasks.
FORMATS = [
  ("voc", ["boxes+masks", "boxes"], "auto"),
  ("voc_segmentation", ["masks"], "voc_segmentation"),
  ("yolo", ["boxes"], "auto"),
  ("label_me", ["polygons", "boxes", "masks"], "auto"),
  ("cvat", ["polygons", "boxes", "masks"], "auto"),
  ("coco_instances", ["polygons", "boxes"], "auto"),
  ("coco_panoptic", ["masks"], "auto"),
  ("kitti_segmentation", ["masks"], "kitti_segmentation"),
  ("kitti_detection", ["boxes"], "kitti_detection"),
  ("open_images", ["boxes+masks", "boxes"], "auto"),
  ("cityscapes", ["masks"], "auto"),
  ("camvid", ["masks"], "auto"),
  ("datumaro", ["polygons", "boxes", "masks"], "auto"),
  ("arrow", ["polygons", "boxes", "masks"], "auto"),
  ("wider_face", ["boxes"], "auto"),
]


@pytest.mark.parametrize(("name", "images", "asked"), FORMATS, ids=[f[0] for f in FORMATS])
def test_formats_become_records(dm, tmp_path, name, images, asked):
  made = kinds(dm)
  root = write(
    dm,
    tmp_path,
    name,
    [[one for kind in image.split("+") for one in made[kind]] for image in images],
  )
  records = source.load(root, "train", CLASSES, dataset_format=asked)
  assert len(records) == len(images)
  for record, image in zip(records, images, strict=True):
    assert boxes_in_pixels(record) == [(1, list(map(float, CAR))), (2, list(map(float, PERSON)))]
    assert not record.box_is_crowd.any() and record.classes == {1, 2} and record.size == SIZE
    if image == "boxes":
      assert record.read_labels is None
    else:
      np.testing.assert_array_equal(record.read_labels(), expected_labels())
  facts = check.look_at(records, num_classes=3, workers=1)
  assert not any(seen.problems for seen in facts)
  error = records[0].read_image().astype(int) - make_image(SIZE, 0)
  assert np.abs(error).mean() < 60  # some formats save JPEGs
  if name != "arrow":
    again = pickle.loads(pickle.dumps(records[0]))
    np.testing.assert_array_equal(again.read_image(), records[0].read_image())


def write_roboflow(root):
  folder = root / "train"
  folder.mkdir()
  boxes = {1: [10, 5, 15, 10], 2: [2, 18, 10, 10]}
  annotations = [
    {"id": label, "image_id": 1, "category_id": label, "bbox": box, "iscrowd": 0, "area": 1}
    for label, box in boxes.items()
  ]
  annotations[0]["segmentation"] = [corners_of(CAR)]
  annotations[1]["segmentation"] = [corners_of(PERSON)]
  content = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}],
    "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}],
    "annotations": annotations,
  }
  (folder / "_annotations.coco.json").write_text(json.dumps(content))
  Image.fromarray(make_image(SIZE, 0)).save(folder / "a.jpg")


def write_roboflow_voc(root):
  """Photographs and their XML side by side; boxes only."""
  (root / "train").mkdir()
  Image.fromarray(make_image(SIZE, 0)).save(root / "train" / "a.jpg")
  sides = ("xmin", "ymin", "xmax", "ymax")
  objects = "".join(
    f"<object><name>{name}</name><bndbox>"
    + "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box, strict=True))
    + "</bndbox></object>"
    for name, box in (("car", CAR), ("person", PERSON))
  )
  (root / "train" / "a.xml").write_text(
    "<annotation><folder></folder><filename>a.jpg</filename><path>a.jpg</path>"
    "<source><database>roboflow.ai</database></source>"
    f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    f"<segmented>0</segmented>{objects}</annotation>"
  )


def write_create_ml(root):
  """Boxes by their middle, as Apple's Create ML has them."""
  (root / "train").mkdir()
  Image.fromarray(make_image(SIZE, 0)).save(root / "train" / "a.jpg")
  (xmin, ymin, xmax, ymax) = CAR
  box = {"x": (xmin + xmax) / 2, "y": (ymin + ymax) / 2}
  box |= {"width": xmax - xmin, "height": ymax - ymin}
  content = [{"image": "a.jpg", "annotations": [{"label": "car", "coordinates": box}]}]
  (root / "train" / "_annotations.createml.json").write_text(json.dumps(content))


def write_mapillary(root):
  """Instances are label * 256 + number."""
  for kind in ("images", "v2.0/instances"):
    (root / "train" / kind).mkdir(parents=True)
  values = (inside(CAR) * (256 + 1) + inside(PERSON) * (512 + 1)).astype(np.uint16)
  Image.fromarray(values).save(root / "train" / "v2.0" / "instances" / "a.png")
  Image.fromarray(make_image(SIZE, 0)).save(root / "train" / "images" / "a.jpg")
  labels = [{"name": name, "color": [n, n, n]} for n, name in enumerate(CLASSES)]
  (root / "config_v2.0.json").write_text(json.dumps({"labels": labels}))


def write_mapillary_panoptic(root):
  """Ids of segments are colours, red + 256 * green + 65536 * blue."""
  folder = root / "train" / "v2.0" / "panoptic"
  folder.mkdir(parents=True)
  (root / "train" / "images").mkdir()
  Image.fromarray(make_image(SIZE, 0)).save(root / "train" / "images" / "a.jpg")
  colors = np.zeros((*SIZE, 3), np.uint8)
  colors[inside(CAR)], colors[inside(PERSON)] = (1, 2, 0), (7, 0, 1)
  Image.fromarray(colors).save(folder / "a.png")
  segments = [(1 + 2 * 256, 11), (7 + 65536, 12)]
  content = {
    "images": [{"id": "a", "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
    "categories": [
      {"id": 10 + n, "name": name, "color": [n, n, n]} for n, name in enumerate(CLASSES) if n
    ],
    "annotations": [
      {"image_id": "a", "file_name": "a.png"}
      | {"segments_info": [{"id": i, "category_id": c, "iscrowd": 0} for i, c in segments]}
    ],
  }
  (folder / "panoptic_2020.json").write_text(json.dumps(content))


def write_ade20k_2017(root):
  """Instances are the blue channel, their classes a text file."""
  folder = root / "train" / "street"
  folder.mkdir(parents=True)
  Image.fromarray(make_image(SIZE, 0)).save(folder / "a.jpg")
  colors = np.zeros((*SIZE, 3), np.uint8)
  colors[inside(CAR), 2], colors[inside(PERSON), 2] = 1, 2
  Image.fromarray(colors).save(folder / "a_seg.png")
  lines = [f'00{n} # 0 # 0 # {name} # {name} # ""\n' for n, name in enumerate(CLASSES) if n]
  (folder / "a_atr.txt").write_text("".join(lines))


def write_ade20k(root):
  """Masks of classes and of instances, and polygons, all of the same objects."""
  folder = root / "train" / "street"
  (folder / "a").mkdir(parents=True)
  Image.fromarray(make_image(SIZE, 0)).save(folder / "a.jpg")
  colors = np.zeros((*SIZE, 3), np.uint8)
  objects = []
  for number, (name, box) in enumerate([("car", CAR), ("person", PERSON)], start=1):
    colors[inside(box), 1] = number
    Image.fromarray(inside(box) * np.uint8(255)).save(folder / "a" / f"instance_{number}.png")
    x, y = np.reshape(corners_of(box), (-1, 2)).T.tolist()
    objects.append(
      {"id": number, "name_ndx": number, "raw_name": name}
      | {"instance_mask": f"a/instance_{number}.png"}
      | {"parts": {"part_level": 0}, "occluded": "no", "crop": 0, "attributes": []}
      | {"polygon": {"x": x, "y": y}}
    )
  Image.fromarray(colors).save(folder / "a_seg.png")
  (folder / "a.json").write_text(json.dumps({"annotation": {"object": objects}}))


WRITERS = {
  "roboflow_coco": write_roboflow,
  "roboflow_voc": write_roboflow_voc,
  "mapillary_vistas_instances": write_mapillary,
  "mapillary_vistas_panoptic": write_mapillary_panoptic,
  "ade20k2020": write_ade20k,
  "ade20k2017": write_ade20k_2017,
}


@pytest.mark.parametrize("name", WRITERS)
def test_formats_without_an_exporter(dm, tmp_path, name):
  WRITERS[name](tmp_path)
  (record,) = source.load(str(tmp_path), "train", CLASSES, dataset_format=name)
  assert boxes_in_pixels(record) == [(1, list(map(float, CAR))), (2, list(map(float, PERSON)))]
  if name == "roboflow_voc":
    assert record.read_labels is None
  else:
    np.testing.assert_array_equal(record.read_labels(), expected_labels())
  assert not check.look_at([record], num_classes=3, workers=1)[0].problems


@pytest.mark.parametrize("asked", ["auto", "roboflow_create_ml"])
def test_a_format_that_the_library_misreads_is_refused(dm, tmp_path, asked):
  write_create_ml(tmp_path)
  with pytest.raises(InputError, match="reads roboflow_create_ml wrong: the middle of a box"):
    source.load(str(tmp_path), "train", CLASSES, dataset_format=asked)
  # If this fails, the library has learned it, and the refusal can go.
  (item,) = dm.Dataset.import_from(str(tmp_path), "roboflow_create_ml")
  assert item.annotations[0].get_bbox()[0] == (CAR[0] + CAR[2]) / 2


def load(dm, tmp_path, images, labels=CLASSES, **options):
  root = write(dm, tmp_path, "datumaro", images, labels)
  return source.load(root, "train", CLASSES, **options)


def test_an_image_with_one_object_without_a_mask_is_a_box_image(dm, tmp_path):
  other = (26, 16, 38, 28)
  some, neighbour, void, empty = load(
    dm,
    tmp_path,
    [
      [polygon(dm, CAR, 1), box_of(dm, other, 1)],
      # The box next to an object takes in a part of its mask, which does not fit it.
      [polygon(dm, CAR, 1), box_of(dm, (22, 10, 38, 28), 1)],
      [polygon(dm, CAR, 1), box_of(dm, other, 1, attributes={"is_crowd": True})],
      [],
    ],
  )
  assert some.read_labels is None and len(some.boxes) == 2
  assert neighbour.read_labels is None and len(neighbour.boxes) == 2
  # A crowd of which only the box is known is void all over its box.
  expected = inside(CAR) * 1 + inside(other) * 255
  np.testing.assert_array_equal(void.read_labels(), expected)
  assert void.box_is_crowd.tolist() == [False, True] and void.classes == {1}
  assert not empty.read_labels().any() and len(empty.boxes) == 0


def test_masks_get_one_box_for_each_object(dm, tmp_path):
  second = (28, 18, 38, 28)
  both = inside(CAR) | inside(second)
  of_class, drawn_twice, holed = load(
    dm,
    tmp_path,
    [
      # One mask for all objects of a class: its own bounds would be a box around everything.
      [dm.Mask(both, label=1), box_of(dm, CAR, 1), box_of(dm, second, 1)],
      [
        dm.Mask(both, label=1),
        polygon(dm, second, 1),
        polygon(dm, CAR, 1),
        dm.Mask(inside(CAR), label=1),
      ],
      [dm.Mask(inside(CAR, hole=(14, 8, 20, 12)), label=1), polygon(dm, (14, 8, 17, 12), 2)],
    ],
  )
  for record in (of_class, drawn_twice):
    wanted = sorted([(1, list(map(float, CAR))), (1, list(map(float, second)))])
    assert boxes_in_pixels(record) == wanted
    np.testing.assert_array_equal(record.read_labels(), both * 1)
  expected = inside(CAR, hole=(14, 8, 20, 12)) * 1 + inside((14, 8, 17, 12)) * 2
  np.testing.assert_array_equal(holed.read_labels(), expected)


def test_labels_are_matched_by_name_and_others_are_mapped_or_refused(dm, tmp_path):
  labels = ("sky", "person", "car", "border", "van")
  image = [
    polygon(dm, CAR, 2),
    box_of(dm, (0, 0, 40, 4), 0),
    dm.Mask(inside((26, 16, 38, 28)), label=3),
    polygon(dm, PERSON, 4),
  ]
  with pytest.raises(
    InputError, match='im0: annotation 1 .bbox.: unknown label "sky".*label_names'
  ):
    load(dm, tmp_path / "a", [image], labels)
  pairs = (("sky", "background"), ("van", "car"), ("border", "void"))
  (record,) = load(dm, tmp_path / "b", [image], labels, label_names=pairs)
  expected = inside(CAR) * 1 + inside(PERSON) * 1 + inside((26, 16, 38, 28)) * 255
  np.testing.assert_array_equal(record.read_labels(), expected)
  assert record.box_classes.tolist() == [1, 1, 1]
  assert record.box_is_crowd.tolist() == [False, False, True] and record.classes == {1}
  (record,) = load(dm, tmp_path / "c", [image], labels, label_names=(("*", "background"),))
  np.testing.assert_array_equal(record.read_labels(), inside(CAR) * 1)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda dm: dm.Points([1, 2, 3, 4], label=1), r"annotation 0 \(points\): covers no area"),
    (lambda dm: dm.Mask(inside(CAR)), r"annotation 0 \(mask\): has no label"),
    (lambda dm: dm.Mask(inside(CAR)[:9], label=1), r"im0: .*its size is \[9, 40\]"),
    (lambda dm: dm.Polygon([1, 2, 5, 2, 9e9, 3], label=1), "im0: .*far outside of the image"),
  ],
)
def test_what_gives_no_mask_is_named(dm, tmp_path, make, words):
  with pytest.raises(InputError, match=words):
    load(dm, tmp_path, [[make(dm)]])


def test_sets_that_cannot_be_read_are_named(dm, tmp_path):
  root = write(dm, tmp_path / "a", "kitti_segmentation", [kinds(dm)["masks"]])
  with pytest.raises(InputError, match="several formats fit .*: kitti, kitti_segmentation"):
    source.load(root, "train", CLASSES)
  with pytest.raises(InputError, match="data.format is 'kiti', which .*kitti"):
    source.load(root, "train", CLASSES, dataset_format="kiti")
  with pytest.raises(InputError, match="cannot be read as yolo"):
    source.load(root, "train", CLASSES, dataset_format="yolo")
  with pytest.raises(InputError, match="no subset 'val', but train"):
    source.load(root, "val", CLASSES, dataset_format="kitti_segmentation")
  with pytest.raises(InputError, match=r"nowhere: no such folder \(data.root\)"):
    source.load(str(tmp_path / "nowhere"), "train", CLASSES)
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="empty: .*data.format"):
    source.load(str(tmp_path / "empty"), "train", CLASSES)


def test_a_broken_file_is_named(dm, tmp_path):
  root = write(dm, tmp_path, "voc", [kinds(dm)["boxes"]])
  path = tmp_path / "Annotations" / "im0.xml"
  path.write_text(path.read_text().replace("<xmin>10", "<xmin>ten"))
  with pytest.raises(InputError, match="cannot be read as voc: .*bndbox/?.*xmin|xmin"):
    source.load(root, "train", CLASSES)
  path.write_text(path.read_text()[:60])
  with pytest.raises(InputError, match="cannot be read as voc: .*XML"):
    source.load(root, "train", CLASSES)


def test_a_missing_photograph_is_named(dm, tmp_path):
  root = write(dm, tmp_path / "yolo", "yolo", [kinds(dm)["boxes"]])
  sized = write(dm, tmp_path / "voc", "voc", [kinds(dm)["boxes"]] * 2)
  for photo in tmp_path.rglob("im0.jpg"):
    photo.unlink()
  with pytest.raises(InputError, match="cannot be read as yolo: .*im0"):
    source.load(root, "train", CLASSES)
  # Where the size is annotated, the image is left out or not by data.on_bad_image.
  first, second = check.look_at(source.load(sized, "train", CLASSES), num_classes=3, workers=1)
  assert "im0.jpg: no such image file" in first.problems[0] and not second.problems


def test_the_configured_source_is_used(dm, tmp_path):
  root = write(dm, tmp_path, "cvat", [kinds(dm)["polygons"]] * 3, subset="default")
  config = ConfigDict(
    {
      "source": "datumaro",
      "root": root,
      "format": "auto",
      "class_names": CLASSES,
      "label_names": (),
    }
  )
  assert len(data.load_records(config, "default")) == 3
  assert [r.image_id for r in data.load_records(config, "default[1:]")] == ["im1", "im2"]


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
  original = builtins.__import__

  def refuse(name, *rest):
    if name == "datumaro":
      raise ImportError("no datumaro")
    return original(name, *rest)

  monkeypatch.setattr(builtins, "__import__", refuse)
  with pytest.raises(InputError, match=r'needs the extra "formats": pip install'):
    source.load(str(tmp_path), "train", CLASSES)
