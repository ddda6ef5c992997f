"""Sources: annotation files -> records, label maps by hand and by pycocotools."""

import pickle
import re

import numpy as np
import pytest
from data_cases import CLASSES, annotation, read_json, rectangle, write_json, write_set
from ml_collections import ConfigDict
from PIL import Image
from places import SHARED
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from boxseg_jax import data
from boxseg_jax.data import coco, images, labels, split
from boxseg_jax.data.records import max_boxes
from boxseg_jax.errors import InputError


def load_coco(root, annotations, **options):
  write_set(root / "train", annotations, **options)
  return coco.load(str(root), "train", CLASSES)


def test_boxes_are_shares_of_the_image_and_categories_match_by_name(tmp_path):
  first, second = load_coco(
    tmp_path,
    [
      annotation(1, box=(3, 5, 15, 10), segmentation=rectangle(3, 5, 15, 10)),
      annotation(2, category=7, box=(0, 0, 30, 20), segmentation=rectangle(0, 0, 30, 20)),
    ],
  )
  np.testing.assert_allclose(first.boxes, [[0.25, 0.1, 0.75, 0.6], [0, 0, 1, 1]], rtol=1e-6)
  assert first.boxes.dtype == np.float32
  assert first.box_classes.tolist() == [1, 2]
  assert first.classes == {1, 2} and second.classes == frozenset()
  assert first.image_id == "a.png" and first.size == (20, 30)
  assert second.boxes.shape == (0, 4)
  # An image without objects is a mask image of nothing but background.
  assert second.read_labels().tolist() == np.zeros((20, 30)).tolist()
  saved = Image.open(tmp_path / "train" / "images" / "a.png")
  np.testing.assert_array_equal(first.read_image(), np.asarray(saved))


def test_smaller_objects_lie_on_top_whatever_their_order(tmp_path):
  large = annotation(1, box=(0, 0, 20, 10), segmentation=rectangle(0, 0, 20, 10))
  small = annotation(2, category=7, box=(4, 2, 6, 3), segmentation=rectangle(4, 2, 6, 3))
  expected = np.zeros((20, 30), np.uint8)
  expected[0:10, 0:20] = 1
  expected[2:5, 4:10] = 2
  for order in ([large, small], [small, large]):
    record = load_coco(tmp_path, order)[0]
    np.testing.assert_array_equal(record.read_labels(), expected)


def test_the_three_kinds_of_masks_agree(tmp_path):
  inside = np.zeros((20, 30), np.uint8)
  inside[3:8, 2:12] = 1
  compressed = coco_mask.encode(np.asfortranarray(inside))
  compressed = {"size": [20, 30], "counts": compressed["counts"].decode()}
  # By hand: two columns and three rows are skipped, then ten runs of five.
  uncompressed = {"size": [20, 30], "counts": [43, 5] + [15, 5] * 9 + [600 - 43 - 5 - 180]}
  for segmentation in (rectangle(2, 3, 10, 5), compressed, uncompressed):
    record = load_coco(tmp_path, [annotation(1, segmentation=segmentation)])[0]
    np.testing.assert_array_equal(record.read_labels(), inside)


def test_a_crowd_is_void_below_the_objects_and_its_box_is_one(tmp_path):
  record = load_coco(
    tmp_path,
    [
      annotation(1, segmentation=rectangle(4, 4, 4, 4)),
      annotation(
        2, box=(2, 2, 6, 4), iscrowd=1, segmentation={"size": [20, 30], "counts": [0, 40, 560]}
      ),
      annotation(3, image=2, box=(2, 3, 10, 5), iscrowd=1),
    ],
  )
  expected = np.zeros((20, 30), np.uint8)
  expected[:, 0:2] = 255
  expected[4:8, 4:8] = 1
  np.testing.assert_array_equal(record[0].read_labels(), expected)
  assert record[0].box_is_crowd.tolist() == [False, True]
  assert record[0].classes == {1}
  # A crowd of which only the box is known is void all over its box.
  expected = np.zeros((20, 30), np.uint8)
  expected[3:8, 2:12] = 255
  np.testing.assert_array_equal(record[1].read_labels(), expected)


