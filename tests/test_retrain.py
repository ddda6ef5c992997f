"""A second network, by the masks that a first one made of its boxes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_run import assert_same_bits, last_state, small, with_garbage

from boxseg_jax.apps import refine, retrain, study
from boxseg_jax.batch import VOID
from boxseg_jax.data import load_records, training_set
from boxseg_jax.data.examples import fit_labels
from boxseg_jax.errors import InputError
from boxseg_jax.training import loop
from boxseg_jax.training.run import Run

SIZE = (96, 96)  # of the embedded images


def quiet(line):
  del line


def first_config(**changes):
  """Two of eight images have masks."""
  return small(
    data__shapes__num_train=8,
    data__shapes__num_eval=2,
    train__num_steps=2,
    eval__box_images=0,
    eval__pictures=0,
    label__refine_steps=2,
    **changes,
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(configuration, workdir of the first run, lines of text, outcome)."""
  workdir, lines = tmp_path_factory.mktemp("first") / "run", []
  config = first_config()
  loop.train(config, workdir, report=quiet)
  outcome = retrain.run(config, workdir, report=lines.append)
  return config, workdir, lines, outcome


def split_of(workdir):
  content = json.loads((workdir / "split.json").read_text())
  return set(content["mask_ids"]), set(content["box_ids"])


def pseudo_mask(workdir, record):
  path = workdir / "pseudo_masks" / "labels" / f"{record.image_id}.png"
  return np.asarray(Image.open(path))


class TestCommand:
  def test_it_learns_from_the_masks_that_were_made_and_from_the_true_ones(self, finished):
    config, workdir, lines, _ = finished
    masks, boxes = split_of(workdir)
    assert split_of(workdir / "retrained") == (masks, boxes)
    training = Run(
      retrain.second_config(config, workdir), workdir / "retrained", report=quiet
    ).training
    assert len(training.mask_indices) == 8 and not len(training.box_indices)
    assert training.mask_images == config.data.batch_size
    changed = 0
    for index, record in enumerate(training.reader.records):
      example, true = training.reader(index), record.read_labels()
      assert example["has_mask"]
      if record.image_id in masks:
        np.testing.assert_array_equal(
          example["labels"], training.reader.evaluation(index)["labels"]
        )
        continue
      found = pseudo_mask(workdir, record)
      np.testing.assert_array_equal(example["labels"], fit_labels(found, (32, 32)))
      inside = np.zeros(record.size, bool)
      for box in record.boxes * np.tile(record.size, 2):
        top, left, bottom, right = np.ceil(box - 0.5).astype(int)
        inside[top:bottom, left:right] = True
      assert not found[~inside].any() and found.any()
      changed += (found != true).any()
    assert changed
    told = "8 training images: 2 with masks, 6 with masks made of their boxes, 0 with boxes only"
    assert any(told in line for line in lines)

  def test_it_tells_both_networks_figures(self, finished):
    _, workdir, lines, outcome = finished
    names = "result.json", "retrained/result.json"
    first, second = (
      100 * json.loads((workdir / name).read_text())["foreground_iou"] for name in names
    )
    assert f"foreground_iou {second:.1f} %, of the first network {first:.1f} %." in outcome
    assert (workdir / "refiner.safetensors").exists()
    assert any("masks of boxes are refined by it" in line for line in lines)

  def test_started_again_it_makes_nothing_anew(self, finished, monkeypatch):
    config, workdir, _, outcome = finished
    monkeypatch.setattr(refine, "run", None)
    lines = []
    assert retrain.run(config, workdir, report=lines.append) == outcome
    assert "6 images were labelled earlier." in lines

  def test_another_refiner_is_not_given_the_old_second_network(self, finished, tmp_path):
    config, workdir, _, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "refiner.safetensors").unlink()
    other = config.copy_and_resolve_references()
    other.label.refine_steps = 3
    for _ in range(2):  # the masks are made by then, and the network is as old as it was
      with pytest.raises(InputError, match="another network or refiner.*remove"):
        retrain.run(other, tmp_path / "run", report=quiet)

  def test_masks_of_box_images_never_reach_it(self, finished, tmp_path, monkeypatch):
    config, workdir, _, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    for name in ("pseudo_masks", "retrained"):
      shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "refiner.safetensors").unlink()
    masks, _ = split_of(workdir)

    def load_garbage(config_data, split):
      records = load_records(config_data, split)
      if split != config_data.train_split:
        return records
      return [r if r.image_id in masks else with_garbage(r) for r in records]

    monkeypatch.setattr(training_set.data, "load_records", load_garbage)
    monkeypatch.setattr(refine, "load_records", load_garbage)
    retrain.run(config, tmp_path / "run", report=quiet)
    states = [
      last_state(retrain.second_config(config, run), run / "retrained")
      for run in (workdir, tmp_path / "run")
    ]
    assert_same_bits(*states)

  def test_without_a_mask_the_rules_do(self, tmp_path):
    config, lines = first_config(data__mask_fraction=0.0), []
    loop.train(config, tmp_path, report=quiet)
    retrain.run(config, tmp_path, report=lines.append)
    assert not (tmp_path / "refiner.safetensors").exists()
    assert any("0 with masks, 8 with masks made of their boxes" in line for line in lines)

  def test_masks_too_small_for_a_refiner_leave_the_rules(self, finished, tmp_path, monkeypatch):
    config, workdir, _, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "refiner.safetensors").unlink()
    monkeypatch.setattr(refine, "_LEAST", 10_000)
    lines = []
    retrain.make_masks(config, tmp_path / "run", report=lines.append)
    assert any("rules alone" in line and "no mask of 10000 pixels" in line for line in lines)

  def test_refusals(self, finished, tmp_path):
    config, workdir, _, _ = finished
    with pytest.raises(InputError, match="another configuration"):
      retrain.run(first_config(seed=5), workdir, report=quiet)
    with pytest.raises(InputError, match="holds no finished run"):
      retrain.run(config, tmp_path, report=quiet)
    shutil.copytree(workdir, tmp_path / "run")
    masks, boxes = map(sorted, split_of(workdir))
    content = {"mask_ids": masks + boxes, "box_ids": []}
    (tmp_path / "run" / "split.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no boxes"):
      retrain.run(config, tmp_path / "run", report=quiet)
    (tmp_path / "run" / "split.json").unlink()
    with pytest.raises(InputError, match="is no run"):
      retrain.run(config, tmp_path / "run", report=quiet)


