"""Checkpoints with Orbax: asynchronous, atomic, the newest ones and the best."""

import contextlib
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from boxseg_jax.errors import InputError, StoppedError, WriteError
from boxseg_jax.parallel import wait_for_all
from boxseg_jax.training import checksums

_DAMAGED = "damaged"  # folder in the workdir for what is set aside


class Checkpoints:
  """The checkpoints of one run, in `<workdir>/checkpoints`.

  Orbax writes a checkpoint into a temporary folder and renames it when it is
  complete, so a killed run never leaves half a checkpoint to be read. By then it
  holds the checksums of its files, so what happens to them later is seen, too.
  """

  def __init__(
    self,
    workdir,
    *,
    keep: int,
    best_metric: str,
    read_only: bool = False,
    report: Callable[[str], None] = print,
  ):
    """Opens or creates the folder; to write to it, sets damaged checkpoints aside.

    Args:
      workdir: folder of the run.
      keep: how many of the newest are kept.
      best_metric: name of the metric, higher is better, whose best checkpoint is kept too.
      read_only: leave the folder as it is: another process may be writing to it.
      report: takes lines of text: what was damaged.

    Raises:
      InputError: every checkpoint is damaged, or the folder cannot be read.
      WriteError: the folder cannot be written.
    """
    self._folder = Path(workdir).resolve() / "checkpoints"
    self._keep, self._best_metric, self._read_only = keep, best_metric, read_only
    self._saving: int | None = None  # the step that is being saved
    if not read_only:
      set_damaged_aside(self._folder, report)
    self._manager = self._open()

  def _open(self):
    policies = [
      checkpoint_managers.LatestN(self._keep),
      checkpoint_managers.BestN(
        get_metric_fn=self._quality, n=1, keep_checkpoints_without_metrics=False
      ),
    ]
    options = ocp.CheckpointManagerOptions(
      # Without best_fn Orbax would not write the metrics down, and forget the best one.
      best_fn=self._quality,
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=not self._read_only,  # what a killed run left half-written
      read_only=self._read_only,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._note_checksums),
    )
    try:
      return ocp.CheckpointManager(self._folder, options=options)
    except OSError as error:
      raise WriteError(f"{self._folder} cannot be used: {error}") from error
    except (ValueError, KeyError, TypeError) as error:  # it reads the metrics of all of them
      damaged = [f"{step} ({what})" for step, what in damages(self._folder).items()]
      named = f"step {', '.join(damaged)}" if damaged else _reason(error)
      raise InputError(f"{self._folder} holds what is damaged: {named}; remove that") from error

  def _note_checksums(self):
    """Called in the background, when all files are written and before the folder gets its name."""
    if jax.process_index() == 0:
      written = [*self._folder.glob(f"{self._saving}.*"), self._folder / str(self._saving)]
      checksums.write(next(folder for folder in written if folder.is_dir()))

  def _quality(self, metrics) -> float:
    return metrics[self._best_metric]

  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Steps of all complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """Step of the best evaluated checkpoint; the newest if none was evaluated."""
    return next(iter(self.best_steps()), None)

  def best_steps(self) -> list[int]:
    """Steps of all complete checkpoints: the best one first, those not evaluated last."""
    metrics = {step: self._manager.metrics(step) for step in self.steps()[::-1]}
    evaluated = {step: self._quality(found) for step, found in metrics.items() if found}
    # Of equally good ones the oldest: a newer one has to be better to replace it.
    best = sorted(evaluated, key=lambda step: (-evaluated[step], step))
    return best + [step for step in metrics if step not in evaluated]

  def save(self, step: int, state, metrics: dict[str, float] | None) -> None:
    """Saves in the background; the state may be donated as soon as this returns.

    Args:
      step: number of steps taken.
      state: TrainState.
      metrics: of the evaluation at this step, None if there was none. One without
        the best metric (NaN) cannot be the best.

    Raises:
      WriteError: this checkpoint, or the one before it, could not be saved.
    """
    self.settle()
    value = (metrics or {}).get(self._best_metric, math.nan)
    quality = None if math.isnan(value) else {self._best_metric: float(value)}
    self._saving = step
    self._guard(self._manager.save, step, args=ocp.args.StandardSave(state), metrics=quality)

  def settle(self) -> None:
    """Waits for the checkpoint that is being written.

    Raises:
      WriteError: it could not be saved. What there is of it is removed; the others are kept.
    """
    self._guard(self._manager.wait_until_finished)

  def _guard(self, act, *args, **kwargs):
    try:
      act(*args, **kwargs)
    except (OSError, ValueError, WriteError) as error:
      self._open_again()
      raise WriteError(
        f"the checkpoint of step {self._saving} could not be saved in {self._folder}: "
        f"{_reason(error)}"
      ) from error

  def _open_again(self):
    """Removes what is half-written, and with it what Orbax remembers of it."""
    if jax.process_count() > 1:
      return  # the others are not here, and the job ends
    with contextlib.suppress(OSError, ValueError):  # told already
      self._manager.close()
    self._manager = self._open()

  def restore(self, step: int, like):
    """Reads a checkpoint.

    Args:
      step: which one.
      like: pytree of jax.ShapeDtypeStruct with shardings.

    Returns:
      The state, laid out like `like`.

    Raises:
      InputError: it is damaged.
    """
    return self._read(step, ocp.args.StandardRestore(like))

  def restore_average(self, step: int, like):
    """Reads nothing but the moving average of the parameters.

    Args:
      step: which checkpoint.
      like: pytree of jax.ShapeDtypeStruct, as `TrainState.ema`.

    Returns:
      The average, laid out like `like`.

    Raises:
      InputError: it is damaged.
    """
    wanted = {"ema": like}
    args = ocp.args.PyTreeRestore(
      wanted,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      partial_restore=True,
    )
    return self._read(step, args)["ema"]

  def _read(self, step, args):
    folder = self._folder / str(step)
    # What is opened for writing has been looked at already.
    damage = checksums.damage(folder) if self._read_only else None
    if damage is None:
      try:
        return self._manager.restore(step, args=args)
      except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        damage = _reason(error)
    hint = "" if self._read_only else "; remove it to go on from another"
    raise InputError(f"the checkpoint {folder} is damaged: {damage}{hint}")

  def __enter__(self):
    if not self._read_only:
      self._hook, sys.unraisablehook = sys.unraisablehook, _without_echoes
    return self

  def __exit__(self, kind, *error):
    """Waits for what is still being written; it may fail where nothing worse has happened."""
    try:
      self.settle()
    except WriteError:
      if kind in (None, StoppedError):
        raise
    finally:
      self._manager.close()
      if not self._read_only:
        sys.unraisablehook = self._hook