@pytest.mark.parametrize(
  "absent", [{}, {"segmentation": []}, {"segmentation": [[]]}, {"segmentation": None}]
)
def test_an_object_without_a_mask_makes_a_box_image(tmp_path, absent):
  masked = annotation(1, segmentation=rectangle(2, 3, 10, 5))
  first, second = load_coco(tmp_path, [masked, annotation(2, **absent), annotation(3, 2, **absent)])
  assert first.read_labels is None and second.read_labels is None
  assert len(first.boxes) == 2


def test_a_file_of_boxes_only_has_no_mask_images(tmp_path):
  assert [r.read_labels for r in load_coco(tmp_path, [annotation(1)])] == [None, None]


def test_run_lengths_equal_pycocotools():
  rng = np.random.default_rng(0)
  for density in (0.0, 0.02, 0.5, 1.0):
    for size in ((1, 1), (37, 53), (200, 3)):
      inside = np.asfortranarray(rng.random(size) < density).astype(np.uint8)
      counts = coco.decode_counts(coco_mask.encode(inside)["counts"])
      runs = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[::-1]).T
      np.testing.assert_array_equal(runs, inside)
  # A run of more than 2**15 pixels takes several characters, a negative difference a sign.
  inside = np.zeros((300, 300), np.uint8, order="F")
  inside[100, 10] = inside[101, 299] = 1
  counts = coco.decode_counts(coco_mask.encode(inside)["counts"])
  assert counts.tolist() == [3100, 1, 86700, 1, 198]


@pytest.mark.parametrize(
  ("segmentation", "words"),
  [
    ([[1, 2, 3, 4]], "no polygon"),
    ([["a", "b", "c", "d", "e", "f"]], "cannot be read"),
    ({"size": [30, 20], "counts": [600]}, r"its size is \[30, 20\]"),
    ({"size": [20, 30], "counts": [300, 100]}, "400 pixels"),
    ({"size": [20, 30], "counts": [700, -100]}, "run lengths"),
    ({"size": [20, 30], "counts": [299.5, 300.5]}, "no whole numbers"),
    ({"size": [20, 30], "counts": "8"}, "add up to 8 pixels"),
    ({"size": [20, 30], "counts": "ooo"}, "broken run-length code"),
    ({"size": [20, 30], "counts": "\n"}, "broken run-length code"),
    ({"size": [20, 30], "counts": "o" * 9 + "0"}, "broken run-length code"),
    ({"size": [20, 30]}, "the segmentation has no 'counts'"),
    ({"size": [20, 30], "counts": [2**70]}, "cannot be read"),
    ({"size": [20, 30], "counts": [[600]]}, "2 dimensions"),
    # pycocotools would take all memory, or read an empty mask.
    ([[float("inf"), 1, 5, 3, 4, 5]], r"point \(inf, 1\) lies far outside"),
    ([[1e9, 1, 5, 3, 4, 5]], "far outside"),
    ([[float("nan"), 1, 5, 3, 4, 5]], r"point \(nan, 1\) lies far outside"),
  ],
)
def test_a_broken_mask_is_named(tmp_path, segmentation, words):
  record = load_coco(tmp_path, [annotation(9, segmentation=segmentation)])[0]
  with pytest.raises(InputError, match=words) as error:
    record.read_labels()
  for part in ("instances.json", "a.png", "annotation 9"):
    assert part in str(error.value)


