"""Files that are either whole or not there, whatever happens to the process that writes them."""

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from boxseg_jax.errors import InputError, WriteError


def write(path: str | Path, writer: Callable[[Path], Any]) -> None:
  """Writes beside the place and moves there what is complete.

  Args:
    path: of the file; its folder is made where it is missing.
    writer: writes the file whose path it is given.

  Raises:
    WriteError: it cannot be written; what was there is left as it was.
  """
  path = Path(path)
  unfinished = path.with_name(path.name + ".unfinished")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer(unfinished)
    unfinished.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):  # on a full disk its space is wanted
      unfinished.unlink(missing_ok=True)
    raise WriteError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def locked(path: str | Path, whose: str, report: Callable[[str], None]) -> Iterator[None]:
  """Keeps other processes out of this context; the kernel lets go when the process dies.

  Args:
    path: of a file, made where it is missing and left behind; it says which process has it.
    whose: what is locked, for the message.
    report: takes a line of text where the file system has no locks: then nobody is kept out.

  Raises:
    InputError: another process, or another thread of this one, is in there.
    WriteError: the file cannot be written.
  """
  try:
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, closed below
  except OSError as error:
    raise WriteError(f"{path} cannot be written: {error}") from error
  with file:
    _lock(file, whose, report)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    yield


def _lock(file, whose, report):
  try:
    import fcntl
  except ImportError:
    report(f"{whose}: this system has no locks, so see to it that no other run writes there.")
    return
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.seek(0)
    other = file.read().strip() or "another process"
    raise InputError(f"{whose} is in use by {other}: wait for it, or choose another") from error
  except OSError as error:
    report(f"{whose}: no lock ({error}), so see to it that no other run writes there.")


def write_bytes(path: str | Path, content: bytes) -> None:
  """`write` of bytes."""
  write(path, lambda unfinished: unfinished.write_bytes(content))


def write_text(path: str | Path, text: str) -> None:
  """`write_bytes` of a text in UTF-8; halves of characters, which it cannot hold, are spelt out."""
  write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
  """`write_text` of a value as JSON."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path, *, kind: type = dict) -> Any:
  """Reads a file of JSON that may have been damaged, or made to do harm.

  Args:
    path: of the file.
    kind: of the whole: dict or list.

  Returns:
    What it holds, of that kind.

  Raises:
    InputError: no such file, not readable, or something else in it.
  """
  try:
    text = Path(path).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read ({error})") from error
  return parse_json(str(path), text, kind=kind)


def parse_json(where: str, text: str, *, kind: type = dict) -> Any:
  """`read_json` of a text; `where` begins the message."""
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:  # nested too deep
    raise InputError(f"{where}: cannot be read as JSON ({error})") from error
  if not isinstance(content, kind):
    raise InputError(f"{where}: is damaged: it is no {kind.__name__} of JSON")
  return content
