"""A trace of some training steps, which TensorBoard's profile plugin and XProf open."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from boxseg_jax.errors import InputError


def read_steps(text: str) -> tuple[int, ...]:
  """(first, last) of "first:last", () of "".

  Raises:
    InputError: it is written otherwise.
  """
  if not text:
    return ()
  numbers = text.split(":")
  if len(numbers) != 2 or not all(map(str.isdecimal, numbers)):
    raise InputError(f"--profile_steps is written first:last, such as 20:24, not {text}")
  return tuple(map(int, numbers))


def check(steps: tuple[int, ...], num_steps: int) -> None:
  """Refuses to trace what a run of so many steps never comes to.

  Args:
    steps: (first, last), counted from 1, or () for no trace.
    num_steps: of the run.

  Raises:
    InputError: the steps are none of the run.
  """
  if steps and not 1 <= steps[0] <= steps[-1] <= num_steps:
    raise InputError(f"steps to trace are from 1 to {num_steps}, not {steps[0]} to {steps[-1]}")


@contextlib.contextmanager
def traced(
  train_step: Callable, folder: str | Path, steps: tuple[int, ...], *, start_step: int
) -> Iterator[Callable]:
  """Context in which the training step is traced when the steps come that are asked for.

  Writing the trace takes seconds, and a traced step is slower than others, so the rates that the
  log has for these steps are too low. A run that stops within them leaves what there is.

  Args:
    train_step: compiled `(state, batch) -> (state, metrics)`.
    folder: where the trace is written, made where it is missing.
    steps: (first, last), counted from 1, or () for no trace.
    start_step: steps that were taken before the first call.

  Yields:
    `train_step`, or what does the same and counts its calls.
  """
  if not steps:
    yield train_step
    return
  traced_step = _TracedStep(train_step, folder, steps, start_step)
  try:
    yield traced_step
  finally:
    traced_step.stop()


class _TracedStep:
  """A training step that knows its number."""

  def __init__(self, train_step, folder, steps, start_step):
    self._train_step, self._folder = train_step, folder
    self._first, self._last = steps
    self._step = start_step
    self._running = False

  def __call__(self, state, batch):
    self._step += 1
    # A run that goes on from a step in between has the rest of them.
    if self._first <= self._step <= self._last and not self._running:
      jax.profiler.start_trace(self._folder)
      self._running = True
    with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
      state, metrics = self._train_step(state, batch)
    if self._step == self._last:
      jax.block_until_ready(metrics)  # the call returned before the devices were done
      self.stop()
    return state, metrics

  def stop(self):
    if self._running:
      jax.profiler.stop_trace()
    self._running = False
