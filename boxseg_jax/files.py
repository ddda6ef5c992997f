"""Files that are either whole or not there, whatever happens to the process that writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boxseg_jax.errors import InputError


def write(path: str | Path, writer: Callable[[Path], Any]) -> None:
  """Writes beside the place and moves there what is complete.

  Args:
    path: of the file; its folder is made where it is missing.
    writer: writes the file whose path it is given.

  Raises:
    InputError: it cannot be written.
  """
  path = Path(path)
  unfinished = path.with_name(path.name + ".unfinished")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer(unfinished)
    unfinished.replace(path)
  except OSError as error:
    raise InputError(f"{path} cannot be written: {error}") from error


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
