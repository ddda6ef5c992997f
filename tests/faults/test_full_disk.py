"""A disk that is full when something is to be saved."""

from functools import partial

import drill
import pytest

EVERY = drill.EVERY


def test_stops_with_the_last_good_checkpoint_and_goes_on_when_there_is_space(
  whole, cache, small_disk
):
  config, workdir, ballast = whole[0], small_disk / "run", small_disk / "ballast"
  args = drill.arguments(config, workdir, cache)
  fill = partial(drill.when, "save", 2, partial(drill.filled, ballast))
  status, said = drill.run(small_disk.parent / "log", args, fill)
  assert status not in (0, None), said
  drill.assert_told(said, "error: the checkpoint of step 6", "No space left on device")
  assert drill.steps_of(workdir) == [EVERY]
  assert not (workdir / "result.json").exists()
  drill.freed(ballast)
  status, said = drill.run(small_disk.parent / "log", args)
  assert status == 0, said
  drill.assert_told(said, f"checkpoint of step {EVERY}.")
  drill.assert_same_run(config, whole[1], workdir)


def test_goes_on_if_told_to(whole, cache, small_disk):
  config, workdir, ballast = whole[0], small_disk / "run", small_disk / "ballast"
  args = drill.arguments(config, workdir, cache, "--config.train.on_failed_write=go_on")
  fill = partial(drill.when, "save", 2, partial(drill.filled, ballast))
  free = partial(drill.when, "log and save", 4, partial(drill.freed, ballast))
  status, said = drill.run(small_disk.parent / "log", args, fill, free)
  assert status == 0, said
  drill.assert_told(said, "Going on without: ", "No space left on device")
  # The third one is tried and fails, too: what it had written is gone before the fourth.
  assert drill.steps_of(workdir) == [EVERY, 4 * EVERY]
  drill.assert_same_run(config, whole[1], workdir)


@drill.nightly
def test_the_last_checkpoint_has_to_succeed(whole, cache, small_disk):
  workdir, ballast = small_disk / "run", small_disk / "ballast"
  args = drill.arguments(whole[0], workdir, cache, "--config.train.on_failed_write=go_on")
  fill = partial(drill.when, "save", 4, partial(drill.filled, ballast))
  status, said = drill.run(small_disk.parent / "log", args, fill)
  assert status not in (0, None), said
  drill.assert_told(said, "error: ", f"step {4 * EVERY}", "No space left on device")
  assert not (workdir / "result.json").exists()


@pytest.mark.parametrize("policy", ["stop", pytest.param("go_on", marks=drill.nightly)])
def test_files_that_may_not_grow(policy, whole, cache, tmp_path):
  """Wherever nothing can be mounted: a limit on the size of each file, which a checkpoint meets."""
  workdir = tmp_path / "run"
  args = drill.arguments(whole[0], workdir, cache, f"--config.train.on_failed_write={policy}")
  limit = partial(drill.when, "save", 2, partial(drill.files_limited, 2**11))
  status, said = drill.run(tmp_path / "log", args, limit)
  assert status not in (0, None), said
  drill.assert_told(said, "error: ", "File too large")
  assert ("Going on without: " in said) == (policy == "go_on")
  assert drill.steps_of(workdir) == [EVERY]
