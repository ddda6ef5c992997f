"""Masks of boxes, corrected by what the few true masks teach."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_cases import (
  annotation,
  make_image,
  make_record,
  read_json,
  rectangle,
  write_json,
  write_set,
)
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.numpy import load_file, save_file
from scipy import special
from test_instances import (
  BANDS,
  BOXES,
  MEAN_MASKS,
  a_crop,
  by_colour,
  competing,
  held,
  prior_odds,
  seen_odds,
)
from test_run import small

import boxseg_jax
from boxseg_jax.apps import label, refine
from boxseg_jax.apps.model import Model
from boxseg_jax.batch import VOID
from boxseg_jax.data import load_records, object_masks
from boxseg_jax.errors import InputError
from boxseg_jax.losses import instances
from boxseg_jax.models import refiner
from boxseg_jax.training import loop, refining, saved

NAMES = ("background", "car", "person")
SIZE = (60, 90)
CAR, PERSON = 3, 7  # ids of the categories, see `write_set`
PHOTOS = ("a.png", "b.png", "c.png", "d.png")


def config_of(root, **changes):
  """Two of four photographs have masks that are learned from."""
  return small(
    data__source="coco",
    data__root=str(root),
    data__class_names=NAMES,
    data__mask_fraction=0.5,
    data__batch_size=8,
    train__num_steps=1,
    train__checkpoint_every=1,
    eval__box_images=0,
    eval__pictures=0,
    label__refine_steps=3,
    **changes,
  )


def quiet(line):
  del line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(configuration, workdir) of a run that has a refiner."""
  folder = tmp_path_factory.mktemp("refined")
  entries = []
  for image in range(1, len(PHOTOS) + 1):
    for category, box in ((CAR, (5, 5, 30, 20)), (PERSON, (40, 20, 20, 30))):
      shape = rectangle(box[0] + 2, box[1] + 2, box[2] - 4, box[3] - 2)
      entries.append(annotation(len(entries) + 1, image, category, box, segmentation=shape))
  for part in ("train", "test"):
    write_set(folder / "set" / part, entries, images=PHOTOS, size=SIZE)
    for image, name in enumerate(PHOTOS):  # no two alike, in either split
      seed = image + 10 * (part == "test")
      Image.fromarray(make_image(SIZE, seed)).save(folder / "set" / part / "images" / name)
  config = config_of(folder / "set")
  loop.train(config, folder / "run", report=quiet)
  refine.run(config, folder / "run", report=quiet)
  return config, folder / "run"


def boxed(model, number=0):
  """What a model makes of two boxes."""
  boxes = [(5, 5, 35, 25), (40, 20, 60, 50)]
  return model.predict(make_image(SIZE, number), boxes=boxes, box_classes=["car", "person"])


