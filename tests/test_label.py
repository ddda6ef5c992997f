"""Boxes -> masks: inside their boxes, of their class, and what was given stays as it was."""

import copy
import csv
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_cases import annotation, make_image, read_json, rectangle, write_json, write_set
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from test_run import ROOT, small

import boxseg_jax
from boxseg_jax import config as configuration
from boxseg_jax.apps import label
from boxseg_jax.data import box_priors, coco, load_records, mask_files
from boxseg_jax.errors import InputError, PartlyDoneError
from boxseg_jax.evaluation import labeller
from boxseg_jax.losses import instances
from boxseg_jax.training import loop

NAMES = ("background", "car", "person")
SIZE = (60, 90)
CAR, PERSON = 3, 7  # ids of the categories, see `write_set`


def run_of(folder, teacher="boxes"):
  """A run of two classes whose network says something of either."""
  write_set(folder / "set" / "train", boxes_and_masks(), size=SIZE)
  write_set(folder / "set" / "test", boxes_and_masks()[:1], size=SIZE)
  config = small(
    data__source="coco",
    data__root=str(folder / "set"),
    data__class_names=NAMES,
    data__mask_fraction=1.0 if teacher == "boxes" else 0.0,
    data__batch_size=8,
    train__num_steps=1,
    train__checkpoint_every=1,
    eval__box_images=0,
    eval__pictures=0,
    loss__teacher=teacher,
  )
  loop.train(config, folder / "run", report=lambda line: None)
  return folder / "run"


def boxes_and_masks():
  """Image 1 has a mask for each box, image 2 has boxes only."""
  given = [annotation(1, 1, CAR, (5, 5, 30, 20), segmentation=rectangle(5, 5, 30, 20))]
  return given + [annotation(2, 2, PERSON, (40, 20, 20, 30)), annotation(3, 2, CAR, (2, 2, 30, 9))]


