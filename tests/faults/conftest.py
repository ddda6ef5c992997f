"""A run that nothing befalls, which those of the drills are compared with, and small disks."""

import shutil
import signal
import subprocess
from functools import partial

import drill
import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """Compiled programs of the children."""
  return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def whole(tmp_path_factory, cache):
  """(configuration, workdir) of a run that nothing interrupts."""
  config, folder = drill.small(), tmp_path_factory.mktemp("whole")
  status, said = drill.run(folder / "log", drill.arguments(config, folder / "run", cache))
  assert status == 0, said
  return config, folder / "run"


@pytest.fixture(scope="session")
def killed(tmp_path_factory, cache, whole):
  """The workdir of the same run, killed between its third and its last checkpoint."""
  folder = tmp_path_factory.mktemp("killed")
  die = partial(drill.signalled, signal.SIGKILL)
  status, said = drill.run(
    folder / "log",
    drill.arguments(whole[0], folder / "run", cache),
    # When it begins to save the fourth: by then the third is complete.
    partial(drill.when, "commit", 4, die),
  )
  assert status == -signal.SIGKILL, said
  assert drill.steps_of(folder / "run")[-1] == 3 * drill.EVERY
  return folder / "run"


@pytest.fixture
def small_disk(tmp_path):
  """A folder with a file system of its own, of eight megabytes; skipped where none can be."""
  if shutil.which("mount") is None:
    pytest.skip("there is no mount here")
  place = tmp_path / "disk"
  place.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
  done = subprocess.run(mount, capture_output=True, text=True, check=False)
  if done.returncode:
    pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
  yield place
  subprocess.run(["umount", "--lazy", str(place)], check=True)
