"""What made a result: command, device, versions, and the time that it took."""

import contextlib
import datetime
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax

from boxseg_jax import __version__
from boxseg_jax.files import read_json, write_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_FILE = "starts.json"


def here() -> dict:
  """Command, device and versions of this process, what a reader needs to judge or repeat it."""
  return {
    "command": _command(),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "host cores": os.cpu_count(),
    "python": platform.python_version(),
    "boxseg_jax": __version__,
    **{name: metadata.version(name) for name in _PACKAGES},
  }


@contextlib.contextmanager
def noted(workdir, step: int) -> Iterator[None]:
  """Notes in `<workdir>/starts.json` what trains in this context, and how long it took.

  Args:
    workdir: folder of the run.
    step: number of steps that were taken before; 0 begins the notes anew.
  """
  started, moment = time.monotonic(), datetime.datetime.now(datetime.UTC)
  note = {"step": step, "started": moment.isoformat(timespec="seconds"), **here()}
  path, earlier = Path(workdir) / _FILE, [] if step == 0 else starts(workdir)
  write_json(path, [*earlier, note])
  yield
  # Not in a `finally`: a start that was stopped is told by its lack of a duration.
  write_json(path, [*earlier, note | {"seconds": round(time.monotonic() - started, 1)}])


def starts(workdir) -> list[dict]:
  """Notes of every start of a run, none where none were taken.

  Each has "step", "started" (UTC), what `here` says, and "seconds", which one that was stopped
  lacks.
  """
  path = Path(workdir) / _FILE
  return read_json(path, kind=list) if path.exists() else []


def _command():
  program, *arguments = sys.argv
  is_main = Path(program).parts[-2:] == ("boxseg_jax", "main.py")
  program = "-m boxseg_jax.main" if is_main else shlex.quote(program)
  return " ".join(["python", program, *map(_quoted, arguments)])


def _quoted(argument):
  """For a shell; tuples of strings stay readable, where shlex would quote every quote."""
  return shlex.quote(argument) if "'" not in argument else f'"{argument}"'