def random_segmentation(rng, size):
  """A mask in one of the ways in which COCO writes it, and how pycocotools reads it."""
  height, width = size
  kind = rng.integers(3)
  if kind == 0:  # parts that may overlap, and may leave the image
    parts = rng.uniform(-3, 1.1 * max(size), (rng.integers(1, 4), 2 * rng.integers(3, 9)))
    return [part.round(2).tolist() for part in parts]
  inside = np.zeros(size, np.uint8)
  top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
  inside[top : top + 8, left : left + 8] = 1
  inside[top + 2 : top + 5, left + 3 : left + 6] = 0  # a hole
  if kind == 1:
    code = coco_mask.encode(np.asfortranarray(inside))
    return {"size": list(size), "counts": code["counts"].decode()}
  counts = np.diff(np.flatnonzero(np.diff(inside.T.ravel(), prepend=2, append=2)))
  return {"size": list(size), "counts": [0] * int(inside[0, 0]) + counts.tolist()}


def test_a_file_of_everything_equals_pycocotools(tmp_path, capsys):
  """Ids with gaps, crowds, holes, parts, images without annotations, boxes among masks."""
  rng = np.random.default_rng(0)
  names = [f"{number}.png" for number in range(24)]
  folder = write_set(tmp_path / "train", [], images=names, size=(30, 41))
  content = read_json(folder)
  for number, image in enumerate(content["images"]):
    image["id"] = 1000 + 37 * number
  for number in range(90):
    image = content["images"][3 * (number % 7)]["id"]  # two in three images have no annotation
    crowd = {"iscrowd": int(number % 9 == 8)}
    mask = {"segmentation": random_segmentation(rng, (30, 41))} if number % 30 != 4 else {}
    category = 7 if number % 3 else 3
    content["annotations"].append(annotation(5 + 11 * number, image, category, **mask, **crowd))
  write_json(folder, content)
  reference = COCO(str(folder / "instances.json"))
  capsys.readouterr()
  seen = {"mask": 0, "box": 0}
  records = coco.load(str(tmp_path), "train", CLASSES)
  for record, image in zip(records, content["images"], strict=True):
    found = reference.loadAnns(reference.getAnnIds(image["id"]))
    if any("segmentation" not in one for one in found):
      seen["box"] += 1
      assert record.read_labels is None and len(record.boxes) == len(found)
      continue
    seen["mask"] += len(found)
    masks = [reference.annToMask(one) > 0 for one in found]
    expected = np.zeros((30, 41), np.uint8)
    order = sorted(range(len(found)), key=lambda i: (not found[i]["iscrowd"], -masks[i].sum()))
    for i in order:
      label = {7: 2, 3: 1}[found[i]["category_id"]]
      expected[masks[i]] = 255 if found[i]["iscrowd"] else label
    np.testing.assert_array_equal(record.read_labels(), expected)
  assert seen["mask"] > 40 and seen["box"] == 3, seen


def test_a_mixed_file_needs_no_split(tmp_path):
  masked = {"segmentation": rectangle(2, 3, 10, 5)}
  records = load_coco(
    tmp_path,
    [
      annotation(1, 1, **masked),
      annotation(2, 2, **masked),
      annotation(3, 2),
      annotation(4, 3, iscrowd=1),
      annotation(5, 4),
      annotation(6, 5, iscrowd=1),
      annotation(7, 5, **masked),
    ],
    images=[f"{name}.png" for name in "abcdef"],
  )
  # b has a mask of one of its objects alone; f, without objects, is background all over.
  chosen = split.split_masks(records, 1.0, seed=0)
  assert chosen.mask_ids == ("a.png", "c.png", "e.png", "f.png")
  assert chosen.box_ids == ("b.png", "d.png")
  hidden = split.split_masks(records, 0.25, seed=0)
  assert len(hidden.mask_ids) == 1 and {"b.png", "d.png"} < set(hidden.box_ids)


def edit(key, value):
  def change(content):
    content[key] = value

  return change


def edit_first(key, name, value):
  def change(content):
    content[key][0][name] = value

  return change


def drop_first(key, name):
  def change(content):
    del content[key][0][name]

  return change


