"""Files of a checkpoint that are no longer what was written."""

import shutil

import drill
import numpy as np
import pytest

import boxseg_jax
from boxseg_jax.errors import InputError
from boxseg_jax.training import checksums
from boxseg_jax.training.checkpoint import Checkpoints, damages

NEWEST = 3 * drill.EVERY
BEFORE = 2 * drill.EVERY


def largest(folder):
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
  path = largest(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
  path = largest(folder)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def remove(folder):
  largest(folder).unlink()


def spoil_metrics(folder):
  path = folder / "metrics" / "metrics"
  path.write_text(path.read_text()[:-3])


@pytest.fixture
def workdir(killed, tmp_path):
  return shutil.copytree(killed, tmp_path / "run")


@pytest.mark.parametrize("harm", [truncate, flip, remove])
def test_it_is_set_aside(harm, workdir):
  lines = []
  harm(workdir / "checkpoints" / str(NEWEST))
  with open_to_write(workdir, lines) as checkpoints:
    assert checkpoints.latest_step() == BEFORE
  assert len(lines) == 1 and f"step {NEWEST} is damaged (default/" in lines[0]
  assert (workdir / "damaged" / str(NEWEST) / "default").is_dir()


ALL = [flip, *(pytest.param(harm, marks=drill.nightly) for harm in (truncate, remove))]


@pytest.mark.parametrize("harm", ALL)
def test_the_one_before_is_used_and_the_step_saved_again(harm, workdir, whole, cache, tmp_path):
  harm(workdir / "checkpoints" / str(NEWEST))
  status, said = drill.run(tmp_path / "log", drill.arguments(whole[0], workdir, cache))
  assert status == 0, said
  drill.assert_told(said, f"The checkpoint of step {NEWEST} is damaged (default/")
  drill.assert_told(said, f"moved to {workdir}/damaged/{NEWEST}", f"checkpoint of step {BEFORE}.")
  assert not damages(workdir / "checkpoints")
  assert set(drill.steps_of(workdir)) >= {NEWEST, 4 * drill.EVERY}
  drill.assert_same_run(whole[0], whole[1], workdir)


def open_to_write(workdir, lines):
  return Checkpoints(workdir, keep=2, best_metric="foreground_iou", report=lines.append)


def test_damaged_metrics_of_the_best_one_do_not_keep_the_others_away(workdir):
  lines = []
  spoil_metrics(workdir / "checkpoints" / str(BEFORE))
  with pytest.raises(InputError, match=f"holds what is damaged: step {BEFORE} .metrics/"):
    boxseg_jax.load(workdir)
  with open_to_write(workdir, lines) as checkpoints:
    assert NEWEST in checkpoints.steps() and BEFORE not in checkpoints.steps()
  assert len(lines) == 1 and f"step {BEFORE} is damaged (metrics/" in lines[0]


def test_every_checkpoint_damaged_is_no_new_beginning(workdir):
  for folder in (workdir / "checkpoints").iterdir():
    flip(folder)
  with pytest.raises(InputError, match=f"every checkpoint in .* of step {NEWEST}, as default/"):
    open_to_write(workdir, [])
  assert NEWEST in drill.steps_of(workdir)  # nothing was moved


def test_every_single_byte_counts(workdir):
  """A flipped bit anywhere below the folder is found; Orbax by itself lets many pass."""
  folder, rng = workdir / "checkpoints" / str(NEWEST), np.random.default_rng(0)
  files = [path for path in folder.glob("*/**/*") if path.is_file() and path.stat().st_size]
  assert len(files) > 5 and checksums.damage(folder) is None
  for path in files:
    content = path.read_bytes()
    spoiled = bytearray(content)
    spoiled[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(spoiled)
    assert path.name in checksums.damage(folder)
    path.write_bytes(content)
  assert checksums.damage(folder) is None


def test_checkpoints_without_checksums_are_read(workdir):
  """As earlier versions wrote them."""
  for path in (workdir / "checkpoints").glob(f"*/{checksums.FILE}"):
    path.unlink()
  assert boxseg_jax.load(workdir, step=NEWEST).network.description["step"] == NEWEST


class TestReadingATrainedNetwork:
  def test_by_load(self, workdir):
    flip(workdir / "checkpoints" / str(NEWEST))
    words = f"checkpoints/{NEWEST} is damaged: default/.*remove it .*steps: .*{BEFORE}"
    with pytest.raises(InputError, match=words):
      boxseg_jax.load(workdir, step=NEWEST)
    assert boxseg_jax.load(workdir, step=BEFORE).network.description["step"] == BEFORE

  def test_by_evaluate_uses_the_next_best(self, workdir, whole, cache, tmp_path):
    flip(workdir / "checkpoints" / str(BEFORE))  # the evaluated one
    args = drill.arguments(whole[0], workdir, cache, "--mode=evaluate")
    status, said = drill.run(tmp_path / "log", args)
    assert status == 0, said
    drill.assert_told(said, "Using another one: ", f"checkpoints/{BEFORE} is damaged")
    drill.assert_told(said, f"Evaluating the checkpoint of step {NEWEST}.")
