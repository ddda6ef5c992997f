"""The numbers of a run: measured again from its checkpoint, and shown as a table."""

from pathlib import Path

from ml_collections import ConfigDict

from boxseg_jax.errors import InputError
from boxseg_jax.training.run import Run


def table(results: dict[str, float]) -> str:
  """Metrics as lines of text, IoU and shares in percent.

  Args:
    results: metrics in [0, 1] by name, as of `training.loop.train`.

  Returns:
    One line per metric.
  """
  width = max(len(name) for name in results)
  return "\n".join(f"{name:<{width}}  {100 * value:5.1f} %" for name, value in results.items())


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
  workdir = Path(workdir)
  if not (workdir / "config.json").exists():
    raise InputError(f"{workdir} holds no run")
  run = Run(config, workdir, report=report)
  step = run.checkpoints.best_step()
  if step is None:
    raise InputError(f"{workdir} holds no checkpoint")
  report(f"Evaluating the checkpoint of step {step}.")
  return run.measure(run.restore(step))
