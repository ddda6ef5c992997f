"""launch/bench_predict.py: every row, on a tiny network."""

import json
import subprocess
import sys

from data_cases import make_image
from PIL import Image
from places import ROOT
from test_run import small

from boxseg_jax.training import loop

SCRIPT = ROOT / "launch" / "bench_predict.py"


def bench(*options):
  return subprocess.run(
    [sys.executable, str(SCRIPT), *map(str, options)],
    capture_output=True,
    text=True,
    timeout=300,
    cwd=ROOT,
  )


def test_rows_and_refusals(tmp_path):
  config = small(train__num_steps=1, train__checkpoint_every=1, eval__box_images=0)
  loop.train(config, tmp_path / "run", report=lambda line: None)
  for number in range(3):
    Image.fromarray(make_image((40, 50), number)).save(tmp_path / f"photo{number}.png")
  options = ["--num=8", "--repeats=1", "--batch-size=2", f"--to={tmp_path / 'out.json'}"]
  done = bench(tmp_path / "run", f"--images={tmp_path}/photo*", *options)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "out.json").read_text())
  assert list(found["images_per_second"]) == [
    "network",
    "at the images' size",
    "predict",
    "predict, files written",
  ]
  assert all(rate > 0 for rate in found["images_per_second"].values())
  assert found["images"] == 3
  for rate in found["images_per_second"].values():
    assert f"{rate:.1f}" in done.stdout
  wrong = bench(tmp_path, f"--images={tmp_path}")
  assert wrong.returncode == 1 and "network.json" in wrong.stderr