class TestLoss:
  def test_of_two_by_two_pixels(self):
    odds = np.array([[[0.0, 2.0], [-1.0, 5.0]]], np.float32)
    target = np.array([[[1.0, 1.0], [0.0, 0.0]]], np.float32)
    counted = np.array([[[1.0, 1.0], [1.0, 0.0]]], np.float32)
    p = special.expit(odds[0])
    entropy = -(np.log(p[0, 0]) + np.log(p[0, 1]) + np.log1p(-p[1, 0])) / 3
    common, union = p[0, 0] + p[0, 1], 2 + p[1, 0]
    expected = entropy + 1 - (common + 1) / (union + 1)
    np.testing.assert_allclose(instances.refiner_loss(odds, target, counted), [expected], rtol=1e-5)

  def test_nothing_known_is_finite_and_teaches_nothing(self):
    odds = jnp.ones((1, 4, 4))
    nothing = jnp.zeros((1, 4, 4))
    value, slope = jax.value_and_grad(
      lambda odds: instances.refiner_loss(odds, nothing, nothing).sum()
    )(odds)
    assert value == 0 and not slope.any()

  def test_rules_are_held_back_and_corrected(self):
    probability, correction = jnp.array([0.0, 0.5, 0.9, 1.0]), jnp.array([0.0, 1.0, -1.0, 0.0])
    limit = special.logit(0.98) / 2
    expected = [-limit, 1.0, special.logit(0.9) / 2 - 1.0, limit]
    np.testing.assert_allclose(instances.refined(probability, correction), expected, rtol=1e-5)

  def test_only_what_networks_say_becomes_less_sure(self):
    evidence = jax.random.uniform(jax.random.key(0), (3, 4, 4, 20), minval=-2, maxval=2)
    changed = instances.less_sure(evidence, jax.random.key(1))
    np.testing.assert_array_equal(changed[..., 2:], evidence[..., 2:])
    assert np.abs(changed[..., :2]).max() <= 2
    # The same for all pixels of a crop: the order of their log-odds stays.
    for one, other in zip(changed[..., 0], evidence[..., 0], strict=True):
      order = np.argsort(np.ravel(other))
      assert (np.diff(np.ravel(one)[order]) >= 0).all() and not np.allclose(one, other)

  def test_how_unsure(self):
    evidence = jnp.tile(jnp.array([0.0, 0.1])[:, None], (4000, 1, 1, 3))
    changed = np.asarray(instances.less_sure(evidence, jax.random.key(2)))
    np.testing.assert_array_equal(changed[..., 0], changed[..., 1])
    none, some = changed[:, 0, :, 0].T
    assert none.std() == pytest.approx(0.4, rel=0.05) and abs(none.mean()) < 0.03
    times = np.log((some - none) / 0.1)
    assert times.std() == pytest.approx(0.8, rel=0.05) and abs(times.mean()) < 0.05


class TestRules:
  @pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
  def test_evidence_is_bounded_and_of_the_box(self, boxes):
    crops = jax.tree.map(lambda x: np.asarray(x)[None], a_crop(*boxes, scale=100.0))
    found = jax.jit(lambda crops: instances.outcomes(crops, MEAN_MASKS, BANDS))(crops)
    assert found.evidence.shape[-1] == instances.evidence_channels(4)
    inside = np.asarray(found.inside)
    assert inside.any() and np.isfinite(found.evidence).all()
    within = np.asarray(found.evidence)[inside]
    assert np.abs(within).max() <= 2
    # The place in the box, and which class is wanted.
    assert ((within[:, 9:11] >= 0) & (within[:, 9:11] < 1)).all()
    np.testing.assert_array_equal(within[:, -4:], np.tile(np.eye(4)[boxes[1][0]], (len(within), 1)))

  @pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
  def test_evidence_is_what_the_rules_go_by(self, boxes):
    crop = a_crop(*boxes, hidden=2)
    found = instances.outcomes(jax.tree.map(lambda x: np.asarray(x)[None], crop), MEAN_MASKS, BANDS)
    within, label = held(crop), crop.box_classes[0]
    prior = prior_odds(crop, crop.boxes[0], label)
    heard = by_colour(competing(crop, crop.logits, within, temperature=2.0), crop)
    ymin, xmin, ymax, xmax = crop.boxes[0]
    shape = crop.shown.shape
    expected = [
      *(
        odds / 4
        for odds in (
          seen_odds(crop, crop.logits, within)[0].clip(-8, 8),
          seen_odds(crop, crop.own_logits, within)[0].clip(-8, 8),
          np.where(within[0], prior, 0),
          *np.moveaxis(heard[..., 1:], -1, 0).clip(-8, 8),
        )
      ),
      2 * np.asarray(found.probability[0]) - 1,
      within[0],
      within[1:].any(0),
      crop.shown,
      np.broadcast_to((crop.y[:, None] - ymin) / (ymax - ymin), shape),
      np.broadcast_to((crop.x - xmin) / (xmax - xmin), shape),
      *(2 * np.moveaxis(crop.image, -1, 0) - 1),
      *(np.moveaxis(special.log_softmax(crop.logits, axis=-1), -1, 0).clip(-8) / 4),
      *(np.full(shape, label == own) for own in range(4)),
    ]
    assert instances.evidence_channels(4) == len(expected)
    for channel, wanted in enumerate(expected):
      np.testing.assert_allclose(
        found.evidence[0, ..., channel], wanted, atol=2e-4, err_msg=f"channel {channel}"
      )

  def test_no_correction_keeps_what_is_likely_and_a_large_one_decides(self):
    crops = jax.tree.map(lambda x: np.asarray(x)[None], a_crop(*BOXES["of one class"]))

    def masks(correction):
      def refine(evidence, features):
        assert evidence.shape[:3] == (1, 12, 12) and features.shape[:3] == (1, 6, 6)
        return jnp.full(evidence.shape[:3], correction)

      return instances.masks(crops, MEAN_MASKS, BANDS, refine)[0]

    rules = np.asarray(instances.masks(crops, MEAN_MASKS, BANDS)[0])
    inside = np.asarray(instances.outcomes(crops, MEAN_MASKS, BANDS).inside)
    np.testing.assert_array_equal(masks(0.0) > 0.5, rules > 0.5)
    np.testing.assert_array_equal(masks(20.0) > 0.99, inside)
    nowhere = np.asarray(masks(-20.0))
    assert (nowhere[inside] < 0.01).all() and not nowhere[~inside].any()


