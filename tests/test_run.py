"""Whole runs on the embedded data set: stop and go on, refuse, skip, compare."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from boxseg_jax import config as configuration
from boxseg_jax.apps import budget, results, study
from boxseg_jax.batch import padding_example
from boxseg_jax.data import training_set
from boxseg_jax.errors import InputError, NonFiniteLossError
from boxseg_jax.evaluation import metrics, tiles
from boxseg_jax.parallel import Parallel
from boxseg_jax.training import build, loop
from boxseg_jax.training.checkpoint import Checkpoints
from boxseg_jax.training.run import Run, refuse_other_configuration
from boxseg_jax.training.step import make_predict_fn

ROOT = Path(__file__).resolve().parents[1]


def small(**changes):
  """A run of six tiny steps on as many devices as there are."""
  config = configuration.get_config()
  config.update_from_flattened_dict(
    {
      "data.shapes.num_train": 16,
      "data.shapes.num_eval": 4,
      "data.canvas": (32, 32),
      "data.mask_fraction": 0.25,
      "data.pipeline": "numpy",
      "model.width": 2,
      "train.num_steps": 6,
      "train.log_every": 2,
      "train.checkpoint_every": 2,
      "eval.box_images": 4,
      "eval.pictures": 2,
      **{key.replace("__", "."): value for key, value in changes.items()},
    }
  )
  return config


def last_state(config, workdir):
  run = Run(config, workdir, report=lambda line: None)
  with run.open_checkpoints(read_only=True) as checkpoints:
    return jax.device_get(run.restore(checkpoints, checkpoints.latest_step()))


def assert_same_bits(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def programs(config, workdir):
  """What XLA is given for a training step and for the evaluation of boxes."""
  run = Run(config, workdir, report=lambda line: None)
  state, batch = run.first_state(), next(iter(run.batches(0)))
  known = training_set.evaluation_batches(run.training.known_box_images, config, run.parallel)
  boxes = build.compile_evaluators(run.model, run.settings, run.parallel).boxes
  lowered = (
    run.train_step().lower(state, batch),
    boxes.lower(state, run.parallel.put_batch(next(iter(known)))),
  )
  return [one.as_text() for one in lowered], run.settings.box_priors


def test_seeds_share_their_programs(tmp_path):
  """Other images, other priors: a study compiles anew for none of its seeds."""
  one, priors = programs(small(), tmp_path / "0")
  other, other_priors = programs(small(seed=1, data__split_seed=1), tmp_path / "1")
  assert priors != other_priors
  assert one == other


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(configuration, workdir, results, lines of the report) of a run that nothing interrupted."""
  config, workdir, lines = small(), tmp_path_factory.mktemp("run"), []
  return config, workdir, loop.train(config, workdir, report=lines.append), lines