@pytest.fixture(scope="module")
def with_teacher(tmp_path_factory):
  return run_of(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  return run_of(tmp_path_factory.mktemp("alone"), teacher="self")


def labelled(workdir, root, to, form="coco_rle", **changes):
  config = configuration.get_config()
  config.data.source, config.data.root, config.data.class_names = "coco", str(root), NAMES
  config.label.format = form
  config.update_from_flattened_dict(changes)
  return label.run(config, workdir, to=str(to), report=lambda line: None)


def pixels(box):
  """Bool [height, width] of the pixels whose centres a box (x, y, width, height) holds."""
  x, y, width, height = box
  rows, columns = np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5
  return ((rows >= y) & (rows < y + height))[:, None] & ((columns >= x) & (columns < x + width))


class TestRules:
  """`losses.instances` on crops that are made by hand."""

  priors = box_priors.box_priors((), 3)

  def judged(self, logits, boxes, classes, image=None):
    side = instances.SIDE
    boxes = np.array(boxes, np.float32)
    crop = instances.Crop(
      logits=jnp.asarray(logits, jnp.float32),
      own_logits=jnp.asarray(logits, jnp.float32),
      features=jnp.zeros((side // 2, side // 2, 1)),
      image=jnp.full((side, side, 3), 0.5) if image is None else jnp.asarray(image, jnp.float32),
      y=jnp.arange(side) + 0.5,
      x=jnp.arange(side) + 0.5,
      shown=jnp.ones((side, side), bool),
      boxes=jnp.pad(boxes, ((0, 3 - len(boxes)), (0, 0))),
      box_classes=jnp.pad(jnp.array(classes), (0, 3 - len(classes))),
    )
    batch = jax.tree.map(lambda x: x[None], crop)
    probability, certainty = jax.jit(
      lambda crops: instances.masks(crops, self.priors.mean_masks, self.priors.fill_bands)
    )(batch)
    return np.asarray(probability[0]), float(certainty[0])

  def test_nothing_seen_gives_the_usual_shape(self):
    probability, certainty = self.judged(np.zeros((48, 48, 3)), [(8, 8, 40, 40)], [1])
    assert probability[24, 24] > 0.9 > 0.5 > probability[8, 8]
    outside = np.ones((48, 48), bool)
    outside[8:40, 8:40] = False
    assert (probability[outside] == 0).all()
    np.testing.assert_allclose(probability, probability[::-1], atol=1e-5)
    np.testing.assert_allclose(probability, probability.T, atol=1e-5)
    assert 0 < certainty < 1

  def test_what_is_seen_is_followed_and_raises_the_certainty(self):
    logits = np.zeros((48, 48, 3))
    logits[..., 1:] = -8
    logits[8:40, 8:32, 1] = 8
    probability, certainty = self.judged(logits, [(8, 8, 40, 40)], [1])
    mask = probability > instances.THRESHOLD
    assert mask[10:38, 10:30].mean() > 0.95 and mask[10:38, 34:].mean() < 0.1
    assert certainty > self.judged(np.zeros((48, 48, 3)), [(8, 8, 40, 40)], [1])[1]

  def test_boxes_of_one_class_share_what_they_both_hold(self):
    boxes = [(8, 4, 40, 28), (8, 20, 40, 44)]
    logits = np.zeros((48, 48, 3))
    logits[..., 1] = 4
    (first, _), (second, _) = (self.judged(logits, b, [1, 1]) for b in (boxes, boxes[::-1]))
    assert (first + second <= 1.001).all()
    assert first[24, 21] > second[24, 21] and first[24, 26] < second[24, 26]

  def test_of_two_classes_the_one_that_is_seen_gets_it(self):
    boxes = [(8, 8, 40, 40), (8, 8, 40, 40)]
    logits = np.zeros((48, 48, 3))
    logits[..., 2] = 6
    (car, _), (person, _) = self.judged(logits, boxes, [1, 2]), self.judged(logits, boxes, [2, 1])
    assert person[24, 24] > 0.9 and car[24, 24] < 0.1

  def test_another_object_speaks_for_the_one_whose_box_is_there(self):
    logits = np.zeros((48, 48, 3))
    logits[..., 2] = 6
    other = np.zeros((48, 48, 3))
    other[..., 1] = 6
    as_seen, _ = self.judged(other, [(8, 8, 40, 40)], [1])
    taken, _ = self.judged(logits, [(8, 8, 40, 40)], [1])
    np.testing.assert_allclose(as_seen, taken, atol=1e-4)

  def test_colour_speaks(self):
    image = np.full((48, 48, 3), 0.1)
    image[8:40, 8:40] = 0.1
    image[14:34, 8:40] = 0.9
    plain, _ = self.judged(np.zeros((48, 48, 3)), [(8, 8, 40, 40)], [1])
    coloured, _ = self.judged(np.zeros((48, 48, 3)), [(8, 8, 40, 40)], [1], image)
    assert coloured[24, 10] > plain[24, 10] and coloured[11, 24] < plain[11, 24]


class TestLabeller:
  """`Model.predict(image, boxes=...)`."""

  image = make_image(SIZE, 0)

  def check(self, model, boxes, classes):
    corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    result = model.predict(self.image, boxes=corners, box_classes=classes)
    assert result.masks.shape == (len(boxes), *SIZE) and result.masks.dtype == bool
    assert result.mask_certainty.dtype == np.float32
    for box, mask in zip(boxes, result.masks, strict=True):
      assert mask.any() and not (mask & ~pixels(box)).any()
    assert ((result.mask_certainty >= 0) & (result.mask_certainty <= 1)).all()
    return result

  @pytest.mark.parametrize("run", ["with_teacher", "alone"])
  def test_every_mask_lies_inside_its_box(self, run, request):
    model = boxseg_jax.load(request.getfixturevalue(run))
    boxes = [(0, 0, 90, 60), (10, 10, 1, 1), (89, 59, 1, 1), (20, 5, 60, 2), (3, 1, 1, 50)]
    boxes += [(12.3, 7.8, 25.4, 19.9), (20, 10, 25, 20), (20, 10, 25, 20)]
    self.check(model, boxes, ["car", "person", 1, 2, 2, "car", "car", "person"])

  def test_overlapping_boxes_of_one_class_share(self, with_teacher):
    model = boxseg_jax.load(with_teacher)
    result = self.check(model, [(10, 10, 40, 30), (35, 10, 40, 30)], ["car", "car"])
    common = pixels((35, 10, 15, 30))
    both = (result.masks.all(axis=0) & common).sum()
    assert both <= 0.1 * common.sum()

  def test_many_boxes_and_none(self, with_teacher):
    model = boxseg_jax.load(with_teacher)
    boxes = [(x, y, 8, 8) for x in range(0, 80, 9) for y in range(0, 50, 9)]
    self.check(model, boxes, ["car"] * len(boxes))
    assert self.check(model, [], []).masks.shape == (0, *SIZE)
    assert model.predict(self.image).masks is None

  def test_a_sub_pixel_box_has_one_pixel_and_one_outside_none(self, with_teacher):
    model = boxseg_jax.load(with_teacher)
    boxes = [(10.6, 20.6, 10.8, 20.7), (200, 10, 220, 20), (5, 5, 5, 9)]
    result = model.predict(self.image, boxes=boxes, box_classes=[1, 1, 1])
    assert result.masks[0].sum() == 1 and result.masks[0][20, 10]
    assert not result.masks[1:].any() and (result.mask_certainty[1:] == 0).all()

  def test_one_image_and_several(self, with_teacher):
    model = boxseg_jax.load(with_teacher)
    corners = [(10, 10, 50, 40)]
    one = model.predict(self.image, boxes=corners, box_classes=["car"])
    two = model.predict(
      [self.image, make_image((32, 40), 1)],
      boxes=[corners, np.zeros((0, 4))],
      box_classes=[["car"], []],
    )
    np.testing.assert_array_equal(one.masks, two[0].masks)
    assert two[1].masks.shape == (0, 32, 40)

  def test_refusals(self, with_teacher):
    model = boxseg_jax.load(with_teacher)

    def predict(**given):
      model.predict(self.image, **{"boxes": [(1, 1, 9, 9)], "box_classes": ["car"]} | given)

    for wrong, message in (
      ({"box_classes": ["cat"]}, "box class 'cat' is none of car, person"),
      ({"box_classes": [3]}, "box class 3 is none of"),
      ({"box_classes": None}, "box_classes are wanted"),
      ({"box_classes": ["car", "car"]}, "1 boxes, but 2 classes"),
      ({"boxes": [(1, 2, 3)]}, r"not \[n, 4\] finite numbers"),
      ({"boxes": [(1, 2, 3, np.nan)]}, "finite numbers"),
    ):
      with pytest.raises(InputError, match=message):
        predict(**wrong)

  def test_wanted_boxes_are_judged_among_all(self, with_teacher):
    made = boxseg_jax.load(with_teacher).labeller
    boxes, classes = np.array([[5, 5, 40, 50], [5, 30, 40, 80.0]]), np.array([1, 1])
    both, second = (
      made.masks(self.image, boxes, classes),
      made.masks(self.image, boxes, classes, [1]),
    )
    np.testing.assert_array_equal(both[1].pixels, second[0].pixels)

  def test_crops_show_the_box_at_three_quarters(self):
    image = np.zeros((*SIZE, 3), np.uint8)
    image[10:30, 40:80] = 255
    crop = labeller._crop(image, np.array([[10, 40, 30, 80.0]]), np.array([1]), 0)
    bright = crop["image"][..., 0] > 127
    np.testing.assert_array_equal(bright.sum(1).max(), 36)
    np.testing.assert_array_equal(bright.sum(0).max(), 18)
    inside = (crop["y"] >= 10) & (crop["y"] < 30)
    np.testing.assert_array_equal(bright.any(1), inside)
    beyond = (crop["x"] < 0) | (crop["x"] >= SIZE[1])
    assert not crop["shown"][:, beyond].any()


class TestFiles:
  def test_codes_are_those_of_pycocotools(self):
    rng = np.random.default_rng(0)
    cases = [(0, 0, np.ones(SIZE, bool)), (3, 4, rng.random((20, 30)) > 0.5)]
    cases += [(0, 89, np.ones((60, 1), bool)), (59, 0, np.ones((1, 1), bool))]
    cases += [(0, 3, np.ones((60, 5), bool)), (2, 2, np.zeros((3, 3), bool))]
    for top, left, part in cases:
      whole = labeller.BoxMask(top, left, part, 0.5).whole(SIZE)
      code = mask_files.encode(SIZE, top, left, part)
      assert (
        code["counts"] == coco_mask.encode(np.asfortranarray(whole, np.uint8))["counts"].decode()
      )

  def test_polygons_give_the_mask_back(self):
    rows, columns = np.indices(SIZE) + 0.5
    disc = (rows - 30) ** 2 / 20**2 + (columns - 40) ** 2 / 30**2 < 1
    two = disc & ~((columns > 38) & (columns < 44))
    for mask in (disc, two, pixels((3, 4, 5, 6)), pixels((7, 7, 1, 1))):
      code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
      outlines = mask_files.polygons(code)
      again = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outlines, *SIZE))) > 0
      assert (again & mask).sum() / (again | mask).sum() > 0.97
      assert not (again & ~pixels(coco_mask.toBbox(code))).any()
    assert len(mask_files.polygons(coco_mask.encode(np.asfortranarray(two, np.uint8)))) == 2

  def test_holes_are_filled_in_polygons(self):
    ring = pixels((10, 10, 30, 30)) & ~pixels((20, 20, 5, 5))
    (outline,) = mask_files.polygons(coco_mask.encode(np.asfortranarray(ring, np.uint8)))
    again = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([outline], *SIZE)))
    assert again[22, 22] == 1 and again.sum() == pytest.approx(900, rel=0.02)


