"""Checkpoints with Orbax: asynchronous, atomic, the newest ones and the best."""

import math
from pathlib import Path

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


class Checkpoints:
  """The checkpoints of one run, in `<workdir>/checkpoints`.

  Orbax writes a checkpoint into a temporary folder and renames it when it is
  complete, so a killed run never leaves half a checkpoint to be read.
  """

  def __init__(self, workdir, *, keep: int, best_metric: str, read_only: bool = False):
    """Opens or creates the folder.

    Args:
      workdir: folder of the run.
      keep: how many of the newest are kept.
      best_metric: name of the metric, higher is better, whose best checkpoint is kept too.
      read_only: leave the folder as it is: another process may be writing to it.
    """
    self._best_metric = best_metric
    policies = [
      checkpoint_managers.LatestN(keep),
      checkpoint_managers.BestN(
        get_metric_fn=self._quality, n=1, keep_checkpoints_without_metrics=False
      ),
    ]
    self._manager = ocp.CheckpointManager(
      Path(workdir).resolve() / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        # Without best_fn Orbax would not write the metrics down, and forget the best one.
        best_fn=self._quality,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=not read_only,  # what a killed run left half-written
        read_only=read_only,
      ),
    )

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
    evaluated = {}
    for step in self.steps():
      metrics = self._manager.metrics(step)
      if metrics:
        evaluated[step] = self._quality(metrics)
    return max(evaluated, key=evaluated.get) if evaluated else self.latest_step()

  def save(self, step: int, state, metrics: dict[str, float] | None) -> None:
    """Saves in the background; the state may be donated as soon as this returns.

    Args:
      step: number of steps taken.
      state: TrainState.
      metrics: of the evaluation at this step, None if there was none. One without
        the best metric (NaN) cannot be the best.
    """
    usable = metrics is not None and not math.isnan(metrics.get(self._best_metric, math.nan))
    quality = {self._best_metric: float(metrics[self._best_metric])} if usable else None
    self._manager.save(step, args=ocp.args.StandardSave(state), metrics=quality)

  def restore(self, step: int, like):
    """Reads a checkpoint.

    Args:
      step: which one.
      like: pytree of jax.ShapeDtypeStruct with shardings.

    Returns:
      The state, laid out like `like`.
    """
    return self._manager.restore(step, args=ocp.args.StandardRestore(like))

  def restore_average(self, step: int, like):
    """Reads nothing but the moving average of the parameters.

    Args:
      step: which checkpoint.
      like: pytree of jax.ShapeDtypeStruct, as `TrainState.ema`.

    Returns:
      The average, laid out like `like`.
    """
    wanted = {"ema": like}
    args = ocp.args.PyTreeRestore(
      wanted,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      partial_restore=True,
    )
    return self._manager.restore(step, args=args)["ema"]

  def __enter__(self):
    return self

  def __exit__(self, *error):
    """Waits for what is still being written."""
    self._manager.wait_until_finished()
    self._manager.close()