class TestWhatARunLeavesBehind:
  def test_results_are_shares_of_every_kind(self, finished):
    config, workdir, named, _ = finished
    assert json.loads((workdir / "result.json").read_text()) == named
    assert {"foreground_iou", "miou", "pixel_accuracy", "boxes/mask_iou"} <= named.keys()
    assert {f"iou/{name}" for name in config.data.class_names} <= named.keys()
    assert all(0 <= value <= 1 for value in named.values())

  def test_every_step_of_the_log_once(self, finished):
    _, workdir, _, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == [2, 4, 6]
    assert all(line["train/loss"] > 0 for line in lines if "train/loss" in line)

  def test_every_line_of_the_log_has_speed_and_memory(self, finished):
    _, workdir, _, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in lines if "train/loss" in line):
      rate, own = (line[f"train/images_per_second{of}"] for of in ("", "_per_device"))
      assert own == pytest.approx(rate / jax.device_count())
      assert 0 <= line["train/input_wait_share"] <= 1
      assert line["train/host_memory_gib"] > 0.05  # CPUs do not tell of themselves

  def test_pictures_split_and_checkpoints(self, finished):
    _, workdir, _, lines = finished
    assert (workdir / "pictures" / "0000006.png").stat().st_size > 1000
    split = json.loads((workdir / "split.json").read_text())
    assert sorted(len(ids) for ids in split.values() if isinstance(ids, list)) == [4, 12]
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {"4", "6"}
    assert any("4 with masks" in line for line in lines)

  def test_evaluating_the_checkpoint_gives_the_same_numbers(self, finished):
    config, workdir, named, _ = finished
    again = results.evaluate_run(config, workdir, report=lambda line: None)
    assert again == pytest.approx(named, nan_ok=True)
    shown = results.table(again, workdir)
    assert "foreground_iou" in shown and str(workdir / "pictures" / "0000006.png") in shown

  def test_sliding_evaluation_and_prediction_agree(self, finished, tmp_path):
    """Images of 96 pixels in windows of 32, by all devices and by one."""
    config, workdir, fitted, _ = finished
    state = last_state(config, workdir)
    rng = np.random.default_rng(0)  # six steps teach background alone: say something of everything
    params = jax.tree.map(
      lambda leaf: (leaf + rng.normal(size=leaf.shape)).astype(leaf.dtype), state.ema["params"]
    )
    state = state.replace(ema=state.ema | {"params": params})
    sliding = small(eval__tiles="slide", eval__box_images=0)
    run = Run(sliding, tmp_path / "slide", report=lambda line: None)
    named = run.measure(run.parallel.replicate(state))
    predictor = partial(tiles.tile_predictor(make_predict_fn(run.model, run.settings)), state.ema)
    counts = np.zeros((4, 4), int)
    for record in run.judged.records:
      bands = tiles.predict_bands(
        predictor, record.read_image(), canvas=(32, 32), overlap=0.25, batch_size=4
      )
      classes = np.concatenate([band.classes for band in bands])
      labels = record.read_labels()
      np.add.at(counts, (labels[labels < 4], classes[labels < 4]), 1)
    expected = metrics.summary(counts)
    assert len(np.unique(np.nonzero(counts)[1])) > 1
    assert named["miou"] == pytest.approx(expected["miou"], abs=1e-3)
    assert named["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=1e-3)
    assert named["pixel_accuracy"] != pytest.approx(fitted["pixel_accuracy"], abs=1e-3)

  def test_training_on_crops_keeps_less_and_leaves_a_network_of_the_whole_canvas(self, tmp_path):
    """A canvas of 64 pixels, of which a step sees 32, keeps what a canvas of 32 keeps."""
    runs = {
      "crops": small(data__canvas=(64, 64), augment__crop=(32, 32), train__num_steps=1),
      "whole": small(data__canvas=(64, 64)),
      "small": small(data__canvas=(32, 32)),
    }
    kept = {}
    for name, config in runs.items():
      training = training_set.open_training_set(config, report=lambda line: None)
      kept[name] = budget.estimate(config, training, judged=4).step_bytes
    assert kept["crops"] == kept["small"] < kept["whole"] / 3
    batch = {k: v[None] for k, v in padding_example((64, 64), 1).items()}
    keys = jax.random.split(jax.random.key(0), 1)
    seen = jax.eval_shape(build.make_augment(runs["crops"]), batch, keys)
    assert seen["image"].shape == (1, 32, 32, 3)
    loop.train(runs["crops"], tmp_path, report=lambda line: None)
    description = json.loads((tmp_path / "network.json").read_text())
    assert description["canvas"] == [64, 64]

  def test_starting_a_finished_run_again_only_measures(self, finished):
    config, workdir, named, _ = finished
    lines = []
    assert loop.train(config, workdir, report=lines.append) == pytest.approx(named, nan_ok=True)
    assert any("step 6" in line for line in lines)


def test_a_traced_run_becomes_the_same(finished, tmp_path):
  _, workdir, _, _ = finished
  loop.train(small(), tmp_path, report=lambda line: None, profile_steps=(3, 4))
  (traced,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
  assert traced.stat().st_size > 1000
  assert_same_bits(last_state(small(), workdir), last_state(small(), tmp_path))


def test_steps_to_trace_are_of_the_run(tmp_path):
  with pytest.raises(InputError, match="from 1 to 6, not 6 to 7"):
    loop.train(small(), tmp_path, report=lambda line: None, profile_steps=(6, 7))


class TestGoingOn:
  def test_stopped_by_an_exception_between_checkpoints(self, finished, tmp_path, monkeypatch):
    """Stops at step 5, one step after a checkpoint: step 5 is done again, and the bits agree."""
    config, workdir, _, _ = finished
    settle = loop.Window.add

    def stop_at_five(window, step, metrics):
      if step == 5:
        raise KeyboardInterrupt
      settle(window, step, metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
      patch.setattr(loop.Window, "add", stop_at_five)
      loop.train(config, tmp_path, report=lambda line: None)
    lines = []
    loop.train(config, tmp_path, report=lines.append)
    assert any("step 4" in line for line in lines)
    assert_same_bits(last_state(config, workdir), last_state(config, tmp_path))
    logged = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [s for line in logged if "train/loss" in line for s in [json.loads(line)["step"]]] == [
      2,
      4,
      6,
    ]

  def test_killed_at_any_moment(self, tmp_path):
    """SIGKILL again and again, at moments that differ; the same command ends in the same bits."""
    config = small(train__num_steps=30, train__log_every=5, train__checkpoint_every=5)
    command = _command(config, tmp_path / "killed")
    whole = subprocess.run(_command(config, tmp_path / "whole"), check=False, **_CHILD)
    assert whole.returncode == 0, whole.stderr
    kills = 0
    for attempt in range(4):
      child = subprocess.Popen(command, **_CHILD)
      newest = _newest_checkpoint(tmp_path / "killed")
      deadline = time.monotonic() + 120
      while child.poll() is None and time.monotonic() < deadline:
        if _newest_checkpoint(tmp_path / "killed") > newest:
          time.sleep(0.02 * attempt)
          child.send_signal(signal.SIGKILL)
          kills += 1
          break
        time.sleep(0.002)
      child.communicate()
    final = subprocess.run(command, check=False, **_CHILD)
    assert final.returncode == 0, final.stderr
    assert kills >= 2
    assert_same_bits(
      last_state(config, tmp_path / "whole"), last_state(config, tmp_path / "killed")
    )

  def test_told_to_stop(self, tmp_path):
    """SIGTERM: a checkpoint at the next step, no failure, and the same bits in the end."""
    config = small(train__num_steps=40, train__log_every=10, train__checkpoint_every=10)
    command = _command(config, tmp_path / "stopped")
    child = subprocess.Popen(command, **_CHILD)
    deadline = time.monotonic() + 120
    while _newest_checkpoint(tmp_path / "stopped") < 10 and child.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.002)
    child.send_signal(signal.SIGTERM)
    _, told = child.communicate(timeout=120)
    step = _newest_checkpoint(tmp_path / "stopped")
    assert child.returncode == 0, told
    assert 10 <= step < 40 and f"goes on from step {step}" in told and "error" not in told
    for workdir in ("stopped", "whole"):
      whole = subprocess.run(_command(config, tmp_path / workdir), check=False, **_CHILD)
      assert whole.returncode == 0, whole.stderr
    assert_same_bits(
      last_state(config, tmp_path / "whole"), last_state(config, tmp_path / "stopped")
    )

  def test_another_configuration_is_refused_with_its_keys(self, finished):
    config, workdir, _, _ = finished
    other = small(optimizer__learning_rate=1e-2)
    with pytest.raises(InputError, match=r"optimizer\.learning_rate: 0\.004 -> 0\.01"):
      loop.train(other, workdir, report=lambda line: None)
    assert config.optimizer.learning_rate == 4e-3

  def test_a_key_that_an_earlier_version_lacked_had_its_default(self, tmp_path):
    earlier = configuration.flatten(small())
    del earlier["augment.crop"]
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    refuse_other_configuration(small(), tmp_path)
    with pytest.raises(InputError, match=r"augment\.crop: \[\] -> \[16, 16\]"):
      refuse_other_configuration(small(augment__crop=(16, 16)), tmp_path)

  def test_a_key_whose_default_is_new_was_what_was_done_before(self, tmp_path):
    earlier = configuration.flatten(small())
    del earlier["loss.projection_weight"]
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    refuse_other_configuration(small(loss__projection_weight=0.0), tmp_path)
    with pytest.raises(InputError, match=r"loss\.projection_weight: 0\.0 -> 0\.3"):
      refuse_other_configuration(small(), tmp_path)


_CHILD = {
  "cwd": ROOT,
  "stdout": subprocess.PIPE,
  "stderr": subprocess.PIPE,
  "text": True,
  "env": {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
}


def _command(config, workdir):
  flat = configuration.flatten(config)
  default = configuration.flatten(configuration.get_config())
  changed = [key for key in flat if flat[key] != default[key]]
  values = {key: tuple(flat[key]) if isinstance(flat[key], list) else flat[key] for key in changed}
  return [
    sys.executable,
    "-m",
    "boxseg_jax.main",
    f"--workdir={workdir}",
    f"--compilation_cache={workdir.parent / 'xla'}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


def _newest_checkpoint(workdir):
  folder = workdir / "checkpoints"
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  return max((int(name) for name in names if name.isdigit()), default=-1)


class TestArms:
  def test_masks_of_box_images_never_reach_training(self, finished, tmp_path, monkeypatch):
    """Garbage in the hidden masks changes not one bit of the training."""
    config, workdir, _, _ = finished
    load = training_set.data.load_records

    def load_garbage(config_data, split):
      records = load(config_data, split)
      if split != config_data.train_split:
        return records
      chosen = set(json.loads((workdir / "split.json").read_text())["mask_ids"])
      return [r if r.image_id in chosen else with_garbage(r) for r in records]

    monkeypatch.setattr(training_set.data, "load_records", load_garbage)
    loop.train(config, tmp_path, report=lambda line: None)
    assert_same_bits(last_state(config, workdir), last_state(config, tmp_path))

  def test_boxes_only_is_a_valid_run(self, tmp_path):
    named = loop.train(small(data__mask_fraction=0.0), tmp_path, report=lambda line: None)
    assert 0 <= named["foreground_iou"] <= 1

  @pytest.mark.parametrize("arm", ["full", "masks_only", "boxes_as_masks"])
  def test_arm_reads_what_it_may(self, arm, tmp_path):
    training = training_set.open_training_set(small(arm=arm), report=lambda line: None)
    masks, boxes = len(training.mask_indices), len(training.box_indices)
    assert (masks, boxes) == {"full": (16, 0), "masks_only": (4, 0), "boxes_as_masks": (4, 12)}[arm]
    shown = [bool(training.reader(i)["has_mask"]) for i in range(16)]
    assert sum(shown) == masks

  def test_grabcut_sees_the_boxes_of_box_images_and_not_their_masks(self):
    pytest.importorskip("cv2")
    config = small(arm="grabcut")
    training = training_set.open_training_set(config, report=lambda line: None)
    assert (len(training.mask_indices), len(training.box_indices)) == (4, 12)
    for index in range(16):
      example, true = training.reader(index), training.reader.evaluation(index)
      assert example["has_mask"]
      same = (example["labels"] == true["labels"]).all()
      assert same == (index in training.mask_indices)

  def test_study_runs_each_cell_once_and_compares(self, tmp_path):
    config = small(train__num_steps=2, study__arms=("masks_only", "uncertainty", "full"))
    lines = []
    text = study.run(config, tmp_path, report=lines.append)
    assert "crops of 24x16 pixels" in study.same_for_all(small(augment__crop=(16, 24)))
    cells = json.loads((tmp_path / "study.json").read_text())["cells"]
    assert [c["arm"] for c in cells] == ["masks_only", "uncertainty", "full"]
    made_with = json.loads((tmp_path / "study.json").read_text())["made_with"]
    assert "train.num_steps: 300 -> 2" in made_with["config"] and made_with["jax"]
    same, overall, by_class, inside, paths = (part.splitlines() for part in text.split("\n\n"))
    assert [len(overall), len(by_class), len(inside)] == [5, 5, 3]
    assert max(len(line) for line in same + overall + by_class + inside) <= 80
    assert "unet on conv, 32x32 pixels, 2 steps of 8 images" in same[0]
    assert "gap closed" in overall[0] and "AUROC" in inside[0] and len(paths) == 4
    with Image.open(tmp_path / "study.png") as plot:
      assert plot.size[0] > 1000
    hours = {cell["arm"]: cell["annotation_hours"] for cell in cells}
    assert 0 < hours["masks_only"] < hours["uncertainty"] < hours["full"]
    assert sum("min left" in line for line in lines) == 2
    again = []
    assert study.run(config, tmp_path, report=again.append) == text
    assert all("finished earlier" in line for line in again)
    fewer = []
    # Neither the study's other arms nor a method that the arm does not use belong to a run.
    config.study.arms, config.loss.bootstrap = ("full",), "hard"
    study.run(config, tmp_path, report=fewer.append)
    assert len(fewer) == 1 and "finished earlier" in fewer[0]
    config.study.arms = ("uncertainty",)
    with pytest.raises(InputError, match="loss.bootstrap: 'posterior' -> 'hard'"):
      study.run(config, tmp_path, report=fewer.append)

  def test_study_takes_over_what_others_have_measured(self, tmp_path):
    config = small(train__num_steps=1, study__arms=("masks_only",), study__seeds=(1,))
    study.run(config, tmp_path / "one", report=lambda line: None)
    known = tmp_path / "one" / "study.json"
    config.study.arms, config.study.known = ("masks_only", "full"), (str(known),)
    lines = []
    study.run(config, tmp_path / "both", report=lines.append)
    assert lines[:2] == [
      "1 of 2 runs are known from config.study.known.",
      "[1/1] full-100pct-seed1",
    ]
    first, second = (
      json.loads((tmp_path / name / "study.json").read_text()) for name in ("one", "both")
    )
    made_with = {key: value for key, value in first["made_with"].items() if key != "config"}
    assert second["cells"][0] == first["cells"][0] | {"made_with": made_with}
    assert second["cells"][1]["arm"] == "full" and "made_with" not in second["cells"][1]
    assert any(str(known) in line for line in second["made_with"]["config"])
    assert not list((tmp_path / "both").glob("masks_only*"))
    config.optimizer.learning_rate = 1e-2
    with pytest.raises(InputError, match=r"another configuration.*\n  optimizer.learning_rate: "):
      study.run(config, tmp_path / "both", report=lines.append)

  @pytest.mark.parametrize(
    "damage",
    [
      lambda found: found.pop("made_with"),
      lambda found: found.update(made_with="none"),
      lambda found: found["cells"][0].pop("seed"),
      lambda found: found["cells"][0].update(arm=["full"]),
      lambda found: found["cells"][0].update(metrics={}),
      lambda found: found.update(cells=3),
      lambda found: found["cells"].append("none"),
    ],
  )
  def test_a_damaged_study_is_refused_by_name(self, damage, tmp_path):
    config = small()
    row = {"arm": "full", "mask_fraction": 1.0, "seed": 0, "fault": "", "annotation_hours": 1.0}
    found = {
      "made_with": study.made_with(config),
      "cells": [row | {"metrics": {"foreground_iou": 0.5}}],
    }
    path = tmp_path / "study.json"
    config.study.known = (str(path),)
    path.write_text(json.dumps(found))
    assert list(study.known_rows(config)) == [study.Cell("full", 1.0, 0)]
    damage(found)
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="study.json: is damaged"):
      study.known_rows(config)

  def test_what_another_version_measured_is_not_taken_over(self, tmp_path):
    config, path = small(), tmp_path / "study.json"
    found = {"made_with": study.made_with(config) | {"boxseg_jax": "0.1.0"}, "cells": []}
    path.write_text(json.dumps(found))
    config.study.known = (str(path),)
    with pytest.raises(InputError, match=r"study\.json is a study by boxseg_jax 0\.1\.0, whose"):
      study.known_rows(config)

  def test_study_repeats_what_learns_from_boxes_with_each_fault(self, tmp_path):
    arms = ("masks_only", "boxes_as_masks", "full")
    config = small(train__num_steps=1, study__arms=arms, study__faults=("resize", "missing"))
    planned = [(cell.arm, cell.fault) for cell in study.cells(config)]
    of_boxes = [("boxes_as_masks", fault) for fault in ("", "resize", "missing")]
    assert planned == [("masks_only", ""), *of_boxes, ("full", "")]
    config.study.arms = ("boxes_as_masks",)
    text = study.run(config, tmp_path, report=lambda line: None)
    cells = json.loads((tmp_path / "study.json").read_text())["cells"]
    iou = {cell["fault"]: 100 * cell["metrics"]["foreground_iou"] for cell in cells}
    head, _, line = text.split("\n\n")[3].splitlines()
    assert "right boxes" in head and "resize" in head and "missing" in head
    assert f"{iou['']:.1f}" in line
    assert f"{iou['missing']:.1f} ({iou['missing'] - iou['']:+.1f})" in line
    folder = study.Cell("boxes_as_masks", config.data.mask_fraction, config.seed, "resize").name
    faulty = json.loads((tmp_path / folder / "config.json").read_text())
    assert faulty["data.box_faults.resize"] == 0.2 and faulty["data.box_faults.missing"] == 0

  def test_no_class_is_wrong_where_there_is_one(self):
    config = small(study__arms=("boxes_as_masks",), study__faults=("wrong_class",))
    assert len(study.cells(config)) == 2
    config.data.class_names = ("background", "thing")
    assert len(study.cells(config)) == 1


def with_garbage(record):
  """Noise, of the boxes' classes in the boxes: any other is refused before training."""
  rng = np.random.default_rng(1)
  labels = np.zeros(record.size, np.uint8)
  corners = (record.boxes * np.tile(record.size, 2)).round().astype(int)
  for (ymin, xmin, ymax, xmax), label in zip(corners, record.box_classes, strict=True):
    labels[ymin:ymax, xmin:xmax] = label * rng.integers(0, 2, (ymax - ymin, xmax - xmin))
  return dataclasses.replace(record, read_labels=lambda: labels)


class TestWhatStopsARun:
  def test_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(self, tmp_path):
    config = small(
      optimizer__learning_rate=1e30, optimizer__clip_norm=0.0, train__checkpoint_every=1
    )
    with pytest.raises(NonFiniteLossError, match=r"at step \d: loss"):
      loop.train(config, tmp_path, report=lambda line: None)
    assert not (tmp_path / "result.json").exists()
    if (tmp_path / "checkpoints").exists() and _newest_checkpoint(tmp_path) > 0:
      assert all(np.isfinite(x).all() for x in jax.tree.leaves(last_state(config, tmp_path).params))

  @pytest.mark.parametrize(
    ("arguments", "words"),
    [
      (["--config.train.num_stepz=3"], "num_steps"),
      (["--config=nowhere.py"], "nowhere.py"),
      (["--config.train.num_steps=many"], "many"),
      (["--mode=trian"], "train"),
      (["extra"], "extra"),
      (["--config.arm=fulll"], "'fulll'"),
      (["--config.data.source=coco", "--config.data.root=nowhere"], "nowhere"),
      (["--config.data.batch_size=7", "--config.parallel.kind=pmapp"], "pmapp"),
    ],
  )
  def test_wrong_input_is_one_message_and_status_two(self, arguments, words, tmp_path):
    done = subprocess.run(
      [sys.executable, "-m", "boxseg_jax.main", f"--workdir={tmp_path}", *arguments],
      check=False,
      **_CHILD,
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


class TestClassWeights:
  def test_given_automatic_and_wrong(self):
    training = training_set.open_training_set(small(), report=lambda line: None)
    records = training.reader.records
    assert training_set.class_weights((), records, 4) == (1.0,) * 4
    assert training_set.class_weights((1, 2, 3, 4), records, 4) == (1.0, 2.0, 3.0, 4.0)
    automatic = training_set.class_weights(("auto",), records, 4)
    areas = np.zeros(4)
    for record in records:
      for (ymin, xmin, ymax, xmax), label in zip(record.boxes, record.box_classes, strict=True):
        areas[label] += (ymax - ymin) * (xmax - xmin)
    areas[0] = len(records) - areas.sum()
    assert automatic == pytest.approx(np.minimum(np.sqrt(areas[0] / areas), 10))
    crowd = np.ones(len(records[0].boxes), bool)  # a record of nothing but crowds has no object
    records = [*records, dataclasses.replace(records[0], box_is_crowd=crowd)]
    areas[0] += 1
    automatic = training_set.class_weights(("auto",), records, 4)
    assert automatic == pytest.approx(np.minimum(np.sqrt(areas[0] / areas), 10))
    for wrong in [(1, 2), (1, 1, 1, 0), ("auto", 1, 1, 1)]:
      with pytest.raises(InputError, match="class_weights"):
        training_set.class_weights(wrong, records, 4)


class TestWorkdir:
  def test_start_that_failed_leaves_the_workdir_free(self, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
      Run(small(data__source="coco", data__root="nowhere"), tmp_path, report=lambda line: None)
    Run(small(), tmp_path, report=lambda line: None)
    assert (tmp_path / "config.json").exists()

  def test_other_images_than_the_run_began_with_are_refused(self, tmp_path, monkeypatch):
    Run(small(), tmp_path, report=lambda line: None)
    load = training_set.data.load_records
    monkeypatch.setattr(training_set.data, "load_records", lambda *args: load(*args)[1:])
    with pytest.raises(InputError, match="other images"):
      Run(small(), tmp_path, report=lambda line: None)

  def test_place_that_is_no_folder_is_named(self, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
      Run(small(), tmp_path / "file" / "run", report=lambda line: None)


class TestCheckpoints:
  def test_the_best_outlives_a_new_start(self, tmp_path):
    def open_them():
      return Checkpoints(tmp_path, keep=1, best_metric="miou")

    def save(checkpoints, step, quality):
      checkpoints.save(step, {"x": jax.numpy.full(3, float(step))}, {"miou": quality})

    with open_them() as checkpoints:
      for step, quality in [(1, 0.9), (2, 0.3), (3, 0.2)]:
        save(checkpoints, step, quality)
    with open_them() as checkpoints:
      assert (checkpoints.best_step(), checkpoints.latest_step()) == (1, 3)
      for step, quality in [(4, 0.1), (5, float("nan"))]:
        save(checkpoints, step, quality)
    with open_them() as checkpoints:
      assert (checkpoints.best_step(), checkpoints.latest_step()) == (1, 5)
      like = {"x": jax.ShapeDtypeStruct((3,), float, sharding=Parallel("jit").replicated)}
      np.testing.assert_array_equal(checkpoints.restore(1, like)["x"], [1.0, 1.0, 1.0])

  def test_what_a_killed_save_left_is_swept_up(self, tmp_path):
    left = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    with Checkpoints(tmp_path, keep=1, best_metric="miou", read_only=True) as checkpoints:
      assert checkpoints.latest_step() is None and left.exists()
    with Checkpoints(tmp_path, keep=1, best_metric="miou") as checkpoints:
      # Swept in the background: only the first save waits for it.
      checkpoints.save(8, {"x": jax.numpy.zeros(3)}, None)
    assert not left.exists() and (tmp_path / "checkpoints" / "8").is_dir()
