"""Runs of the command line in child processes, and what befalls them on the way.

The children are forked from a server that has imported everything but has not yet started JAX, as
imports are most of a short run's time. Whatever is done to them is done by functions of this file;
the product knows nothing of it.
"""

import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from boxseg_jax import config as configuration
from boxseg_jax.training import checksums, loop
from boxseg_jax.training.checkpoint import Checkpoints
from boxseg_jax.training.run import Run

ROOT = Path(__file__).resolve().parents[2]
EVERY = 3  # steps between checkpoints
PATIENCE = 300  # seconds
NIGHTLY = os.environ.get("BOXSEG_NIGHTLY")
nightly = pytest.mark.skipif(not NIGHTLY, reason="launch/nightly_faults.sh runs it")

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["drill", "boxseg_jax.main", "boxseg_jax.apps.results"])
# What a line of the log says of the machine rather than of the training.
_OF_THE_MACHINE = ("images_per_second", "input_wait_share", "memory_gib")


def small(**changes):
  """A dozen steps with four checkpoints, two of them evaluated and drawn; little to compile."""
  config = configuration.get_config()
  values = {
    "data.shapes.num_train": 8,
    "data.shapes.num_eval": 2,
    "data.canvas": (32, 32),
    "data.mask_fraction": 0.25,
    "data.batch_size": 8,
    "data.pipeline": "numpy",
    "model.width": 2,
    "arm": "uncertainty_none",
    "train.num_steps": 4 * EVERY,
    "train.log_every": 2,
    "train.eval_every": 2 * EVERY,
    "train.checkpoint_every": EVERY,
    "eval.batch_size": 8,
    "eval.box_images": 0,
    "eval.pictures": 2,
  }
  config.update_from_flattened_dict(values)
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


def arguments(config, workdir, cache, *more):
  """Of the command line."""
  default = configuration.flatten(configuration.get_config())
  flat = configuration.flatten(config)
  changed = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in flat.items()
    if value != default[key]
  }
  flags = [f"--config.{key}={value}" for key, value in changed.items()]
  return [f"--workdir={workdir}", f"--compilation_cache={cache}", *flags, *more]


class Child:
  """A command in a process of its own."""

  def __init__(self, log, args, *faults):
    """Starts it; its output goes to the file `log`, and the faults are called before it begins."""
    self.log = Path(log)
    self.process = _SERVER.Process(target=_run, args=(str(log), list(args), faults))
    self.process.start()

  def ends(self):
    """(exit status, all that it said); negative: the signal that ended it."""
    self.process.join(PATIENCE)
    hangs = self.process.is_alive()
    self.process.kill()
    self.process.join()
    assert not hangs, f"hangs: {self.said()}"
    return self.process.exitcode, self.said()

  def said(self):
    return self.log.read_text() if self.log.exists() else ""

  def waits_for(self, words):
    """Until it has said that."""
    deadline = time.monotonic() + PATIENCE
    while words not in self.said():
      assert self.process.is_alive() and time.monotonic() < deadline, self.said()
      time.sleep(0.01)


def run(log, args, *faults):
  """(exit status, all that it said)."""
  return Child(log, args, *faults).ends()


def _run(log, args, faults):
  output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  for stream in (1, 2):
    os.dup2(output, stream)
  os.environ["XLA_FLAGS"] = ""  # one device: JAX has not been started yet
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  sys.argv = ["boxseg_jax", *args]
  for fault in faults:
    fault()
  from boxseg_jax import main

  try:
    main.run()
  finally:
    # What measures coverage writes its file at the very end.
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


# What is told, and what is left behind.


def assert_told(said, *words):
  """In a message as people get it: one that holds the words, and no traceback."""
  assert "Traceback" not in said, said
  for word in words:
    assert word in said, said


def log_lines(workdir):
  """Of metrics.jsonl, without what depends on the machine."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [
    {key: value for key, value in line.items() if not any(part in key for part in _OF_THE_MACHINE)}
    for line in lines
  ]


def steps_of(workdir):
  """Of the complete checkpoints, oldest first."""
  folder = workdir / "checkpoints"
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  return sorted(int(name) for name in names if name.isdigit())


def last_state(config, workdir):
  quiet = Run(config, workdir, report=lambda line: None)
  with quiet.open_checkpoints(read_only=True) as checkpoints:
    assert checkpoints.latest_step() == config.train.num_steps
    return jax.device_get(quiet.restore(checkpoints, checkpoints.latest_step()))


def assert_same_state(config, one, other):
  """Bit for bit: parameters, batch statistics, moving average, optimiser, step."""
  states = last_state(config, one), last_state(config, other)
  jax.tree.map(np.testing.assert_array_equal, *states)


def assert_each_step_once(workdir):
  """In the log, of training and of evaluation."""
  lines = log_lines(workdir)
  for key in ("train/loss", "eval/miou"):
    steps = [line["step"] for line in lines if key in line]
    assert steps and steps == sorted(set(steps)), steps


def assert_same_run(config, one, other):
  """Bits of the last state, lines of the log, results."""
  assert_same_state(config, one, other)
  assert_each_step_once(other)
  assert log_lines(one) == log_lines(other)
  results = [(workdir / "result.json").read_text() for workdir in (one, other)]
  assert results[0] == results[1]


# Faults: called in the child, before it begins.


def when(phase, count, act):
  """Calls `act()` when the child comes to a phase of its run for the `count`-th time."""
  from boxseg_jax.data import training_set

  owner, name = {
    "data": (training_set, "open_training_set"),
    "step": (loop.Window, "add"),
    "log and save": (Run, "save"),
    "save": (Checkpoints, "save"),
    # In the background: all of the checkpoint is written, and its folder has no name yet.
    "commit": (checksums, "write"),
    "evaluation": (Run, "measure"),
  }[phase]
  original, calls = getattr(owner, name), itertools.count(1)

  def watched(*args, **kwargs):
    if next(calls) == count:
      act()
    return original(*args, **kwargs)

  setattr(owner, name, watched)


def signalled(number, delay=0.0):
  """Sends this process a signal, at once or so many seconds later."""
  if delay:
    threading.Timer(delay, os.kill, (os.getpid(), number)).start()
  else:
    os.kill(os.getpid(), number)


def filled(ballast):
  """Fills the disk of the file, but for a few bytes."""
  with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
    for size in (2**16, 2**10):
      with contextlib.suppress(OSError):
        while file.write(bytes(size)) == size:
          pass
    file.truncate(file.tell() - 2**12)


def freed(ballast):
  """Undoes `filled`."""
  os.remove(ballast)


def files_limited(size):
  """No file of this process may grow beyond so many bytes, as long as the product runs."""
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def wall_clock_that_goes_back():
  """By an hour, again and again, as it may when it is set; the monotonic one never does."""
  calls, clock = itertools.count(1), time.time
  time.time = lambda: clock() - 3600.0 * (next(calls) // 7)


def out_of_memory(text):
  """What XLA raises where a device has too little memory."""
  raise jax.errors.JaxRuntimeError(text)


def memory_limited(size):
  """This process may take so many bytes more, addresses that were never written to counted."""
  pages = int(Path("/proc/self/statm").read_text().split()[0])
  most = resource.getrlimit(resource.RLIMIT_AS)[1]
  resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, most))


def no_locks(*_):
  """As on a file system without them."""
  raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