class TestPseudoMasks:
  def opened(self, folder):
    config = first_config(arm="retrained", data__pseudo_masks=str(folder))
    return training_set.open_training_set(config, report=quiet)

  def test_any_folder_of_pngs_will_do(self, finished, tmp_path):
    """Those of another tool: here one that knows nothing, so that all is void."""
    config, workdir, _, _ = finished
    masks, boxes = split_of(workdir)
    for name in boxes:
      Image.fromarray(np.full(SIZE, VOID, np.uint8)).save(tmp_path / f"{name}.png")
    training = self.opened(tmp_path)
    for index, record in enumerate(training.reader.records):
      assert (training.reader(index)["labels"] == VOID).all() == (record.image_id not in masks)

  def test_what_is_wrong_with_them_is_named(self, finished, tmp_path):
    _, workdir, _, _ = finished
    with pytest.raises(InputError, match="--mode=retrain"):
      self.opened("")
    shutil.copytree(workdir / "pseudo_masks" / "labels", tmp_path / "labels")
    first = min(split_of(workdir)[1])
    path = tmp_path / "labels" / f"{first}.png"
    for value, size, told in ((4, SIZE, "value 4"), (0, (16, 32), "32 x 16 pixels")):
      Image.fromarray(np.full(size, value, np.uint8)).save(path)
      training = self.opened(tmp_path / "labels")
      index = [record.image_id for record in training.reader.records].index(first)
      with pytest.raises(InputError, match=told) as raised:
        training.reader(index)
      assert str(path) in str(raised.value)
    path.unlink()
    with pytest.raises(InputError, match=f"no mask of image {first} is there"):
      self.opened(tmp_path / "labels")


class TestStudy:
  def test_the_first_run_comes_first_and_once(self, tmp_path):
    config, lines = first_config(study__arms=("retrained", "uncertainty")), []
    text = study.run(config, tmp_path, report=lines.append)
    name = "uncertainty-25pct-seed0"
    assert f"First {name}, whose masks it learns from" in lines
    assert f"[2/2] {name}: finished earlier" in lines
    rows = {row["arm"]: row for row in json.loads((tmp_path / "study.json").read_text())["cells"]}
    costs = [rows[arm]["annotation_hours"] for arm in ("retrained", "uncertainty")]
    assert costs[0] == costs[1] > 0
    again = []
    assert study.run(config, tmp_path, report=again.append) == text
    assert again == [
      "[1/2] retrained-25pct-seed0: finished earlier",
      f"[2/2] {name}: finished earlier",
    ]
