"""Every metric of a run, as JSON lines and for TensorBoard."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from boxseg_jax import files
from boxseg_jax.errors import WriteError

_FLUSH_SECONDS = 10  # until TensorBoard sees what was written, if more is written by then


class MetricWriter:
  """Writes to `metrics.jsonl` and to the folder `tensorboard` in a run's folder.

  `metrics.jsonl` has one object per line: "step" and the metrics by name, null for what is not a
  finite number. A run that goes on calls `rewind` first. One process of a run writes.

  What cannot be written (a full disk) is told when it is flushed. Lines of `metrics.jsonl` are kept
  until they can be, what goes to TensorBoard is lost.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Makes the folder; files appear with the first metric."""
    self._workdir = pathlib.Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    self._path = self._workdir / "metrics.jsonl"
    self._unwritten = ""
    self._board: _Board | None = None
    self._purge_step: int | None = None
    self._failure: OSError | None = None  # of TensorBoard's file

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the metrics of a step; the JSON line outlives a kill right after.

    Args:
      step: number of steps done.
      metrics: name -> number; slashes in names group them in TensorBoard.
    """
    values = {name: float(value) for name, value in metrics.items()}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    row = {"step": int(step)} | dict.fromkeys(values) | finite
    self._unwritten += json.dumps(row, allow_nan=False) + "\n"
    with contextlib.suppress(OSError):  # `flush` tells
      self._append()
    for name, value in finite.items():
      self._show(step, summary.scalar(name, value))

  def write_image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Shows a picture uint8 [height, width, 3] in TensorBoard."""
    self._show(step, summary.image(name, picture, dataformats="HWC"))

  def rewind(self, step: int) -> None:
    """Forgets what was written beyond a step, so that a resumed run writes no step twice.

    The file is replaced in one move: a kill leaves the old or the new one. A line that a kill
    left half written goes as well. TensorBoard is told to hide its later entries.

    Args:
      step: the step that the run resumes from, 0 = from the start. To be called before `write`.
    """
    self._purge_step = step + 1
    if not self._path.exists():
      return
    lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    files.write_text(self._path, "".join(line + "\n" for line in kept))

  def flush(self) -> None:
    """Hands the lines that wait to the disk: before a checkpoint, which no run goes behind.

    Raises:
      WriteError: they cannot be written, and wait on.
    """
    try:
      self._append()
    except OSError as error:
      raise WriteError(f"{self._path} cannot be written: {error}") from error

  def flush_tensorboard(self) -> None:
    """The same for TensorBoard's entries.

    Raises:
      WriteError: some since the last call could not be written, and are lost.
    """
    failure, self._failure = self._failure, None
    try:
      if failure is None and self._board is not None:
        self._board.flush()
    except OSError as error:
      failure = error
    if failure is not None:
      raise WriteError(f"{self._workdir / 'tensorboard'} cannot be written: {failure}") from failure

  def close(self) -> None:
    """Closes TensorBoard's file."""
    if self._board is not None:
      with contextlib.suppress(OSError):  # nothing that `flush` has not told
        self._board.close()
    self._board = None

  def _append(self):
    """Writes the lines that wait to be written: all of them or nothing."""
    if not self._unwritten:
      return
    left = self._unwritten.encode()
    # Without a buffer, whose rest would be written again when the file is closed.
    with open(self._path, "ab", buffering=0) as file:
      size = file.tell()
      try:
        while left:
          left = left[file.write(left) :]
      except OSError:
        file.truncate(size)
        raise
    self._unwritten = ""

  def _show(self, step, shown):
    """To TensorBoard; its file is opened late, as what `rewind` hides must be known by then."""
    if self._failure is not None:
      return  # until that has been told
    try:
      if self._board is None:
        self._board = _Board(self._workdir / "tensorboard", self._purge_step)
        self._purge_step = None
      self._board.write(Event(step=step, summary=shown))
    except OSError as error:
      self.close()
      self._failure = error


class _Board:
  """An event file. Not tensorboardX's SummaryWriter: once its thread fails, the next call hangs."""

  _opened = 0  # by this process: a file of the same second is not to be replaced

  def __init__(self, folder, purge_step):
    folder.mkdir(parents=True, exist_ok=True)
    _Board._opened += 1
    suffix = f".{os.getpid()}.{_Board._opened}"
    self._file = EventsWriter(str(folder / "events"), suffix)
    self._flushed = time.monotonic()
    if purge_step is not None:
      self.write(Event(step=purge_step, file_version="brain.Event:2"))
      self.write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

  def write(self, event):
    event.wall_time = time.time()
    self._file.write_event(event)
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self):
    self._flushed = time.monotonic()
    self._file.flush()

  def close(self):
    self._file.close()


def _step_of(line: str) -> float:
  """Step of a line of `metrics.jsonl`, infinite if the line is no complete one."""
  try:
    return json.loads(line)["step"]
  except (ValueError, TypeError, KeyError):
    return math.inf
