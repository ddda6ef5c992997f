"""CityScapes: the official layout -> records, and the official evaluation's own numbers."""

import json
import pickle
import re
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import labels as official_labels
from cityscapesscripts.preparation import json2instanceImg, json2labelImg
from data_cases import write_cityscapes
from ml_collections import ConfigDict
from PIL import Image

from boxseg_jax import data
from boxseg_jax.augment import prepare
from boxseg_jax.data import check, cityscapes, feed
from boxseg_jax.data.examples import ExampleReader
from boxseg_jax.data.records import max_boxes
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import evaluate
from boxseg_jax.losses import objective

ROAD, SKY, PERSON, CAR, CARAVAN, TRAIN = 7, 23, 24, 26, 29, 31
VOID = 255
SIZE = (24, 40)
TASKS = {
  "vehicles": ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"],
  "car": ["car"],
  "person": ["person"],
  "19": [label.name for label in official_labels if not label.ignoreInEval],
}


def scene():
  """A street: two cars, one in two parts, a person, a group in two places, a caravan, a border."""
  values = np.full(SIZE, ROAD)
  values[:4] = SKY
  values[6:12, 2:12] = 1000 * CAR
  values[8:10, 20:30] = 1000 * CAR + 1
  values[6:14, 24:26] = 1000 * PERSON  # stands before the second car
  values[15:18, 3:9] = CAR
  values[18:20, 9:11] = CAR  # touches by a corner
  values[15:17, 30:34] = CAR
  values[20:23, 20:28] = 1000 * CARAVAN
  values[23] = 3
  return values


def load(root, names, split="val"):
  return cityscapes.load(str(root), split, ("background", *names), workers=2)


def boxes_of(record):
  """Boxes in pixels with class and crowd, in a fixed order."""
  pixels = np.rint(record.boxes * np.array([*record.size, *record.size])).astype(int).tolist()
  rest = zip(record.box_classes.tolist(), record.box_is_crowd.tolist(), strict=True)
  return sorted((tuple(box), *more) for box, more in zip(pixels, rest, strict=True))


def reader_of(records, hide=False):
  slots = max_boxes(records)
  return ExampleReader(records, SIZE, slots, np.full(len(records), hide), cache=False)


def test_labels_are_the_official_ones():
  numbered = [label for label in official_labels if label.id >= 0]
  assert [label.name for label in numbered] == list(cityscapes.LABELS)
  assert [label.id for label in numbered] == list(range(len(numbered)))
  assert tuple(label.id for label in numbered if label.ignoreInEval) == cityscapes.VOID_IDS
  for label in numbered:
    assert label.hasInstances == (label.id >= cityscapes.FIRST_WITH_INSTANCES)


def test_boxes_are_the_bounds_of_instances_and_groups_are_crowds(tmp_path):
  write_cityscapes(tmp_path, "val", [scene(), np.full(SIZE, ROAD)])
  record, empty = load(tmp_path, ["person", "car"])
  assert boxes_of(record) == [
    ((6, 2, 12, 12), 2, False),
    ((6, 24, 14, 26), 1, False),
    ((8, 20, 10, 30), 2, False),
    ((15, 3, 20, 11), 2, True),
    ((15, 30, 17, 34), 2, True),
    ((20, 20, 23, 28), 1, True),  # the caravan: void, whatever its class says
  ]
  assert record.image_id == "ulm/ulm_000000_000019_leftImg8bit.png"
  assert record.size == SIZE and record.classes == {1, 2}
  assert record.boxes.dtype == np.float32 and record.box_classes.dtype == np.int32
  assert empty.boxes.shape == (0, 4) and empty.classes == frozenset()
  photo = tmp_path / "leftImg8bit" / "val" / record.image_id
  np.testing.assert_array_equal(record.read_image(), np.asarray(Image.open(photo)))
  np.testing.assert_array_equal(record.read_reduced((1, 1)), record.read_image())
  facts = check.look_at([record, empty], num_classes=3, workers=1)
  assert not any(seen.problems for seen in facts)