def double_first(content):
  content["images"].append(dict(content["images"][0], id=99))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      edit_first("categories", "name", "persn"),
      'a.png: annotation 1: unknown category "persn".*car, person .nearest: "person"',
    ),
    (edit_first("categories", "name", "background"), 'unknown category "background"'),
    (edit_first("annotations", "category_id", 5), "annotation 1: category_id 5 .*7 person, 3 car"),
    (edit_first("annotations", "image_id", 5), "annotation 1 is of image_id 5"),
    (edit_first("annotations", "bbox", [1, 2, 3]), r'a.png: annotation 1: "bbox" is \[1, 2, 3\]'),
    (edit_first("annotations", "bbox", [1, 2, 3, "4"]), '"bbox" is'),
    (drop_first("annotations", "bbox"), '"bbox" is None'),
    (drop_first("images", "height"), 'image a.png has no "height"'),
    (edit_first("images", "width", 0), "image a.png is 0 x 20 pixels"),
    (edit_first("images", "width", True), "image a.png is True x 20 pixels"),
    (double_first, "image a.png .* is listed twice"),
    (edit_first("annotations", "iscrowd", "0"), "a.png: annotation 1: \"iscrowd\" is '0'"),
    (edit_first("annotations", "image_id", [1]), '"image_id" of entry 0 of "annotations" is .1.'),
    (edit_first("categories", "id", {}), '"id" of entry 0 of "categories" is {}'),
    (edit_first("images", "file_name", 5), '"file_name" of image 1 is 5'),
    (edit("annotations", [5]), 'entry 0 of "annotations" is 5'),
    (edit("images", []), '"images" is empty'),
    (edit("categories", {}), 'no list "categories"'),
  ],
)
@pytest.mark.parametrize("source", [coco, labels])
def test_a_wrong_annotation_file_is_named(tmp_path, source, change, words):
  folder = write_set(tmp_path / "train", [annotation(1, category=7)])
  content = read_json(folder)
  change(content)
  write_json(folder, content)
  with pytest.raises(InputError, match=re.escape(str(folder)) + ".*" + words):
    source.load(str(tmp_path), "train", CLASSES)


def test_a_missing_or_broken_annotation_file_is_named(tmp_path):
  with pytest.raises(InputError, match=r"val.instances.json: no such file"):
    coco.load(str(tmp_path), "val", CLASSES)
  folder = write_set(tmp_path / "val", [])
  (folder / "instances.json").write_text('{"images": [')
  with pytest.raises(InputError, match=r"instances.json: cannot be read as JSON .*line 1"):
    coco.load(str(tmp_path), "val", CLASSES)


def test_labels_come_from_index_images_where_there_is_one(tmp_path):
  folder = write_set(tmp_path / "train", [annotation(1)])
  (folder / "labels").mkdir()
  expected = np.arange(600, dtype=np.uint8).reshape(20, 30) % 3
  palette = Image.fromarray(expected).convert("P")
  palette.putpalette(list(range(256)) * 3)
  palette.save(folder / "labels" / "a.png")
  first, second = labels.load(str(tmp_path), "train", CLASSES)
  np.testing.assert_array_equal(first.read_labels(), np.asarray(palette))
  assert first.read_labels().dtype == np.uint8
  assert second.read_labels is None
  assert first.box_classes.tolist() == [1]


def test_two_images_do_not_share_a_label_map(tmp_path):
  folder = write_set(tmp_path / "train", [], images=["a.jpg", "a.png"])
  assert [record.image_id for record in labels.load(str(tmp_path), "train", CLASSES)]  # boxes only
  (folder / "labels").mkdir()
  Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / "labels" / "a.png")
  with pytest.raises(InputError, match=r"train: a.jpg and a.png would share the label map a.png"):
    labels.load(str(tmp_path), "train", CLASSES)


def write_labels(tmp_path, image):
  folder = write_set(tmp_path / "train", [annotation(1)])
  (folder / "labels").mkdir(exist_ok=True)
  image.save(folder / "labels" / "a.png")
  return str(tmp_path)


