"""The training loop: one run from its configuration to its results."""

import contextlib
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from boxseg_jax.errors import NonFiniteLossError, StoppedError
from boxseg_jax.files import write_json
from boxseg_jax.parallel import StopRequest
from boxseg_jax.training import memory, origin, snapshots, trace
from boxseg_jax.training.metric_writer import MetricWriter
from boxseg_jax.training.progress import Progress
from boxseg_jax.training.run import Run


def train(
  config: ConfigDict, workdir, *, report=print, profile_steps: tuple[int, ...] = ()
) -> dict[str, float]:
  """Trains, evaluates and leaves checkpoints, metrics and pictures in the workdir.

  A run that was stopped at any point goes on when it is started again, and ends
  in the same parameters: order of the data, augmentation and schedule depend on
  the seed and the step alone.

  Args:
    config: complete configuration, see `boxseg_jax.config`.
    workdir: folder of the run, made where it is missing.
    report: takes lines of text for the person who waits.
    profile_steps: (first, last), counted from 1, of which a trace is written, see
      `training.trace`; () for none. The first step compiles.

  Returns:
    Metrics of the final evaluation by name, as in `<workdir>/result.json`.

  Raises:
    InputError: something in the configuration or the data is wrong.
    NonFiniteLossError: the loss is no longer finite.
    StoppedError: it was told to stop (SIGTERM), and has left a checkpoint.
    WriteError: a file cannot be written; the last good checkpoint is kept.
    OutOfMemoryError: a device or the host has too little memory.
  """
  num_steps = config.train.num_steps
  trace.check(profile_steps, num_steps)
  run = Run(config, workdir, report=report)
  with contextlib.ExitStack() as at_the_end:
    at_the_end.enter_context(run.locked())
    at_the_end.enter_context(memory.told(config, memory.TRAINING))
    checkpoints = at_the_end.enter_context(run.open_checkpoints())
    stop = at_the_end.enter_context(StopRequest())
    writer = at_the_end.enter_context(contextlib.closing(MetricWriter(run.notes)))

    # Start, or go on where an earlier run of the same configuration stopped.
    start_step = checkpoints.latest_step() or 0
    if start_step:
      report(f"Going on from the checkpoint of step {start_step}.")
    state = run.restore(checkpoints, start_step) if start_step else run.first_state()
    writer.rewind(start_step)
    progress = Progress(
      num_steps,
      batch_size=config.data.batch_size,
      device_count=run.parallel.device_count,
      start_step=start_step,
    )
    at_the_end.callback(progress.close)

    followed = bool(config.eval.pictures) and run.snapshots.follows_boxes
    if followed and not start_step:
      snapshots.keep_targets(run.notes, 0, run.snapshots.targets(state))
    if start_step < num_steps:
      at_the_end.enter_context(origin.noted(run.notes, start_step))
      report("Compiling the training step; on a GPU this can take minutes.")

    train_step = at_the_end.enter_context(run.traced_train_step(start_step, profile_steps))
    window = Window()
    results: dict[str, float] | None = None
    batches = progress.watch(run.batches(start_step))
    for step, batch in enumerate(batches, start=start_step + 1):
      state, metrics = train_step(state, batch)
      window.add(step, metrics)
      progress.update(step)
      stopping = stop.reached(step) and step < num_steps
      evaluating = _due(step, config.train.eval_every, num_steps) and not stopping
      saving = evaluating or stopping or _due(step, config.train.checkpoint_every, num_steps)

      # A checkpoint ends a line of the log, so that a run that goes on from it logs the same.
      if saving or _due(step, config.train.log_every, num_steps):
        logged = window.close()
        progress.update(step, loss=logged["loss"], iou=logged["mask_iou"])
        logged["learning_rate"] = float(run.schedule(step - 1))
        logged |= progress.measured() | run.parallel.peak_memory()
        writer.write(step, {f"train/{name}": value for name, value in logged.items()})

      if evaluating:
        with progress.paused():
          results = _evaluate(run, state, step, writer)

      if followed and snapshots.is_due(step, num_steps):
        with progress.paused(), run.forgiving():
          snapshots.keep_targets(run.notes, step, run.snapshots.targets(state))

      if saving:
        # Only what the window has seen to be finite is ever saved.
        with progress.paused():
          measured, last = (results if evaluating else None), stopping or step == num_steps
          run.save(checkpoints, step, state, measured, writer=writer, last=last)

      if stopping:
        raise StoppedError(f"Told to stop: the same command goes on from step {step}.")

    if start_step == num_steps:  # it had finished already
      results = run.measure(state)
  assert results is not None, "the last step is always evaluated"
  write_json(run.notes / "result.json", results)
  return results


def _evaluate(run: Run, state, step: int, writer: MetricWriter) -> dict[str, float]:
  """Measures, writes the measurements down and draws what training images have become."""
  results = run.measure(state)
  writer.write(step, {f"eval/{name}": value for name, value in results.items()})
  if run.config.eval.pictures:
    picture = run.snapshots.draw(state)
    writer.write_image(step, "training_images", picture)
    with run.forgiving():
      snapshots.save(run.notes, step, picture)
  return results


def _due(step, every, num_steps):
  return step == num_steps or (every > 0 and step % every == 0)


# The loss is that of the parameters before the step, so they are looked at themselves, too.
WATCHED = ("loss", "loss_mask", "loss_outside", "loss_box", "grad_norm", "param_norm")


class Window:
  """Training metrics since the last line of the log."""

  def __init__(self):
    """Starts empty."""
    self._steps = []
    self._running = None

  def add(self, step: int, metrics) -> None:
    """Takes a step's metrics, and looks at those of the step before.

    The device works on this step while the host waits for the last one, so at most
    two steps are under way.
    """
    self.settle()
    self._running = (step, metrics)

  def settle(self) -> None:
    """Waits for the metrics still under way.

    Raises:
      NonFiniteLossError: names the step and the terms of the loss.
    """
    if self._running is None:
      return
    step, metrics = self._running
    metrics, self._running = jax.device_get(metrics), None
    watched = {name: float(metrics[name]) for name in WATCHED}
    if not all(map(math.isfinite, watched.values())):
      values = ", ".join(f"{name} = {value:.6g}" for name, value in watched.items())
      raise NonFiniteLossError(f"the loss is not finite at step {step}: {values}")
    self._steps.append(metrics)

  def close(self) -> dict[str, float]:
    """Means over the steps, "mask_iou" from their summed overlaps; the window is empty then."""
    self.settle()
    stacked = {name: np.stack([m[name] for m in self._steps]) for name in self._steps[0]}
    self._steps = []
    intersection, union = stacked.pop("intersection").sum(0), stacked.pop("union").sum(0)
    means = {name: float(values.mean()) for name, values in stacked.items()}
    seen = union > 0
    # On the mask images of the batches, as augmented: NaN where there were none.
    means["mask_iou"] = float((intersection[seen] / union[seen]).mean()) if seen.any() else math.nan
    return means