def test_masks_have_the_classes_of_the_task_and_groups_keep_theirs(tmp_path):
  write_cityscapes(tmp_path, "val", [scene()])
  expected = np.zeros(SIZE, np.uint8)
  labels = np.where(scene() < 1000, scene(), scene() // 1000)
  expected[labels == CAR] = 1
  expected[(labels == CARAVAN) | (labels == 3)] = VOID
  (record,) = load(tmp_path, ["car"])
  np.testing.assert_array_equal(record.read_labels(), expected)
  assert record.read_labels().dtype == np.uint8
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(record)).read_labels(), expected)
  # A person is background of the task "car", with no box either.
  assert {(label, crowd) for _, label, crowd in boxes_of(record)} == {(1, False), (1, True)}


def roles_of(records, hide, num_classes):
  """What each pixel of the first image teaches, and its labels, bool and int [height, width]."""
  example = reader_of(records, hide)(0)
  batch = prepare({name: np.asarray(value)[None] for name, value in example.items()})
  roles = objective.pixel_roles(batch, objective.read_boxes(batch, num_classes))
  return *(np.asarray(role[0]) for role in roles), np.asarray(batch["labels"][0])


def test_groups_are_void_in_box_images_and_learned_in_mask_images(tmp_path):
  write_cityscapes(tmp_path, "val", [scene()])
  records = load(tmp_path, ["person", "car"])
  in_mask, outside, inside, _ = roles_of(records, hide=True, num_classes=3)
  expected = np.zeros(SIZE, bool)
  expected[6:12, 2:12] = expected[8:10, 20:30] = expected[6:14, 24:26] = True
  np.testing.assert_array_equal(inside, expected)
  void = np.zeros(SIZE, bool)
  void[15:20, 3:11] = void[15:17, 30:34] = void[20:23, 20:28] = True
  np.testing.assert_array_equal(outside, ~expected & ~void)
  assert not in_mask.any()

  in_mask, outside, inside, labels = roles_of(records, hide=False, num_classes=3)
  assert in_mask[scene() == CAR].all() and (labels[scene() == CAR] == 2).all()
  assert not outside.any() and not inside.any()


def test_without_a_background_what_boxes_leave_over_is_void(tmp_path):
  write_cityscapes(tmp_path, "val", [scene()])
  records = load(tmp_path, TASKS["19"])
  assert boxes_of(records[0])[0] == ((0, 0, *SIZE), 1, True)
  assert 0 not in records[0].read_labels()
  assert records[0].classes == {1 + TASKS["19"].index(n) for n in ("road", "sky", "person", "car")}
  _, outside, inside, _ = roles_of(records, hide=True, num_classes=20)
  assert not outside.any() and inside[6:12, 2:12].all()


def test_bounds_and_parts_hold_what_they_should():
  found, boxes = cityscapes.find_boxes(np.array([[1, 1], [1, 2]]))
  assert found.tolist() == [1, 2] and boxes.tolist() == [[0, 0, 2, 2], [1, 1, 2, 2]]
  rng = np.random.default_rng(0)
  values = np.kron(rng.integers(0, 9, (7, 11)), np.ones((3, 2), int))
  found, boxes = cityscapes.find_boxes(values)
  assert found.tolist() == np.unique(values).tolist()
  for value, (ymin, xmin, ymax, xmax) in zip(found, boxes, strict=True):
    rows, columns = np.nonzero(values == value)
    assert (ymin, xmin, ymax, xmax) == (
      rows.min(),
      columns.min(),
      rows.max() + 1,
      columns.max() + 1,
    )
  inside = rng.random((60, 80)) < 0.02
  covered = np.zeros_like(inside)
  for ymin, xmin, ymax, xmax in cityscapes.split_region(inside):
    part = inside[ymin:ymax, xmin:xmax]
    assert part.any(0).all() and part.any(1).all()  # tight, and cannot be cut
    covered[ymin:ymax, xmin:xmax] = True
  assert (covered >= inside).all()
  assert cityscapes.split_region(np.zeros((4, 5), bool)).shape == (0, 4)


def instances_of_every_label_but_train(rng):
  labels = rng.choice([i for i in range(len(cityscapes.LABELS)) if i != TRAIN], (5, *SIZE))
  maps = np.where(labels >= PERSON, 1000 * labels + rng.integers(0, 2, labels.shape), labels)
  maps[:, :3] = CAR
  return maps