def test_values_of_masks_are_what_the_config_says(tmp_path):
  values = np.zeros((20, 30), np.uint8)
  values[3:8, 2:12], values[0] = 255, 128
  root = write_labels(tmp_path, Image.fromarray(values))
  pairs = ((0, "background"), (255, "person"), (128, "void"))
  record = labels.load(root, "train", CLASSES, label_values=pairs)[0]
  expected = np.select([values == 255, values == 128], [2, 255])
  np.testing.assert_array_equal(record.read_labels(), expected)
  assert pickle.loads(pickle.dumps(record)).read_labels().dtype == np.uint8
  record = labels.load(root, "train", CLASSES, label_values=pairs[:2])[0]
  with pytest.raises(
    InputError, match=r"a.png: value 128 of pixel \(x 0, y 0\), .*30 pixels.*0, 255"
  ):
    record.read_labels()


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colors_of_masks_are_what_the_config_says(tmp_path, mode):
  wanted = np.zeros((20, 30), np.uint8)
  wanted[3:8, 2:12], wanted[10:12], wanted[19, 29] = 1, 2, 255
  table = {0: (0, 0, 0), 1: (128, 0, 64), 2: (0, 128, 255), 255: (224, 224, 192)}
  colors = np.zeros((20, 30, 3), np.uint8)
  for label, rgb in table.items():
    colors[wanted == label] = rgb
  image = Image.fromarray(colors)
  root = write_labels(tmp_path, image if mode == "RGB" else image.quantize(4))
  names = {**dict(enumerate(CLASSES)), 255: "void"}
  pairs = [(list(rgb), names[label]) for label, rgb in table.items()]
  record = labels.load(root, "train", CLASSES, label_colors=pairs)[0]
  np.testing.assert_array_equal(record.read_labels(), wanted)
  record = labels.load(root, "train", CLASSES, label_colors=pairs[:-1])[0]
  match = r"a.png: color \(224, 224, 192\) of pixel \(x 29, y 19\), and of 1 pixels"
  with pytest.raises(InputError, match=match):
    record.read_labels()
  if mode == "RGB":
    with pytest.raises(InputError, match=r"a.png: .* mode RGB; .*data.label_colors"):
      labels.load(root, "train", CLASSES)[0].read_labels()


def test_transparent_masks_are_refused(tmp_path):
  root = write_labels(tmp_path, Image.fromarray(np.zeros((20, 30, 4), np.uint8)))
  record = labels.load(root, "train", CLASSES, label_colors=(((0, 0, 0), "background"),))[0]
  with pytest.raises(InputError, match="a.png: .* mode RGBA; colors are expected"):
    record.read_labels()


def test_label_maps_of_the_wrong_kind_are_named(tmp_path):
  path = tmp_path / "labels.png"
  Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path)
  with pytest.raises(InputError, match=r"labels.png: .* mode RGB"):
    images.read_index_image(str(path))
  Image.fromarray(np.zeros((4, 5), np.uint16)).save(path)
  with pytest.raises(InputError, match=r"labels.png: .* mode I;16"):
    images.read_index_image(str(path))
  with pytest.raises(InputError, match=r"labels.png: the file is 5 x 4 .* says 6 x 4"):
    images.read_index_image(str(path), (4, 6))
  with pytest.raises(InputError, match="absent.png: no such label map"):
    images.read_index_image(str(tmp_path / "absent.png"))


def test_sixteen_bit_photographs_are_refused(tmp_path):
  path = tmp_path / "deep.png"
  Image.fromarray(np.full((4, 5), 3000, np.uint16)).save(path)
  with pytest.raises(InputError, match=r"deep.png: .*more than 8 bits"):
    images.read_image(str(path))


def test_reduced_reading_keeps_the_picture_and_not_below_the_size_asked_for(tmp_path):
  path = tmp_path / "photo.jpg"
  ramp = np.linspace(0, 255, 400, dtype=np.uint8)
  Image.fromarray(np.broadcast_to(ramp[None, :, None], (200, 400, 3)).copy()).save(path)
  reduced = images.read_reduced(str(path), (200, 400), (40, 90))
  assert reduced.shape == (50, 100, 3)
  np.testing.assert_allclose(reduced[25, :, 0], ramp.reshape(100, 4).mean(1), atol=3)
  with pytest.raises(InputError, match="the file is 400 x 200 .* says 400 x 201"):
    images.read_reduced(str(path), (201, 400), (40, 90))


