"""Traces of training steps: those that were asked for, whatever becomes of the run."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from boxseg_jax.errors import InputError
from boxseg_jax.training import trace


def steps_in(folder):
  """Numbers of the steps in the one trace of a folder, as TensorBoard reads them."""
  (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
  planes = jax.profiler.ProfileData.from_file(str(path)).planes
  events = [event for plane in planes for line in plane.lines for event in line.events]
  return [dict(event.stats)["step_num"] for event in events if event.name == "train"]


def take(folder, asked, *, start_step=0, count=6):
  """Sums up ones, `count` times."""
  step = jax.jit(lambda state, batch: (state + batch, {"before": state}))
  state = jnp.zeros(())
  with trace.traced(step, folder, asked, start_step=start_step) as train_step:
    for _ in range(count):
      state, metrics = train_step(state, 1.0)
  assert (state, metrics["before"]) == (count, count - 1)


def test_the_steps_that_were_asked_for(tmp_path):
  take(tmp_path / "new", (3, 4))
  assert steps_in(tmp_path / "new") == [3, 4]


@pytest.mark.parametrize(
  ("start_step", "count", "expected"), [(3, 6, [4, 5]), (2, 2, [3, 4])], ids=["begins", "ends"]
)
def test_a_run_within_them_has_what_it_takes_of_them(tmp_path, start_step, count, expected):
  take(tmp_path, (3, 5), start_step=start_step, count=count)
  assert steps_in(tmp_path) == expected


def test_what_stops_a_run_leaves_the_trace_so_far(tmp_path):
  def fails(state, batch):
    raise KeyboardInterrupt

  with (
    pytest.raises(KeyboardInterrupt),
    trace.traced(fails, tmp_path, (1, 9), start_step=0) as train_step,
  ):
    train_step(0, 0)
  assert steps_in(tmp_path) == [1]
  take(tmp_path / "next", (1, 1))  # the profiler is free again
  assert steps_in(tmp_path / "next") == [1]


@pytest.mark.parametrize("asked", [(), (1, 3), (20, 30)])
def test_nothing_is_written_where_no_such_step_comes(tmp_path, asked):
  take(tmp_path, asked, start_step=4)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "steps"), [("", ()), ("20:24", (20, 24)), ("3:3", (3, 3))])
def test_steps_as_the_command_line_has_them(text, steps):
  assert trace.read_steps(text) == steps
  trace.check(steps, 24)


@pytest.mark.parametrize("text", ["3", "3:", "1:2:3", "a:b", "-1:3", "1.5:2", "(1, 2)"])
def test_steps_written_otherwise_are_refused(text):
  with pytest.raises(InputError, match="first:last"):
    trace.read_steps(text)


def test_the_command_line_takes_them(tmp_path):
  command = [sys.executable, "-m", "boxseg_jax.main", f"--workdir={tmp_path}"]
  child = subprocess.run(
    [*command, "--profile_steps=299:301"], check=False, capture_output=True, text=True, timeout=100
  )
  assert (child.returncode, child.stdout) == (2, "")
  assert child.stderr.endswith("error: steps to trace are from 1 to 300, not 299 to 301\n")


@pytest.mark.parametrize("steps", [(0, 3), (4, 3), (299, 301)])
def test_steps_that_never_come_are_refused(steps):
  with pytest.raises(InputError, match="from 1 to 300"):
    trace.check(steps, 300)
