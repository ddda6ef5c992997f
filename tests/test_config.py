"""Configurations: complete, locked, and every file of `configs/` takes a step."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from data_cases import write_cityscapes
from ml_collections import config_flags
from PIL import Image

from boxseg_jax import config as configuration
from boxseg_jax.data import cityscapes
from boxseg_jax.errors import InputError
from boxseg_jax.training import build
from boxseg_jax.training.run import Run

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def module_of(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load(path, variant=""):
  return module_of(path).get_config(variant)


def keys_of(config):
  return set(configuration.flatten(config))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_has_every_key_and_no_other_in_every_variant(path):
  for variant in module_of(path).VARIANTS:
    config = load(path, variant)
    assert keys_of(config) == keys_of(configuration.get_config())
    assert config.is_locked
    configuration.check(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_smoke_variant_is_small_and_says_how_to_launch(path):
  whole, smoke = load(path), load(path, "smoke")
  assert smoke.train.num_steps <= 4 < whole.train.num_steps
  assert smoke.data.canvas[0] < whole.data.canvas[0]
  doc = importlib.util.spec_from_file_location(path.stem, path).loader.get_source(path.stem)
  assert f"--config=configs/{path.name}" in doc


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_builds_its_network(path):
  config = load(path)
  config.model.encoder.weights = ""
  model = build.make_model(config)
  optimizer, schedule = build.make_optimizer(config)
  settings = build.loss_settings(config, [1.0] * len(config.data.class_names), mask_images=1)
  assert settings.num_classes == len(config.data.class_names)
  assert 0 < settings.bootstrap_start < config.train.num_steps
  assert float(schedule(config.train.num_steps)) == pytest.approx(0.0, abs=1e-9)
  assert model.head is not None and optimizer.init is not None


def write_tiny_cityscapes(root, config):
  """A set of four images a split in the layout of CityScapes."""
  labels = cityscapes.official_ids(config.data.class_names)[1:]
  for split in (config.data.train_split, config.data.eval_split):
    instances = np.full((4, 40, 60), cityscapes.LABELS.index("road"))
    instances[:, 10:30, 20:50] = 1000 * labels[:4, None, None].astype(int)
    write_cityscapes(root, split, instances)


@pytest.mark.parametrize(
  ("bootstrap", "mask_images", "expected"),
  [
    ("posterior", 0, ("self", "posterior")),
    ("posterior", 2, ("boxes", "posterior")),
    ("posterior", 8, ("self", "posterior")),
    ("predicted", 0, ("self", "soft")),
    ("predicted", 2, ("boxes", "predicted")),
  ],
)
def test_a_teacher_needs_mask_images_and_box_images(bootstrap, mask_images, expected):
  config = configuration.get_config()
  config.loss.teacher, config.loss.bootstrap = "boxes", bootstrap
  settings = build.loss_settings(config, [1.0] * 4, mask_images=mask_images)
  assert (settings.teacher, settings.bootstrap) == expected


def write_tiny_set(root, config):
  """A set of four images a split in the layout that both `coco` and `labels` read."""
  rng = np.random.default_rng(0)
  names = config.data.class_names[1:]
  for split in (config.data.train_split, config.data.eval_split):
    folder = root / split
    for part in ("images", "labels"):
      (folder / part).mkdir(parents=True)
    images, annotations = [], []
    for number in range(4):
      label = 1 + number % len(names)
      labels = np.zeros((40, 60), np.uint8)
      labels[10:30, 20:50] = label
      Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(
        folder / "images" / f"{number}.png"
      )
      Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
      images.append({"id": number, "file_name": f"{number}.png", "width": 60, "height": 40})
      corners = [20, 10, 50, 10, 50, 30, 20, 30]
      annotations.append(
        {"id": number, "image_id": number, "category_id": label, "iscrowd": 0}
        | {"bbox": [20, 10, 30, 20], "segmentation": [corners]}
      )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_smoke_variant_takes_a_step(path, tmp_path):
  config = load(path, "smoke")
  config.model.encoder.weights = ""
  config.data.pipeline = "numpy"
  if config.data.source != "shapes":
    write = write_tiny_cityscapes if config.data.source == "cityscapes" else write_tiny_set
    write(tmp_path / "data", config)
    config.data.root = str(tmp_path / "data")
  config.data.mask_fraction = 0.5
  config.data.batch_size, config.eval.batch_size = 8, 8
  config.data.mask_images_per_batch = 4
  run = Run(config, tmp_path / "run", report=lambda line: None)
  state, metrics = run.train_step()(run.first_state(), next(run.batches(0)))
  assert int(state.step) == 1
  assert 0 < float(metrics["loss"]) < 20 and float(metrics["grad_norm"]) > 0


def test_a_misspelt_key_names_the_nearest():
  config = configuration.get_config()
  with pytest.raises(AttributeError, match="num_steps"):
    config.train.num_stepz = 3


def test_arms_differ_in_what_they_say_and_nothing_else():
  config = configuration.get_config()
  arms = configuration.arms(config)
  assert arms["full"].all_masks and not arms["masks_only"].box_images
  method = arms["boxes_as_masks"]._replace(inside_boxes="uncertainty")
  assert method == arms["uncertainty_none"]
  assert method._replace(bootstrap="predicted", teacher="boxes") == arms["uncertainty_boxes"]
  assert arms["uncertainty"] == method._replace(
    inside_boxes="separate", projection_weight=0.3, bootstrap="posterior", teacher="boxes"
  )
  assert all(arm.learns_sigma == name.startswith("uncertainty") for name, arm in arms.items())
  config.loss.bootstrap, config.loss.teacher = "hard", "self"
  assert configuration.arm(config) == arms["uncertainty_hard"]
  config.arm = "uncertanty"
  with pytest.raises(InputError, match="uncertanty.*uncertainty"):
    configuration.arm(config)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("data.canvas", (96,)),
    ("data.canvas", (0, 96)),
    ("data.canvas", (96.5, 96)),
    ("augment.crop", (96,)),
    ("augment.crop", (0, 96)),
    ("data.class_names", ("background", "cat", "cat")),
    ("data.batch_size", 0),
    ("data.label_names", (("van", "truck"),)),
    ("data.label_names", ("van", "star")),
    ("data.label_values", ((256, "star"),)),
    ("data.label_values", ((1, "star"), (1, "void"))),
    ("data.label_colors", (((0, 0), "star"),)),
    ("data.label_colors", ((7, "star"),)),
    ("data.workers", 0),
    ("data.mask_fraction", 1.5),
    ("eval.batch_size", -8),
    ("eval.pictures", -1),
    ("eval.tiles", "slides"),
    ("eval.overlap", 1.0),
    ("optimizer.accumulate", 0),
    ("optimizer.clip_norm", -1.0),
    ("seed", -1),
    ("train.num_steps", 0),
    ("train.keep_checkpoints", 0),
    ("train.best_metric", "foreground_iuo"),
  ],
)
def test_values_no_run_can_work_with_are_refused(key, value):
  config = configuration.get_config()
  configuration.check(config)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=f"config.{key} is "):
    configuration.check(config)


def test_masks_are_mapped_by_values_or_by_colors():
  config = configuration.get_config()
  config.data.label_names = (("van", "star"), ("*", "background"), ("border", "void"))
  config.data.label_values = ((255, "star"), (0, "background"))
  configuration.check(config)
  config.data.label_colors = (((0, 0, 255), "star"),)
  with pytest.raises(InputError, match="config.data.label_values is .*empty with label_colors"):
    configuration.check(config)


def test_maps_of_labels_can_be_given_as_flags(monkeypatch):
  pairs = (((128, 0, 0), "star"), ((0, 0, 0), "void"))
  argv = ["", f"--config.data.label_colors={pairs}", "--config.data.label_names=(('a', 'star'),)"]
  monkeypatch.setattr("sys.argv", argv)
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict("config", configuration.get_config(), flag_values=values)
  values(argv)
  assert values.config.data.label_colors == pairs
  assert values.config.data.label_names == (("a", "star"),)
  configuration.check(values.config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_variant_that_is_not_there_is_refused(path):
  with pytest.raises(ValueError, match="studdy"):
    load(path, "studdy")


def test_differences_name_the_keys():
  one, other = configuration.get_config(), configuration.get_config()
  other.train.num_steps = 7
  other.data.canvas = (32, 32)
  found = configuration.differences(configuration.flatten(one), configuration.flatten(other))
  assert found == ["data.canvas: [96, 96] -> [32, 32]", "train.num_steps: 300 -> 7"]


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("loss.bootstrap", "sofd", "loss.bootstrap is 'sofd'"),
    ("loss.teacher", "box", "loss.teacher is 'box'"),
    ("optimizer.name", "adam", "optimizer.name is 'adam'"),
    ("optimizer.schedule", "step", "optimizer.schedule is 'step'"),
    ("model.name", "unett", "unet"),
    ("model.norm", "layer", "layer"),
  ],
)
def test_wrong_values_are_named(key, value, words):
  config = configuration.get_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=words):
    configuration.check(config)
    build.make_model(config)
    build.make_optimizer(config)


def test_a_network_without_encoder_takes_no_weights_of_one():
  config = configuration.get_config()
  config.model.name, config.model.encoder.weights = "erfnet", "weights.safetensors"
  with pytest.raises(InputError, match=r"model.encoder.weights is 'weights.safetensors', but erf"):
    build.make_model(config)
