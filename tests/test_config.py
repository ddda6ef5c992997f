"""Configurations: complete, locked, and every file of `configs/` takes a step."""

import importlib.util
from pathlib import Path

import pytest

from boxseg_jax import config as configuration
from boxseg_jax.errors import InputError
from boxseg_jax.training import build

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def load(path, variant=""):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def keys_of(config):
  return set(configuration.flatten(config))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_has_every_key_and_no_other(path):
  config = load(path)
  assert keys_of(config) == keys_of(configuration.get_config())
  assert config.is_locked


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
  settings = build.loss_settings(config, [1.0] * len(config.data.class_names))
  assert settings.num_classes == len(config.data.class_names)
  assert 0 < settings.bootstrap_start < config.train.num_steps
  assert float(schedule(config.train.num_steps)) == pytest.approx(0.0, abs=1e-9)
  assert model.head is not None and optimizer.init is not None


def test_a_misspelt_key_names_the_nearest():
  config = configuration.get_config()
  with pytest.raises(AttributeError, match="num_steps"):
    config.train.num_stepz = 3


def test_arms_differ_in_what_they_say_and_nothing_else():
  config = configuration.get_config()
  arms = {}
  for name in ("full", "masks_only", "boxes_as_masks", "uncertainty"):
    config.arm = name
    arms[name] = configuration.arm(config)
  assert arms["full"].all_masks and not arms["masks_only"].box_images
  assert arms["boxes_as_masks"]._replace(uncertain=True, bootstrap="soft") == arms["uncertainty"]
  config.arm = "uncertanty"
  with pytest.raises(InputError, match="uncertanty.*uncertainty"):
    configuration.arm(config)


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
    build.make_model(config)
    build.make_optimizer(config)
    build.loss_settings(config, [1.0] * 4)
