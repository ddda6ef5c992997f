"""Killed or told to stop at any moment, a run goes on and becomes what it would have been."""

import os
import re
import signal
from functools import partial

import drill
import numpy as np
import pytest

PHASES = ("data", "step", "save", "commit", "evaluation")


def start_and(number, phase, count, delay, *, config, workdir, cache):
  """Starts the run and sends it the signal. (exit status, what it said)."""
  complete = drill.steps_of(workdir)
  fault = partial(drill.when, phase, count, partial(drill.signalled, number, delay))
  status, said = drill.run(
    workdir.with_suffix(".log"), drill.arguments(config, workdir, cache), fault
  )
  went_on = re.findall(r"Going on from the checkpoint of step (\d+)", said)
  # The newest complete one, never half of one.
  assert all(int(step) == complete[-1] for step in went_on), said
  assert went_on or not complete or phase == "data", said
  drill.assert_told(said)
  return status, said


def finish(config, workdir, cache):
  status, said = drill.run(workdir.with_suffix(".log"), drill.arguments(config, workdir, cache))
  assert status == 0, said


def test_killed_in_every_phase(whole, cache, tmp_path):
  config, workdir = whole[0], tmp_path / "run"
  # Before there is a checkpoint; in the middle of the second; in the evaluation after a step that
  # has been done again.
  plan = [("step", 2), ("commit", 2), ("evaluation", 1)]
  for phase, count in plan:
    status, said = start_and(
      signal.SIGKILL, phase, count, 0.0, config=config, workdir=workdir, cache=cache
    )
    assert status == -signal.SIGKILL, said
  finish(config, workdir, cache)
  drill.assert_same_run(config, whole[1], workdir)


@drill.nightly
def test_told_to_stop_in_every_phase(cache, tmp_path):
  # So long that it has not ended before it is told.
  config, workdir = drill.small(train__num_steps=20 * drill.EVERY), tmp_path / "run"
  for phase, count in (("step", 2), ("commit", 1), ("evaluation", 1)):
    status, said = start_and(
      signal.SIGTERM, phase, count, 0.0, config=config, workdir=workdir, cache=cache
    )
    assert status == 0, said
    step = drill.steps_of(workdir)[-1]
    drill.assert_told(said, f"goes on from step {step}")
  finish(config, workdir, cache)
  finish(config, tmp_path / "undisturbed", cache)
  drill.assert_same_state(config, tmp_path / "undisturbed", workdir)
  drill.assert_each_step_once(workdir)


@drill.nightly
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "terminate"])
def test_many_random_moments(number, whole, cache, tmp_path):
  """BOXSEG_KILLS moments (25), drawn by BOXSEG_SEED (0); prints where they fall."""
  kills, seed = (int(os.environ.get(f"BOXSEG_{name}", default)) for name, default in SETTINGS)
  rng, fell = np.random.default_rng(seed), []
  while len(fell) < kills:
    workdir = tmp_path / f"run{len(fell)}"
    config = drill.small(train__num_steps=20 * drill.EVERY)
    # A run ends before many signals have met it: then another one begins.
    while len(fell) < kills:
      phase = PHASES[rng.integers(len(PHASES))]
      count = 1 if phase == "data" else int(rng.integers(1, 8 if phase == "step" else 3))
      delay = float(rng.choice([0.0, rng.uniform(0, 0.2)]))
      status, _ = start_and(
        number, phase, count, delay, config=config, workdir=workdir, cache=cache
      )
      if (workdir / "result.json").exists():
        break
      fell.append((phase, count, round(delay, 3), status, drill.steps_of(workdir)[-1:]))
      print(len(fell), *fell[-1], flush=True)
    finish(config, workdir, cache)
    undisturbed = tmp_path / "undisturbed"
    if not undisturbed.exists():
      finish(config, undisturbed, cache)
    drill.assert_same_state(config, undisturbed, workdir)
    if number == signal.SIGKILL:
      drill.assert_same_run(config, undisturbed, workdir)
    drill.assert_each_step_once(workdir)


SETTINGS = (("KILLS", "25"), ("SEED", "0"))