@pytest.mark.parametrize("task", TASKS)
def test_iou_is_that_of_the_official_evaluation(tmp_path, task):
  names = ("background", *TASKS[task])
  rng = np.random.default_rng(0)
  maps = instances_of_every_label_but_train(rng)
  write_cityscapes(tmp_path, "val", maps[:3], city="ulm")
  write_cityscapes(tmp_path, "val", maps[3:], city="bonn")
  records = load(tmp_path, TASKS[task])
  # Half of the pixels right, the others anything but a train: a class that is nowhere.
  predicted = rng.choice([i for i, name in enumerate(names) if name != "train"], (5, *SIZE))
  truth = np.stack([record.read_labels() for record in records])
  predicted = np.where((truth != VOID) & (rng.random(truth.shape) < 0.5), truth, predicted)

  def predict(state, batch):
    return jax.nn.one_hot(state[batch["image_id"]], len(names)), None

  sums = partial(evaluate.segmentation_sums, predict_fn=predict, num_classes=len(names))
  batches = feed.evaluation_batches(
    reader_of(records), batch_size=2, process_index=0, process_count=1
  )
  ours = evaluate.results(evaluate.evaluate(jax.jit(sums), predicted, batches), names)

  theirs = official_scores(tmp_path, records, cityscapes.official_ids(names)[predicted])
  for name in names[1:]:
    np.testing.assert_allclose(
      ours[f"iou/{name}"], theirs["classScores"][name], rtol=0, atol=1e-6, err_msg=name
    )
  assert 0.1 < ours["foreground_iou"] < 0.9
  if task == "19":
    assert np.isnan(ours["iou/train"])
    assert ours["foreground_iou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)


def official_scores(root, records, predicted):
  """What cityscapesscripts makes of predictions in official ids, uint8 [n, height, width]."""
  (root / "results").mkdir()
  for record, values in zip(records, predicted, strict=True):
    stem = record.image_id.split("/")[1].removesuffix("_leftImg8bit.png")
    Image.fromarray(values).save(root / "results" / f"{stem}.png")
  # Its own defaults, but for its printing, and for scores of instances, which are not asked
  # for here and which want a numpy older than 2.4.
  changed = {"quiet": True, "JSONOutput": False, "evalInstLevelScore": False}
  changed |= {"predictionPath": str(root / "results"), "predictionWalk": None}
  args = SimpleNamespace(**{**vars(official.args), **changed})
  truths = sorted(str(p) for p in (root / "gtFine" / "val").glob("*/*_gtFine_labelIds.png"))
  guesses = [official.getPrediction(args, truth) for truth in truths]
  return official.evaluateImgLists(guesses, truths, args)


@pytest.mark.parametrize(
  ("names", "words"),
  [
    (("background", "cars"), r'"cars" is no label of CityScapes .nearest: "car"'),
    (("background", "background"), '"background" is no label'),
    (("background", "license plate"), '"license plate" is no label'),
    (("road", "car"), r"begins with 'road'.*\('background', 'road', 'car'\)"),
  ],
)
def test_names_that_are_not_official_are_refused(names, words):
  with pytest.raises(InputError, match=words):
    cityscapes.official_ids(names)


def test_a_named_class_counts_though_the_official_evaluation_ignores_it():
  table = cityscapes.class_table(("background", "caravan"))
  assert table[CARAVAN] == 1 and table[CAR] == 0 and table[0] == VOID


def test_missing_and_broken_files_are_named(tmp_path):
  with pytest.raises(InputError, match=r"leftImg8bit.train: there is no .*data\.root"):
    load(tmp_path, ["car"], "train")
  write_cityscapes(tmp_path, "val", [scene()])
  stem = tmp_path / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine"
  instances, labels = f"{stem}_instanceIds.png", f"{stem}_labelIds.png"
  (record,) = load(tmp_path, ["car"])
  Image.fromarray(np.full(SIZE, 77, np.uint8)).save(labels)
  with pytest.raises(InputError, match=re.escape(labels) + ".* label 77; .* end at 33"):
    record.read_labels()
  Image.fromarray(np.full(SIZE, 34000, np.uint16)).save(instances)
  with pytest.raises(InputError, match=re.escape(instances) + ".* label 34; "):
    load(tmp_path, ["car"])
  Image.fromarray(np.full(SIZE, 7, np.uint8)).save(instances)
  with pytest.raises(InputError, match=re.escape(instances) + ".* mode L; one 16-bit"):
    load(tmp_path, ["car"])
  (tmp_path / instances).unlink()
  with pytest.raises(InputError, match=re.escape(instances) + ": no such label map"):
    load(tmp_path, ["car"])


def test_the_configured_source_is_used_and_can_be_cut(tmp_path):
  write_cityscapes(tmp_path, "train", [scene()] * 3)
  write_cityscapes(tmp_path, "train", [scene()], city="bonn")
  config = ConfigDict({"source": "cityscapes", "root": str(tmp_path), "workers": 2})
  config.class_names = ("background", "car")
  assert [r.image_id[:4] for r in data.load_records(config, "train")] == ["bonn", *["ulm/"] * 3]
  assert len(data.load_records(config, "train[:2]")) == 2


def write_polygons(path, seed=0):
  """Polygons over each other of many labels, groups, a deleted one, and a licence plate."""
  rng = np.random.default_rng(seed)
  labels = ["road", "car", "car", "cargroup", "person", "caravan", "polegroup", "license plate"]
  objects = [{"label": "sky", "polygon": [[0, 0], [39, 0], [39, 23], [0, 23]]}]
  for label in [*labels, *rng.permutation(labels).tolist()]:
    points = (rng.uniform(size=(5, 2)) * [45, 28] - 2).round().astype(int).tolist()
    objects.append({"label": label, "polygon": points})
  objects[3]["deleted"] = 1
  path.write_text(json.dumps({"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects}))


@pytest.mark.parametrize("seed", range(4))
def test_maps_drawn_from_polygons_are_those_of_the_official_scripts(tmp_path, seed):
  path = tmp_path / "ulm_000000_000019_gtFine_polygons.json"
  write_polygons(path, seed)
  annotation = Annotation()
  annotation.fromJsonFile(str(path))
  expected = np.asarray(json2instanceImg.createInstanceImage(annotation, "ids"))
  np.testing.assert_array_equal(cityscapes.draw_instances(str(path)), expected)
  labels = np.asarray(json2labelImg.createLabelImage(annotation, "ids"))
  table = cityscapes.class_table(("background", *TASKS["vehicles"]))
  np.testing.assert_array_equal(cityscapes.draw_labels(str(path), SIZE, table), table[labels])


def test_polygons_stand_in_for_maps_that_are_not_there(tmp_path):
  write_cityscapes(tmp_path, "val", [scene()])
  folder = tmp_path / "gtFine" / "val" / "ulm"
  polygons = folder / "ulm_000000_000019_gtFine_polygons.json"
  write_polygons(polygons)
  values = cityscapes.draw_instances(str(polygons))
  (of_maps,) = load(tmp_path, TASKS["vehicles"])
  assert "instanceIds" in of_maps.source  # where they are there, they are what counts
  for kind, dtype in (("instanceIds", np.uint16), ("labelIds", np.uint8)):
    path = folder / f"ulm_000000_000019_gtFine_{kind}.png"
    found = values if kind == "instanceIds" else np.where(values < 1000, values, values // 1000)
    Image.fromarray(found.astype(dtype)).save(path)
  (of_maps,) = load(tmp_path, TASKS["vehicles"])
  expected, labels = boxes_of(of_maps), of_maps.read_labels()
  for kind in ("instanceIds", "labelIds"):
    (folder / f"ulm_000000_000019_gtFine_{kind}.png").unlink()
  (drawn,) = load(tmp_path, TASKS["vehicles"])
  assert boxes_of(drawn) == expected and len(expected) > 3
  np.testing.assert_array_equal(drawn.read_labels(), labels)
  assert pickle.loads(pickle.dumps(drawn)).read_labels().shape == SIZE


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("{", "cannot be read as polygons"),
    ('{"imgHeight": 4, "imgWidth": 4}', "cannot be read as polygons .'objects'"),
    (
      '{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "cat", "polygon": []}]}',
      '"cat" is no label of CityScapes',
    ),
  ],
)
def test_broken_polygons_are_named(tmp_path, text, words):
  path = tmp_path / "a_gtFine_polygons.json"
  path.write_text(text)
  with pytest.raises(InputError, match="a_gtFine_polygons.json: " + words):
    cityscapes.draw_instances(str(path))
