"""launch/bench_input.py: every row that can be measured here, and names of those that cannot."""

import json
import runpy
import subprocess
import sys

import numpy as np
from data_cases import annotation, make_labels, write_set
from PIL import Image
from places import ROOT

SCRIPT = ROOT / "launch" / "bench_input.py"


def made_config(folder):
  """A config file of two images with masks, PNGs of 20 x 30."""
  split = write_set(folder / "set" / "train", [annotation(1), annotation(2, image=2)])
  (split / "labels").mkdir()
  for number, name in enumerate(("a", "b")):
    labels = Image.fromarray(make_labels((20, 30), number))
    labels.save(split / "labels" / f"{name}.png")
  config = folder / "config.py"
  config.write_text(
    "from boxseg_jax import config as defaults\n"
    "def get_config():\n"
    "  config = defaults.get_config()\n"
    "  config.data.source = 'labels'\n"
    f"  config.data.root = {str(folder / 'set')!r}\n"
    "  config.data.class_names = ('background', 'car', 'person')\n"
    "  config.data.canvas = (16, 22)\n"
    "  return config\n"
  )
  return str(config)


def test_rows_and_what_is_left_out(tmp_path):
  # PyTorch is hidden: it would take long to load where it is installed.
  code = (
    "import runpy, sys; sys.modules['torch'] = None; "
    f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
  )
  options = ["--batches=3", "--repeats=1", "--batch-size=2", "--canvas", "16", "24"]
  written = tmp_path / "new" / "input.json"
  done = subprocess.run(
    [sys.executable, "-c", code, made_config(tmp_path), *options, f"--to={written}"],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  content = json.loads(written.read_text())
  assert list(content["rows"]) == ["decode", "feed numpy", "feed tf"]
  assert all(row["per_core"] > 1 for row in content["rows"].values())
  assert set(content["left_out"]) == {"DataLoader", "DataLoader, our reader"}
  assert content["canvas"] == [16, 24] and content["images"] == 2
  assert {"python", "pillow", "libjpeg-turbo"} <= content["versions"].keys()
  assert "| feed tf |" in done.stdout and "DataLoader left out: " in done.stdout


def test_both_data_sets_do_the_same_work(tmp_path):
  script = runpy.run_path(str(SCRIPT))
  reader = script["_open_reader"](runpy.run_path(made_config(tmp_path))["get_config"](), "")
  for index in range(2):
    ours, plain = script["_ReaderDataset"](reader)[index], script["_PlainDataset"](reader)[index]
    assert ours.keys() == plain.keys()
    for name in ours.keys() - {"image_id"}:
      np.testing.assert_array_equal(ours[name], plain[name], name)
