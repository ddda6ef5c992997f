"""The numbers of a run: measured again from its checkpoint, and shown as a table."""

from pathlib import Path

from ml_collections import ConfigDict

from boxseg_jax.errors import InputError
from boxseg_jax.training import snapshots
from boxseg_jax.training.run import Run
from boxseg_jax.training.state import TrainState


def table(results: dict[str, float], workdir) -> str:
  """Metrics as lines of text, in percent, and where to see more.

  Args:
    results: metrics in [0, 1] by name, as of `training.loop.train`.
    workdir: folder of the run.

  Returns:
    One line per metric, then the paths of the last picture and of all metrics.
  """
  width = max(len(name) for name in results)
  lines = [f"{name:<{width}}  {100 * value:5.1f} %" for name, value in results.items()]
  picture = snapshots.newest(workdir)
  lines += ["", f"Metrics:  {Path(workdir) / 'metrics.jsonl'}"]
  lines += [f"Pictures: {picture}"] if picture else []
  return "\n".join(lines)


def evaluate_run(config: ConfigDict, workdir, *, report=print) -> dict[str, float]:
  """Evaluates the best checkpoint of a run (the newest, if none was evaluated).

  Args:
    config: the configuration of the run.
    workdir: its folder.
    report: takes lines of text for the person who waits.

  Returns:
    Metrics by name.

  Raises:
    InputError: no checkpoint there, or one of another configuration.
  """
  run, step, state = open_best(config, workdir, report=report)
  report(f"Evaluating the checkpoint of step {step}.")
  return run.measure(state)


def open_best(config: ConfigDict, workdir, *, report=print) -> tuple[Run, int, TrainState]:
  """Opens a run that has been trained.

  Args:
    config: the configuration of the run.
    workdir: its folder.
    report: takes lines of text for the person who waits.

  Returns:
    The run, and step and state of its best checkpoint (the newest, if none was evaluated).

  Raises:
    InputError: no checkpoint there, or one of another configuration.
  """
  workdir = Path(workdir)
  if not (workdir / "config.json").exists():
    raise InputError(f"{workdir} holds no run")
  run = Run(config, workdir, report=report)
  with run.open_checkpoints(read_only=True) as checkpoints:
    steps = checkpoints.best_steps()
    if not steps:
      raise InputError(f"{workdir} holds no checkpoint")
    return run, *_first_sound(run, checkpoints, steps)


def _first_sound(run, checkpoints, steps):
  """(step, state) of the first checkpoint that can be read; what is wrong with others is told."""
  *others, last = steps
  for step in others:
    try:
      return step, run.restore(checkpoints, step)
    except InputError as error:
      run.report(f"Using another one: {error}")
  return last, run.restore(checkpoints, last)
