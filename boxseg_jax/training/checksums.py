"""Whether the files of a checkpoint are still what was written.

Orbax and TensorStore do not notice every flipped bit: a checkpoint's arrays have no checksum. Of
60 bits flipped at random in a small one, 21 made other values without a word (orbax-checkpoint
0.12.8, tensorstore 0.1.86). Reading 400 MiB for their SHA-256 took one CPU core 0.3 seconds.
"""

import hashlib
from pathlib import Path

from boxseg_jax import files

FILE = "SHA256SUMS"  # as `sha256sum -c` reads it


def write(folder: Path) -> None:
  """Notes the SHA-256 of every file in the folder's folders in its `SHA256SUMS`.

  Files beside them are left out: Orbax still changes those when it calls a checkpoint complete.

  Args:
    folder: of a checkpoint.

  Raises:
    WriteError: it cannot be written.
  """
  lines = (f"{_digest(path)}  {name}\n" for name, path in _files(folder).items())
  files.write_text(folder / FILE, "".join(lines))


def damage(folder: Path) -> str | None:
  """What is wrong with a folder that `write` has seen.

  Args:
    folder: of a checkpoint.

  Returns:
    Names a file that is missing or changed. None where there is none, or where nothing was noted,
    as in checkpoints of earlier versions: those are what they are.
  """
  noted = folder / FILE
  try:
    return _first_difference(folder, noted) if noted.exists() else None
  except OSError as error:  # of the disk, or because another process removes the checkpoint
    return f"it cannot be read ({error})"


def _first_difference(folder, noted):
  there = _files(folder)
  for line in noted.read_text(errors="replace").splitlines():
    digest, _, name = line.partition("  ")
    # No path is made of what the file says: it may be anybody's.
    if name not in there:
      return f"{name} is missing"
    if _digest(there[name]) != digest:
      return f"{name} has changed since it was written"
  return None


def _files(folder):
  """By name, sorted; a symbolic link is no file of a checkpoint."""
  found = (path for path in sorted(folder.glob("*/**/*")) if path.is_file())
  return {path.relative_to(folder).as_posix(): path for path in found if not path.is_symlink()}


def _digest(path):
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
