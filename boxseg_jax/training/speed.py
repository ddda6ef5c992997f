"""How fast a training step is: compiled once, without a cache, and timed as the loop runs it."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from boxseg_jax.parallel import Step
from boxseg_jax.training import flops


class Program(NamedTuple):
  """A compiled step, and what is known of it before it runs; all of one device.

  Attributes:
    run: `(state, batch) -> (state, metrics)`; the state's buffers are reused.
    flops: of the convolutions and matrix products of one step, see `flops.count`.
    xla_flops: of one step, as XLA's analysis of the compiled program has it; None where it has
      none. What it leaves out is told in `flops`.
    trace_seconds: from Python to what XLA takes.
    compile_seconds: what XLA took, with nothing of it cached.
    memory_bytes: what the program holds at once: state, batch and all that lies between.
  """

  run: Callable
  flops: int
  xla_flops: float | None
  trace_seconds: float
  compile_seconds: float
  memory_bytes: int | None


def compile_step(step: Step, state, batch) -> Program:
  """Compiles a step for these shapes; nothing is run.

  Args:
    step: of `Parallel.compile`, the state donated.
    state: on the devices.
    batch: on the devices.
  """
  started = time.perf_counter()
  lowered = step.lower(state, batch)
  traced = time.perf_counter()
  with _without_cache():
    compiled = lowered.compile()
  took = time.perf_counter() - traced
  costs = compiled.cost_analysis() or {}
  costs = costs[0] if isinstance(costs, list) else costs  # as earlier versions of JAX have it
  return Program(
    dataclasses.replace(step, run=compiled),
    flops.of_function(step, state, batch),
    costs.get("flops"),
    traced - started,
    took,
    _bytes_held(compiled.memory_analysis()),
  )


def _bytes_held(analysis) -> int | None:
  if analysis is None:
    return None
  own = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  return own - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes


@contextlib.contextmanager
def _without_cache():
  """What is compiled in this context is compiled afresh."""
  folder = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()  # it asks for the folder but once
  try:
    yield
  finally:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


def run_steps(run: Callable, state, batches: Iterable) -> tuple[Any, float]:
  """Takes a step for each batch, and waits for its metrics while the next one is under way.

  So does the training loop, and so neither the device nor the host waits for the other.

  Args:
    run: of a `Program`.
    state: on the devices; gone afterwards.
    batches: on the devices, or on their way.

  Returns:
    (state after the last step, seconds until the last step's metrics were there).
  """
  started, running = time.perf_counter(), None
  for batch in batches:
    state, metrics = run(state, batch)
    jax.device_get(running)
    running = metrics
  jax.device_get(running)
  return state, time.perf_counter() - started


def take_turns(timings: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
  """Times several things one after the other, again and again.

  Other work on the machine, and its clock's ups and downs, then meet all of them alike.

  Args:
    timings: by name; each does its work once and gives its seconds.
    repeats: how often.

  Returns:
    Seconds by name, sorted: the first is the best.
  """
  rounds = [{name: timing() for name, timing in timings.items()} for _ in range(repeats)]
  return {name: sorted(one[name] for one in rounds) for name in timings}


class Stepper:
  """A program with its state, to be timed again and again."""

  def __init__(self, program: Program, state, batch, *, steps: int):
    """Keeps them.

    Args:
      program: of `compile_step`.
      state: on the devices; taken over.
      batch: on the devices, used for every step of `on_device`.
      steps: that are timed at once.
    """
    self.program, self.steps = program, steps
    self._state, self._batch = state, batch

  def on_device(self, step: int = 0) -> float:
    """Seconds per step with the batch on the devices already.

    Args:
      step: which one the state is told that it is at.
    """
    at = jax.device_put(np.int32(step), self._state.step.sharding)
    self._state = self._state.replace(step=at)
    self._take([self._batch])  # fills what runs ahead
    return self._take([self._batch] * self.steps) / self.steps

  def fed(self, batches: Iterator, warm_up: int) -> float:
    """Seconds per step with batches that are made while it runs.

    Args:
      batches: on their way to the devices, at least warm_up + steps of them; more, so that what
        is read ahead after the last step makes up for what was ready before the first.
      warm_up: steps before those that count.
    """
    self._take(_first(batches, warm_up))
    return self._take(_first(batches, self.steps)) / self.steps

  def _take(self, batches):
    self._state, seconds = run_steps(self.program.run, self._state, batches)
    return seconds


def _first(batches: Iterator, count: int) -> Iterator:
  """The next ones, without asking for one more as `zip` and `enumerate` may."""
  for _ in range(count):
    yield next(batches)