def test_records_can_be_pickled(tmp_path):
  record = load_coco(tmp_path, [annotation(1, segmentation=rectangle(2, 3, 10, 5))])[0]
  copy = pickle.loads(pickle.dumps(record))
  np.testing.assert_array_equal(copy.read_labels(), record.read_labels())


def test_box_slots_are_counted_and_never_too_few(tmp_path):
  records = load_coco(tmp_path, [annotation(1), annotation(2), annotation(3), annotation(4, 2)])
  assert max_boxes(records) == 3
  assert max_boxes(records, 5) == 5
  assert max_boxes(records[1:], 0) == 1
  with pytest.raises(InputError, match=r"instances.json: image a.png has 3 boxes.*max_boxes=2"):
    max_boxes(records, 2)


def test_the_configured_source_is_used(tmp_path):
  write_set(tmp_path / "train", [annotation(1)])
  config = ConfigDict({"source": "coco", "root": str(tmp_path), "class_names": CLASSES})
  config.label_values = config.label_colors = ()
  assert len(data.load_records(config, "train")) == 2
  config.source = "labels"
  assert len(data.load_records(config, "train")) == 2
  config.source = "cooc"
  with pytest.raises(InputError, match="data.source is 'cooc'.*shapes, coco, labels, tfds, city"):
    data.load_records(config, "train")


def test_splits_can_be_cut_by_position(tmp_path):
  write_set(tmp_path / "train", [], images=[f"{name}.png" for name in "abcde"])
  config = ConfigDict({"source": "labels", "root": str(tmp_path), "class_names": CLASSES})
  config.label_values = config.label_colors = ()
  names = {
    split: "".join(record.image_id[0] for record in data.load_records(config, split))
    for split in ("train", "train[:2]", "train[2:]", "train[1:3]")
  }
  assert list(names.values()) == ["abcde", "ab", "cde", "bc"]
  with pytest.raises(InputError, match=r"'train\[5:\]' holds no image"):
    data.load_records(config, "train[5:]")


def test_made_scenes_are_cut_from_the_split_that_they_are_part_of():
  config = ConfigDict(
    {
      "source": "shapes",
      "class_names": ("background", "star"),
      "train_split": "train[:4]",
      "eval_split": "train[4:]",
      "shapes": {"num_train": 6, "num_eval": 3, "seed": 0},
    }
  )
  first, rest = (data.load_records(config, config[f"{kind}_split"]) for kind in ("train", "eval"))
  assert (len(first), len(rest)) == (4, 2)
  assert len(data.load_records(config, "test")) == 3
  assert not {r.image_id for r in first} & {r.image_id for r in rest}


@pytest.mark.skipif(not (SHARED / "data").exists(), reason="the real data sets are not here")
def test_real_masks_agree_with_pycocotools_and_with_index_images():
  root = str(SHARED / "data" / "nuclei")
  record = coco.load(root, "test", ("background", "nucleus"))[0]
  codes = [region.segmentation for region in record.read_labels.args[3]]
  union = coco_mask.decode(coco_mask.merge(codes))
  np.testing.assert_array_equal(record.read_labels(), union)

  # CamVid's boxes are the bounds of components of its label maps: each holds its class.
  names = ("background", "car", "pedestrian", "bicyclist")
  root = str(SHARED / "data" / "camvid")
  for record in labels.load(root, "val", names)[:5]:
    pixels, size = record.read_labels(), np.array([*record.size, *record.size])
    for box, value in zip(record.boxes, record.box_classes, strict=True):
      ymin, xmin, ymax, xmax = np.rint(box * size).astype(int)
      inside = pixels[ymin:ymax, xmin:xmax] == value
      assert inside.any(0).all() or inside.any(1).all()
      assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
