"""launch/bench_label.py: its numbers on a set whose boxes are made by hand."""

import json
import runpy
import subprocess
import sys

import numpy as np
import pytest
from data_cases import annotation, rectangle, write_set
from places import ROOT
from test_run import small

from boxseg_jax.training import loop

SCRIPT = ROOT / "launch" / "bench_label.py"


def test_iou_of_parts():
  iou = runpy.run_path(str(SCRIPT))["_iou"]
  one = (2, 3, np.ones((4, 5), bool))
  assert iou(one, one) == 1
  assert iou(one, (4, 3, np.ones((4, 5), bool))) == pytest.approx(10 / 30)
  assert iou(one, (20, 3, np.ones((4, 5), bool))) == 0
  whole = np.zeros((30, 30), bool)
  whole[2:6, 3:5] = True
  assert iou(one, (0, 0, whole)) == pytest.approx(8 / 20)


def test_rows_and_refusals(tmp_path):
  pytest.importorskip("cv2", reason="OpenCV is not installed")
  names = ("background", "car", "person")
  boxes = [
    annotation(1, 1, 3, (5, 5, 30, 20), segmentation=rectangle(5, 5, 15, 20)),
    annotation(2, 1, 3, (5, 5, 30, 20), iscrowd=1, segmentation=rectangle(5, 5, 30, 20)),
    annotation(3, 2, 7, (40, 10, 20, 30), segmentation=rectangle(40, 10, 20, 30)),
    annotation(4, 2, 7, (2, 2, 5, 5), segmentation=rectangle(2, 2, 5, 5)),  # too small to count
  ]
  for split in ("train", "test"):
    write_set(tmp_path / "set" / split, boxes, size=(60, 90))
  config = small(
    data__source="coco",
    data__root=str(tmp_path / "set"),
    data__class_names=names,
    data__mask_fraction=1.0,
    train__num_steps=1,
    train__checkpoint_every=1,
    eval__box_images=0,
    eval__pictures=0,
  )
  loop.train(config, tmp_path / "run", report=lambda line: None)
  call = [sys.executable, str(SCRIPT), f"{ROOT / 'configs' / 'nuclei.py'}={tmp_path / 'run'}"]
  call += [f"--root={tmp_path / 'set'}", f"--to={tmp_path / 'label'}"]
  done = subprocess.run(call, capture_output=True, text=True, timeout=300, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  (found,) = json.loads((tmp_path / "label.json").read_text())["sets"]
  whole = found["whole"]
  assert (whole["photos"], whole["boxes"]) == (2, 2)
  assert whole["box"]["iou"] == pytest.approx(0.75, abs=0.02)  # half of one box, all of the other
  assert found["subset"]["boxes"] == 2
  assert found["refined"] is False
  assert 0 < whole["ours"]["iou"] < 1 and whole["ours"]["boxes_per_second"] > 0
  assert "nuclei test, subset" in done.stdout
  assert "nuclei test, subset" in (tmp_path / "label.md").read_text()
  call[2] = f"{ROOT / 'configs' / 'nuclei.py'}={tmp_path}"
  done = subprocess.run(call, capture_output=True, text=True, timeout=300, cwd=ROOT)
  assert done.returncode == 1 and "network.json" in done.stderr
