"""launch/bench_train.py: tiny rows of ours, PyTorch's where it is, names of what is not."""

import json
import os
import runpy
import subprocess
import sys

import pytest
from places import ROOT

SCRIPT = ROOT / "launch" / "bench_train.py"
TINY = ["--networks=unet-conv", "--sizes=32x32", "--batch-size=2", "--steps=2", "--repeats=1"]


def bench(*options, **environment):
  # One thread: on a busy machine PyTorch's wait for each other.
  quiet = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "OMP_NUM_THREADS": "1", **environment}
  return subprocess.run(
    [sys.executable, str(SCRIPT), *options],
    capture_output=True,
    text=True,
    timeout=1200,
    cwd=ROOT,
    env={**os.environ, **quiet},
    check=False,
  )


def row(framework="jax", **changes):
  made = {
    "network": "unet-r34",
    "size": [360, 480],
    "dtype": "bfloat16",
    "batch_size": 8,
    "framework": framework,
    "method": False,
    "how": "XLA",
    "note": "",
    "device": "NVIDIA L4",
    "images_per_second": 80.0,
    "seconds_per_step": 0.1,
    "flops_per_step": 10**12,
    "parameters": 24_429_413,
    "first_step_seconds": 20.0,
    "memory_bytes": None,
  }
  return made | changes


def test_ours_and_what_is_left_out(tmp_path):
  # A PyTorch that cannot be imported, whether it is installed or not.
  (tmp_path / "torch.py").write_text("raise ImportError('hidden from this test')\n")
  hidden = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
  options = [*TINY, "--frameworks", "jax", "torch", "smp", f"--to={tmp_path / 'new' / 'train'}"]
  done = bench(*options, PYTHONPATH=hidden)
  assert done.returncode == 0, done.stdout + done.stderr
  content = json.loads((tmp_path / "new" / "train.json").read_text())
  (ours,) = content["rows"]
  assert ours["images_per_second"] * ours["seconds_per_step"] == pytest.approx(2)
  assert ours["flops_per_second"] * ours["seconds_per_step"] == pytest.approx(
    ours["flops_per_step"]
  )
  # PyTorch's own counter says 499_777_536 of the same network.
  assert ours["flops_per_step"] == pytest.approx(499_777_536, rel=0.05)
  assert ours["parameters"] == 488_052 + 17 and ours["seconds_per_step_from_host"] > 0
  assert set(content["left_out"]) == {
    "torch unet-conv 32x32 float32",
    "smp unet-conv 32x32 float32",
  }
  assert all("hidden from this test" in why for why in content["left_out"].values())
  assert content["device"] == "cpu" and {"python", "jax"} <= content["versions"].keys()
  assert "jax unet-conv 32x32 float32: utilisation left out: " in done.stdout
  assert "| unet-conv 32x32 | float32 | 2 | jax (XLA) |" in done.stdout
  assert (tmp_path / "new" / "train.md").read_text() in done.stdout


def test_unequal_work_is_told():
  compare = runpy.run_path(str(SCRIPT))["compare"]
  same = row("torch", parameters=24_429_380, flops_per_step=1.01e12, seconds_per_step=0.15)
  unequal, rows = compare([row(), same])
  assert not unequal and rows[1]["ours_to_this"] == pytest.approx(1.5)
  assert "ours_to_this" not in rows[0]
  other = row("smp", parameters=27_000_000, flops_per_step=1.4e12)
  unequal, _ = compare([row(), other])
  assert len(unequal) == 2
  assert "parameters +10.5% of ours" in unequal[0] and "flops per step +40.0%" in unequal[1]
  unequal, _ = compare([row(), row("torch", device="cpu")])
  assert unequal == ["torch unet-r34 360x480 bfloat16 ran on cpu, ours on NVIDIA L4"]
  assert compare([row("torch")]) == ([], [row("torch")])  # nothing to compare with


def test_the_page():
  script = runpy.run_path(str(SCRIPT))
  mine = row(peak_flops_per_second=121e12)
  case = {"step": "+ loss", "seconds": 0.11, "over_cross_entropy": 0.1}
  mine |= {"method": True, "taken_apart": {"cases": [case]}}
  theirs = row("torch", note="torch.compile failed, so it runs eagerly: why", how="eager")
  about = {"device": "NVIDIA L4", "host cores": 4, "load before": 0.1, "command": "python x"}
  unequal, rows = script["compare"]([mine, theirs])
  page = script["page"](about | {"versions": {"jax": "1"}}, rows, unequal, {"smp x": "not here"})
  assert page.count("| 8.3% |") == 2  # 10 of 121 TFLOP/s, for both
  assert "| torch (eager) | 80 | 1.00x | 100 | 1000 |" in page
  assert "torch.compile failed" in page and "- smp x left out: not here" in page
  assert "| unet-r34 360x480 bfloat16 | + loss | 110 | +10.0% |" in page


@pytest.mark.parametrize(
  "options", [["--classes=2"], ["--sizes=480"], ["--steps=0"], ["--networks=unet"]]
)
def test_wrong_options_are_refused(options):
  done = bench(*options)
  assert done.returncode == 2 and "error: " in done.stderr


class TestPyTorch:
  @pytest.fixture(scope="class")
  def script(self):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return runpy.run_path(str(ROOT / "launch" / "bench_train_torch.py"))

  @pytest.mark.parametrize(
    # As tests/test_models.py has them, where logits of four classes and sigma make five.
    ("name", "count"),
    [
      ("unet-conv", 488_069),
      ("unet-r34", 24_429_413),
      ("erfnet", 2_060_884),
      ("deeplabv3plus-r50", 40_348_069),
    ],
  )
  def test_networks_have_our_parameters_and_sizes(self, script, name, count):
    import torch

    torch.set_num_threads(1)
    network = script["NETWORKS"]["torch"][name](5)
    assert network(torch.zeros(2, 3, 38, 26)).shape == (2, 5, 38, 26)
    assert sum(parameter.numel() for parameter in network.parameters()) == count

  def test_a_row(self, script, tmp_path):
    options = [*TINY, "--frameworks", "torch-eager", f"--to={tmp_path / 'train'}"]
    done = bench(*options, "--dtypes", "bfloat16")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert found["parameters"] == 488_052 and found["flops_per_step"] == 499_777_536
    assert found["images_per_second"] * found["seconds_per_step"] == pytest.approx(2)
