"""Every metric of a run, as JSON lines and for TensorBoard."""

import json
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorboardX

from boxseg_jax import files

_FLUSH_SECONDS = 10  # until TensorBoard sees what was written, at most


class MetricWriter:
  """Writes to `metrics.jsonl` and to the folder `tensorboard` in a run's folder.

  `metrics.jsonl` has one object per line: "step" and the metrics by name, null for what is not a
  finite number. A run that goes on calls `rewind` first. One process of a run writes.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Makes the folder; files appear with the first metric."""
    self._workdir = pathlib.Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    self._path = self._workdir / "metrics.jsonl"
    self._board: tensorboardX.SummaryWriter | None = None
    self._purge_step: int | None = None

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the metrics of a step; the JSON line outlives a kill right after.

    Args:
      step: number of steps done.
      metrics: name -> number; slashes in names group them in TensorBoard.
    """
    values = {name: float(value) for name, value in metrics.items()}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    row = {"step": int(step)} | dict.fromkeys(values) | finite
    with open(self._path, "a", encoding="utf-8") as file:
      file.write(json.dumps(row, allow_nan=False) + "\n")
    board = self._tensorboard()
    for name, value in finite.items():
      board.add_scalar(name, value, step)

  def write_image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Shows a picture uint8 [height, width, 3] in TensorBoard."""
    self._tensorboard().add_image(name, picture, step, dataformats="HWC")

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
    """Hands TensorBoard's entries to the disk: before a checkpoint, which no run goes behind."""
    if self._board is not None:
      self._board.flush()

  def close(self) -> None:
    """Closes TensorBoard's file."""
    if self._board is not None:
      self._board.close()
    self._board = None

  def _tensorboard(self) -> tensorboardX.SummaryWriter:
    """Opened with the first metric: what `rewind` hides must be known by then."""
    if self._board is None:
      folder = str(self._workdir / "tensorboard")
      self._board = tensorboardX.SummaryWriter(
        folder, purge_step=self._purge_step, flush_secs=_FLUSH_SECONDS
      )
    return self._board


def _step_of(line: str) -> float:
  """Step of a line of `metrics.jsonl`, infinite if the line is no complete one."""
  try:
    return json.loads(line)["step"]
  except (ValueError, TypeError, KeyError):
    return math.inf
