"""launch/nightly_fuzz.py: two thousand damaged files, and its alarms."""

import os
import runpy
import subprocess
import sys
import time

import pytest
from places import ROOT

from boxseg_jax.data import images
from boxseg_jax.errors import InputError

sys.path.insert(0, str(ROOT / "launch"))
import nightly_fuzz

SCRIPT = ROOT / "launch" / "nightly_fuzz.py"


def test_two_thousand_inputs_are_read_right_or_refused_by_name(tmp_path):
  done = subprocess.run(
    [sys.executable, str(SCRIPT), "--inputs=2000", "--seed=1", f"--keep={tmp_path}"],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  counts = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
  seen = {(kind, outcome): int(count) for kind, outcome, count in counts}
  assert sum(seen.values()) == 2000
  for kind in ("coco", "label", "jpeg", "png", "polygons"):
    assert seen[kind, "read"] > 20 and seen[kind, "refused"] > 20, kind


def test_inputs_depend_on_their_number_alone():
  later = [nightly_fuzz.make_input(3, number) for number in range(40, 60)]
  again = runpy.run_path(str(SCRIPT))["make_input"]
  assert [again(3, number) for number in reversed(range(40, 60))][::-1] == later
  assert len({content for _, _, content in later}) > 15


@pytest.mark.parametrize("fault", [ValueError("broken"), InputError("names no file"), "all black"])
def test_what_is_no_reading_and_no_named_refusal_is_a_finding(tmp_path, monkeypatch, fault):
  nightly_fuzz._write_valid(tmp_path)
  whole = images.read_index_image

  def read(path, size):
    if isinstance(fault, Exception):
      raise fault
    return whole(path, size) * 100  # no class

  monkeypatch.setattr(images, "read_index_image", read)
  name, content = "labels/a.png", (tmp_path / "train/labels/a.png").read_bytes()
  if isinstance(fault, ValueError):
    with pytest.raises(ValueError, match="broken"):
      nightly_fuzz.read(tmp_path, "label", name, content)
  elif isinstance(fault, InputError):
    with pytest.raises(AssertionError, match="names no file"):
      nightly_fuzz.read(tmp_path, "label", name, content)
  else:
    assert nightly_fuzz.read(tmp_path, "label", name, content) == "refused"


def _dies_or_hangs(pipe, seed, first, last, root):
  """Stands in for the child."""
  for number in range(first, last):
    if number == 1:
      os._exit(9)
    if number == 3:
      time.sleep(600)
    pipe.send((number, "coco", "read", ""))


def test_a_death_and_a_hang_are_kept_with_their_input_and_survived(tmp_path, monkeypatch):
  monkeypatch.setattr(nightly_fuzz, "_child", _dies_or_hangs)
  monkeypatch.setattr(nightly_fuzz, "SECONDS", 1.0)
  counts, findings = nightly_fuzz.run(5, 0, tmp_path, report=print)
  killed = [text for text in findings if "killed" in text]
  assert counts["coco", "read"] == 3 and len(killed) == len(findings) == 2
  assert sorted(path.name[:8] for path in tmp_path.iterdir()) == ["0-000001", "0-000003"]
  for folder in tmp_path.iterdir():
    assert len(list(folder.iterdir())) == 2