def _without_echoes(unraisable):
  """Where one array cannot be written, TensorStore prints a traceback for each other one, too."""
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


def damages(folder: Path) -> dict[int, str]:
  """What is wrong with checkpoints, by step; those that nothing is known against are left out.

  Args:
    folder: the checkpoints of a run.
  """
  found = {step: checksums.damage(folder / str(step)) for step in _steps(folder)}
  return {step: damage for step, damage in found.items() if damage}


def set_damaged_aside(folder: Path, report: Callable[[str], None]) -> None:
  """Moves damaged checkpoints out of the way, to `damaged/` in the workdir.

  The first process of a job does it; the others wait.

  Args:
    folder: the checkpoints of a run.
    report: takes a line of text for each.

  Raises:
    InputError: all of them are damaged, or one cannot be moved.
  """
  damaged = damages(folder) if jax.process_index() == 0 else {}
  if damaged and len(damaged) == len(_steps(folder)):
    step, what = max(damaged.items())
    raise InputError(
      f"every checkpoint in {folder} is damaged, the newest, of step {step}, as {what}; remove the "
      "folder to begin anew"
    )
  for step, what in damaged.items():
    place = folder.parent / _DAMAGED / str(step)
    report(f"The checkpoint of step {step} is damaged ({what}): moved to {place}.")
    _move(folder / str(step), place)
  wait_for_all("damaged checkpoints are set aside")


def _steps(folder):
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdigit())


def _move(source, target):
  try:
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
  except OSError as error:
    raise WriteError(f"{source} cannot be moved: {error}") from error


def _reason(error) -> str:
  """One line; TensorStore's own words have the whole request behind them."""
  text = str(error)
  known = [words for words in ("No space left on device", "File too large") if words in text]
  return known[0] if known else text.splitlines()[0][:200]