class TestFit:
  def examples(self, count, seed):
    """Objects are bright; the rules know nothing, and features tell nothing."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
      evidence = rng.normal(size=(16, 16, 18)).astype(np.float16)
      evidence[..., 11] = np.kron(rng.normal(size=(4, 4)), np.ones((4, 4)))
      target, half = (evidence[..., 11] > 0).astype(np.float16), np.full((16, 16), 0.5, np.float16)
      features = rng.normal(size=(8, 8, 8)).astype(np.float16)
      made.append(refining.Example(half, evidence, features, target, np.ones_like(half)))
    return made

  def test_learns_what_the_rules_miss(self):
    told = []
    variables = refining.fit(
      self.examples(64, 0), num_steps=150, seed=0, progress=lambda done: told.append(done)
    )
    others = self.examples(16, 1)
    evidence, features, target = (
      np.stack([getattr(one, name) for one in others]).astype(np.float32)
      for name in ("evidence", "features", "target")
    )
    odds = refiner.build().apply(variables, evidence, features, train=False)
    assert np.mean((odds > 0) == (target > 0.5)) > 0.85
    assert told == list(range(1, 151))

  def test_same_seed_same_bits(self):
    one, two = (refining.fit(self.examples(8, 0), num_steps=2, seed=3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)


class TestObjectMask:
  def test_a_segmentation_is_the_object_and_void_unknown(self):
    labels = np.full((20, 30), 1, np.uint8)
    labels[:5] = VOID
    record = make_record(0, boxes=[(0.1, 0.1, 0.9, 0.9)])
    given = annotation(1, segmentation=rectangle(6, 4, 10, 8))
    found = object_masks.object_mask(record, given, 0, labels)
    expected = np.zeros((20, 30), bool)
    expected[4:12, 6:16] = True
    np.testing.assert_array_equal(found.pixels, expected)
    np.testing.assert_array_equal(found.known, labels != VOID)

  def test_else_it_is_the_class_in_the_box_but_where_boxes_of_the_class_overlap(self):
    labels = np.full((20, 30), 1, np.uint8)
    labels[:, 20:] = 2
    boxes = [(0.0, 0.0, 1.0, 0.5), (0.5, 0.3, 1.0, 0.8), (0.0, 0.4, 1.0, 1.0)]
    record = make_record(0, classes=(1, 1, 2), boxes=boxes)
    first = object_masks.object_mask(record, {}, 0, labels)
    assert first.pixels[:, :15].all() and not first.pixels[:, 15:].any()
    expected = np.ones((20, 30), bool)
    expected[10:, 9:15] = False  # of the second box, too; that of another class does not matter
    np.testing.assert_array_equal(first.known, expected)
    second = object_masks.object_mask(record, {}, 1, labels)
    assert second.pixels[10:, 9:20].all() and second.pixels.sum() == 110

  def test_a_hostile_segmentation_is_refused(self):
    with pytest.raises(InputError, match="annotation 5"):
      given = annotation(5, segmentation={"size": [9, 9], "counts": "AAAA"})
      object_masks.object_mask(make_record(0), given, 0, np.zeros((20, 30), np.uint8))


class TestCommand:
  def test_views_are_of_the_objects(self, trained):
    config, workdir = trained
    records = refine._mask_records(config, workdir)
    assert len(records) == 2
    model = Model(saved.load(workdir)._replace(refiner=None))
    found = refine.gather(config, model.labeller, records, seed=0)
    assert len(found) == 2 * 2 * refine._VIEWS  # photographs, boxes
    for one in found:
      # Each object is its box without a margin of 2 pixels, none at the bottom.
      share = (one.target * one.counted).sum() / one.counted.sum()
      assert share == pytest.approx(0.7, abs=0.1)
      assert one.features.shape[:2] == (24, 24) and one.evidence.dtype == np.float16
    wide, high = (found[i].counted for i in (0, 1))
    assert (wide.any(0).sum(), wide.any(1).sum()) == (36, 24)
    assert (high.any(0).sum(), high.any(1).sum()) == (24, 36)

  def test_what_is_labelled_is_refined(self, trained, tmp_path):
    config, workdir = trained
    model = boxseg_jax.load(workdir)
    assert model.network.refiner is not None
    alone = Model(model.network._replace(refiner=None))
    strong = jax.tree.map(lambda x: x, model.network.refiner)
    strong["params"]["correction"]["bias"] += 9.0
    strong = Model(model.network._replace(refiner=strong))
    assert saved.fingerprint(alone.network) != saved.fingerprint(model.network)
    filled = boxed(strong).masks
    assert filled.sum() == 30 * 20 + 20 * 30
    for mask, whole in zip(boxed(model).masks, filled, strict=True):
      assert mask.any() and not (mask & ~whole).any()
    # --mode=label gives the same masks.
    shutil.copytree(config.data.root, tmp_path / "set")
    content = read_json(tmp_path / "set" / "train")
    for entry in content["annotations"]:
      del entry["segmentation"]
    write_json(tmp_path / "set" / "train", content)
    unmasked = config_of(tmp_path / "set")
    label.run(unmasked, workdir, to=str(tmp_path / "out"), report=quiet)
    made = [entry["segmentation"] for entry in read_json(tmp_path / "out")["annotations"][:2]]
    first = load_records(unmasked.data, "train")[0]
    corners = (first.boxes.astype(np.float64) * np.tile(SIZE, 2))[:, [1, 0, 3, 2]]
    result = model.predict(first.read_image(), boxes=corners, box_classes=first.box_classes)
    for code, mask in zip(made, result.masks, strict=True):
      np.testing.assert_array_equal(coco_mask.decode(code), mask)

  def test_it_is_compared_with_the_rules_on_other_images(self, trained):
    config, workdir = trained
    network = saved.load(workdir)
    filling = jax.tree.map(lambda x: x, network.refiner)
    filling["params"]["correction"]["bias"] += 9.0
    models = [Model(network._replace(refiner=one)) for one in (None, filling)]
    found = refine.judge(config, "test", [model.labeller for model in models], seed=0)
    assert found.shape == (8, 2)
    # Each object is its box without a margin of 2 pixels, none at the bottom.
    car, person = 26 * 18 / (30 * 20), 16 * 28 / (20 * 30)
    np.testing.assert_allclose(found[:, 1], [car, person] * 4)
    assert (found[:, 0] > 0).all() and (found[:, 0] != found[:, 1]).any()
    rules, filled = found.mean(0)
    told = refine._compared(config, network._replace(refiner=filling))
    assert told.startswith(
      f"8 boxes of test: mean IoU {filled:.3f}, of the rules alone {rules:.3f}."
    )
    assert ("Remove the file" in told) == (rules >= filled)

  def test_without_other_masks_nothing_is_claimed(self, trained, tmp_path):
    config, workdir = trained
    network = saved.load(workdir)
    same = config_of(config.data.root, data__eval_split="train")
    assert "no split" in refine._compared(same, network)
    shutil.copytree(config.data.root, tmp_path / "set")
    content = read_json(tmp_path / "set" / "test")
    for entry in content["annotations"]:
      del entry["segmentation"]
    write_json(tmp_path / "set" / "test", content)
    assert "test has no masks" in refine._compared(config_of(tmp_path / "set"), network)
    shutil.copytree(config.data.root, tmp_path / "damaged")
    (tmp_path / "damaged" / "test" / "images" / "b.png").write_bytes(b"no image")
    told = refine._compared(config_of(tmp_path / "damaged"), network)
    assert "not measured" in told and "b.png" in told

  def test_one_file_has_it_too(self, trained, tmp_path):
    _, workdir = trained
    model = boxseg_jax.load(workdir)
    saved.save(model.network, tmp_path / "all.safetensors")
    again = boxseg_jax.load(tmp_path / "all.safetensors")
    np.testing.assert_array_equal(boxed(again).masks, boxed(model).masks)
    jax.tree.map(np.testing.assert_array_equal, again.network.refiner, model.network.refiner)

  def test_it_is_of_one_checkpoint(self, trained, tmp_path):
    config, workdir = trained
    shutil.copytree(workdir, tmp_path / "run")
    description = json.loads((tmp_path / "run" / "network.json").read_text())
    description["loss"]["class_weights"] = [1.0, 2.0, 2.0]  # as if it were another network
    (tmp_path / "run" / "network.json").write_text(json.dumps(description))
    assert saved.load(tmp_path / "run").refiner is None
    refine.run(config, tmp_path / "run", report=quiet)
    assert saved.load(tmp_path / "run").refiner is not None

  def test_masks_of_box_images_never_reach_it(self, trained, tmp_path):
    config, workdir = trained
    chosen = set(json.loads((workdir / "split.json").read_text())["mask_ids"])
    shutil.copytree(workdir, tmp_path / "run")
    shutil.copytree(config.data.root, tmp_path / "set")
    content = read_json(tmp_path / "set" / "train")
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    for entry in content["annotations"]:
      if names[entry["image_id"]] not in chosen:
        entry["segmentation"] = rectangle(0, 0, 90, 60)
    write_json(tmp_path / "set" / "train", content)
    shutil.rmtree(config.data.root)  # the same place, so that it is the same configuration
    shutil.copytree(tmp_path / "set", config.data.root)
    (tmp_path / "run" / saved.REFINER).unlink()
    refine.run(config, tmp_path / "run", report=quiet)
    first, second = (load_file(folder / saved.REFINER) for folder in (workdir, tmp_path / "run"))
    assert first.keys() == second.keys()
    for name in first:
      np.testing.assert_array_equal(first[name], second[name])

  def test_refusals(self, trained, tmp_path):
    config, workdir = trained
    other = config_of(config.data.root, seed=5)
    with pytest.raises(InputError, match="another configuration"):
      refine.run(other, workdir, report=quiet)
    saved.save(saved.load(workdir), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is no run"):
      refine.run(config, tmp_path, report=quiet)
    shutil.copytree(workdir, tmp_path / "run")
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    split = {"mask_ids": [], "box_ids": split["mask_ids"] + split["box_ids"]}
    (tmp_path / "run" / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match="learned from no mask"):
      refine.run(config, tmp_path / "run", report=quiet)

  @pytest.mark.parametrize("what", ["value", "shape", "name", "bytes"])
  def test_damaged_files_are_refused(self, trained, tmp_path, what):
    _, workdir = trained
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / saved.REFINER
    arrays = load_file(path)
    metadata, _ = saved.pretrained.read_file(str(path))
    name = "refiner/params/correction/bias"
    changes = {"value": arrays[name] + 1, "shape": arrays[name][:0]}
    if what == "bytes":
      path.write_bytes(path.read_bytes()[:100])
    elif what == "name":
      arrays["refiner/params/other"] = arrays.pop(name)
      save_file(arrays, path, metadata=metadata)
    else:
      arrays[name] = changes[what]
      save_file(arrays, path, metadata=metadata)
    with pytest.raises(InputError, match=saved.REFINER):
      saved.load(tmp_path / "run")