MIXED = [
  annotation(
    11, 1, CAR, (5, 5, 30, 20), segmentation=rectangle(5, 5, 30, 20), area=600.5, note="é"
  ),
  annotation(12, 1, PERSON, (20, 8, 40, 30), extra={"by": "me"}),
  annotation(13, 1, CAR, (0, 0, 90, 60), iscrowd=1),
  annotation(14, 1, CAR, (30, 10, 1, 1), segmentation=[]),
  annotation(
    15,
    1,
    CAR,
    (2, 50, 4, 4),
    segmentation=coco_mask.encode(np.asfortranarray(pixels((2, 50, 4, 4)))),
  ),
]
MIXED[-1]["segmentation"]["counts"] = MIXED[-1]["segmentation"]["counts"].decode()


class TestCommand:
  def root(self, tmp_path, annotations=MIXED):
    write_set(tmp_path / "set" / "train", copy.deepcopy(annotations), size=SIZE)
    return tmp_path / "set"

  @pytest.mark.parametrize("form", ["coco_rle", "coco_polygon"])
  @pytest.mark.parametrize("run", ["with_teacher", "alone"])
  def test_the_same_file_with_masks(self, run, form, request, tmp_path, capsys):
    root = self.root(tmp_path)
    labelled(request.getfixturevalue(run), root, tmp_path / "out", form)
    before, after = read_json(root / "train"), read_json(tmp_path / "out")
    new = {12, 14}
    for old, one in zip(before["annotations"], after["annotations"], strict=True):
      if one["id"] in new:
        old = old | {"segmentation": one["segmentation"], "score": one["score"]}
      assert old == one and list(old) == list(one)
    assert before["images"] == after["images"] and before["categories"] == after["categories"]
    read = COCO(str(tmp_path / "out" / "instances.json"))
    for number in new:
      mask = read.annToMask(read.anns[number]).astype(bool)
      assert mask.any() and not (mask & ~pixels(read.anns[number]["bbox"])).any()
      assert 0 <= read.anns[number]["score"] <= 1
    # And it can be trained on.
    write_json(root / "train", after)
    (first, _) = coco.load(str(root), "train", NAMES)
    assert first.read_labels is not None and first.read_labels()[10, 30] in (1, 0, 2)

  def test_what_is_to_be_reviewed_first(self, with_teacher, tmp_path):
    boxes = [annotation(n, 2, CAR, (9 * n, 5, 8, 20 + n)) for n in range(8)]
    text = labelled(with_teacher, self.root(tmp_path, boxes), tmp_path / "out")
    assert "8 masks" in text and "boxes/s" in text
    rows = list(csv.DictReader((tmp_path / "out" / "review.csv").open()))
    certainty = [float(row["certainty"]) for row in rows]
    assert certainty == sorted(certainty) and {int(row["annotation"]) for row in rows} == set(
      range(8)
    )
    written = {a["id"]: a["score"] for a in read_json(tmp_path / "out")["annotations"]}
    assert all(written[int(row["annotation"])] == float(row["certainty"]) for row in rows)
    assert rows[0]["image"] == "b.png" and rows[0]["class"] == "car"
    assert "| " + rows[0]["certainty"] in (tmp_path / "out" / "review.md").read_text()
    with Image.open(tmp_path / "out" / "review.png") as sheet:
      assert sheet.width > 4 * 320 and sheet.height > 2 * 160

  def test_index_images_are_of_the_class(self, with_teacher, tmp_path):
    labelled(with_teacher, self.root(tmp_path), tmp_path / "out", "index_png")
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png"))
    given, person = pixels((5, 5, 30, 20)), pixels((20, 8, 40, 30))
    assert (labels[given & ~person] == 1).all()
    assert set(np.unique(labels[person & ~given])) <= {2, 255}  # the crowd is void
    assert (labels == 2).any() and labels[10, 30] in (1, 2)
    empty = np.asarray(Image.open(tmp_path / "out" / "labels" / "b.png"))
    assert not empty.any()

  def test_given_label_maps_stay_byte_for_byte(self, with_teacher, tmp_path):
    root = self.root(tmp_path, [annotation(1, 1), annotation(2, 2, CAR, (5, 5, 30, 20))])
    (root / "train" / "labels").mkdir()
    Image.fromarray(pixels((2, 3, 10, 5)).astype(np.uint8)).save(
      root / "train" / "labels" / "a.png"
    )
    changes = {"data.source": "labels"}
    labelled(with_teacher, root, tmp_path / "out", "index_png", **changes)
    given = (root / "train" / "labels" / "a.png").read_bytes()
    assert (tmp_path / "out" / "labels" / "a.png").read_bytes() == given
    made = np.asarray(Image.open(tmp_path / "out" / "labels" / "b.png"))
    assert (made == 1).any() and not made[~pixels((5, 5, 30, 20))].any()
    labelled(with_teacher, root, tmp_path / "out", **changes)
    first, second = read_json(tmp_path / "out")["annotations"]
    assert "segmentation" not in first and "segmentation" in second

  def test_goes_on_where_it_stopped(self, with_teacher, tmp_path, monkeypatch):
    boxes = [annotation(1, 1, CAR, (5, 5, 30, 20)), annotation(2, 2, CAR, (5, 5, 30, 20))]
    root = self.root(tmp_path, boxes)
    labelled(with_teacher, root, tmp_path / "out")
    expected = (tmp_path / "out" / "instances.json").read_bytes()
    journal = tmp_path / "out" / "masks.jsonl"
    first, second = journal.read_text().splitlines()
    journal.write_text(first + "\n" + second[:20])  # killed while it wrote
    seen = []
    whole = label.label_image
    monkeypatch.setattr(
      label, "label_image", lambda m, record, i: seen.append(record.image_id) or whole(m, record, i)
    )
    labelled(with_teacher, root, tmp_path / "out")
    assert seen == ["b.png"] and (tmp_path / "out" / "instances.json").read_bytes() == expected
    boxes[0]["bbox"][2] = 20  # a box that was moved is labelled again
    write_json(root / "train", read_json(root / "train") | {"annotations": boxes})
    labelled(with_teacher, root, tmp_path / "out")
    assert seen == ["b.png", "a.png"]

  def test_what_cannot_be_done_is_listed(self, with_teacher, tmp_path):
    boxes = [annotation(1, 1, CAR, (5, 5, 30, 20)), annotation(2, 2, CAR, (200, 5, 30, 20))]
    root = self.root(tmp_path, boxes)
    (root / "train" / "images" / "a.png").write_bytes(b"torn")
    with pytest.raises(PartlyDoneError, match=r"(?s)a\.png.*b\.png: box 2 covers nothing"):
      labelled(with_teacher, root, tmp_path / "out")
    assert not any("segmentation" in a for a in read_json(tmp_path / "out")["annotations"])

  def test_refusals(self, with_teacher, tmp_path):
    root = self.root(tmp_path)
    with pytest.raises(InputError, match="label.format is 'png', but must be one of"):
      labelled(with_teacher, root, tmp_path, "png")
    write_set(tmp_path / "pair" / "train", [], images=["a.jpg", "a.png"], size=SIZE)
    with pytest.raises(InputError, match="a.jpg and a.png would share the label map a.png"):
      labelled(with_teacher, tmp_path / "pair", tmp_path / "out", "index_png")
    with pytest.raises(InputError, match=r"knows \('background', 'car', 'person'\)"):
      labelled(with_teacher, root, tmp_path, **{"data.class_names": ("background", "cat")})

  def test_from_the_command_line(self, with_teacher, tmp_path):
    call = [sys.executable, "-m", "boxseg_jax.main", "--mode=label", f"--workdir={with_teacher}"]
    call += [f"--to={tmp_path / 'out'}", "--config.data.source=coco"]
    call += [f"--config.data.root={self.root(tmp_path)}", f"--config.data.class_names={NAMES}"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 masks" in done.stdout
    call[-1] = "--config.data.class_names=('background', 'cat')"
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr

  @pytest.mark.parametrize("exporter", ["voc", "coco_instances", "cvat", "label_me", "datumaro"])
  def test_formats_of_datumaro(self, exporter, with_teacher, tmp_path):
    datumaro = pytest.importorskip("datumaro", reason="the extra formats is not installed")
    # Apart from each other: some formats paint all masks into one map.
    root = self.root(tmp_path, [MIXED[0], annotation(12, 1, PERSON, (40, 20, 30, 30))])
    for name in ("a.png", "b.png"):  # in noise, masks are of many parts
      Image.new("RGB", SIZE[::-1], "grey").save(root / "train" / "images" / name)
    labelled(with_teacher, root, tmp_path / "out", f"datumaro:{exporter}")
    labelled(with_teacher, root, tmp_path / "plain")
    expected = {
      NAMES[1 if a["category_id"] == CAR else 2]: coco_mask.decode(coded(a["segmentation"]))
      for a in read_json(tmp_path / "plain")["annotations"]
    }
    found = datumaro.Dataset.import_from(str(tmp_path / "out" / exporter), exporter)
    names = [one.name for one in found.categories()[datumaro.AnnotationType.label]]
    kinds = {"mask": lambda a: a.image, "polygon": lambda a: coco_mask.decode(coded([a.points]))}
    masks = {}
    for one in [a for item in found for a in item.annotations if a.type.name in kinds]:
      mask = kinds[one.type.name](one) > 0
      masks[names[one.label]] = mask | masks.get(names[one.label], False)
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
      whole = expected[name] > 0
      assert (mask & whole).sum() / (mask | whole).sum() > 0.9

  def test_sets_without_a_file_of_their_own(self, with_teacher, tmp_path):
    """The embedded set has masks everywhere: its document has boxes, and nothing is made."""
    config = configuration.get_config()
    config.data.shapes.num_train = 3
    records = load_records(config.data, "train")
    content, boxes = mask_files.document(config.data, "train", records)
    assert [len(boxes[r.image_id]) for r in records] == [len(r.boxes) for r in records]
    assert not any(mask_files.wanted(record) for record in records)
    assert json.loads(json.dumps(content))["categories"][0] == {"id": 1, "name": "star"}


def coded(segmentation):
  if isinstance(segmentation, list):
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *SIZE))
  return segmentation
