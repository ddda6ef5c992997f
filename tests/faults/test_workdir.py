"""Workdirs that cannot be written or are in use, and clocks that cannot be trusted."""

import json
import os
import signal
import subprocess
from functools import partial

import drill
import pytest

from boxseg_jax import files
from boxseg_jax.errors import InputError


def test_a_file_in_its_place(whole, cache, tmp_path):
  (tmp_path / "run").write_text("no folder")
  status, said = drill.run(tmp_path / "log", drill.arguments(whole[0], tmp_path / "run", cache))
  assert status == 2, said
  drill.assert_told(said, f"error: the workdir {tmp_path}/run cannot be used")


def remounted(place, how):
  done = subprocess.run(["mount", "-o", f"remount,{how}", place], capture_output=True, check=False)
  if done.returncode:
    pytest.skip(f"nothing can be remounted here: {done.stderr.decode().strip()}")


def test_a_folder_that_is_not_to_be_written_to(whole, cache, small_disk, tmp_path):
  remounted(small_disk, "ro")
  for workdir in (small_disk, small_disk / "run"):
    status, said = drill.run(tmp_path / "log", drill.arguments(whole[0], workdir, cache))
    assert status == 2, said
    drill.assert_told(said, f"error: {'the workdir ' if workdir != small_disk else ''}{workdir}")
    drill.assert_told(said, "Read-only file system")


def test_two_runs_in_one_workdir(whole, cache, tmp_path):
  """The second is refused, a look at the first is not; when it is killed, the next may begin."""
  args = drill.arguments(whole[0], tmp_path / "run", cache)
  first = drill.Child(tmp_path / "first", args, partial(drill.when, "step", 8, signal.pause))
  first.waits_for("step 6/12")
  second = drill.Child(tmp_path / "second", args)
  status, said = second.ends()
  assert status == 2, said
  drill.assert_told(said, f"error: the workdir {tmp_path}/run is in use by process")
  drill.assert_told(said, f"process {first.process.pid} on ")
  status, said = drill.run(tmp_path / "look", [*args, "--mode=evaluate"])
  assert status == 0, said
  first.process.kill()
  first.ends()
  with files.locked(tmp_path / "run" / ".lock", "it", print):
    pass


class TestLock:
  def test_one_at_a_time_in_this_process_too(self, tmp_path):
    lines = []

    def enter():
      return files.locked(tmp_path / "lock", "it", lines.append)

    words = f"it is in use by process {os.getpid()} on "
    with enter(), pytest.raises(InputError, match=words), enter():
      raise AssertionError("two are in there")
    with enter():
      assert not lines

  def test_a_file_system_without_locks_is_told(self, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("fcntl.flock", drill.no_locks)
    with files.locked(tmp_path / "lock", "it", lines.append):
      pass
    assert len(lines) == 1 and "it: no lock (" in lines[0]


@drill.nightly
def test_wall_clock_that_goes_back(whole, cache, tmp_path):
  args = drill.arguments(whole[0], tmp_path / "run", cache)
  status, said = drill.run(tmp_path / "log", args, drill.wall_clock_that_goes_back)
  assert status == 0, said
  drill.assert_told(said)
  drill.assert_same_run(whole[0], whole[1], tmp_path / "run")
  lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  of_speed = [v for x in lines for k, v in x.items() if "per_second" in k or "share" in k]
  assert of_speed and all(value is None or value >= 0 for value in of_speed)
  (start,) = json.loads((tmp_path / "run/starts.json").read_text())
  assert start["seconds"] >= 0
