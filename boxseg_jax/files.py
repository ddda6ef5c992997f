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
  """`write_bytes` of a text in UTF-8."""
  write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
  """`write_text` of a value as JSON."""
  write_text(path, json.dumps(value, indent=2) + "\n")
