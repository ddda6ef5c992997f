"""The command: configuration, workdir, mode -> one call. The only file with flags."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from boxseg_jax.errors import InputError, ToldError

MODES: tuple[str, ...] = ("train", "evaluate", "study", "benchmark", "check_data")
MODES += ("predict", "refine", "label", "retrain", "export", "report")


def run() -> None:
  """Entry point: one message and an exit status where the input is wrong."""
  try:
    app.run(_main, flags_parser=_parse_flags)
  except ToldError as error:
    print(f"error: {error}" if error.status else error, file=sys.stderr)
    sys.exit(error.status)


def _parse_flags(argv):
  """Defines and parses flags; what is wrong with them is the user's input, not a bug."""
  try:
    _define_flags()
    remaining = flags.FLAGS(argv)
    _ = flags.FLAGS.config.arm  # a file that could not be loaded is told when it is asked for
    if len(remaining) > 1:
      raise InputError(f"unexpected argument {remaining[1]!r}; flags start with --")
    return remaining
  except InputError:
    raise
  except Exception as error:  # a config file is code and may raise anything
    # ConfigDict wraps its message in the quotes of a KeyError.
    text = str(error).strip("'\"").replace("\\'", "'").replace("\\n", " ")
    raise InputError(f"in the flags: {text}") from None


def _define_flags() -> None:
  config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).with_name("config.py")),
    "Configuration file, e.g. configs/nuclei.py or configs/camvid.py:gpu; the embedded "
    "data set by default. --config.KEY=VALUE changes a key.",
  )
  flags.DEFINE_string("workdir", "runs/default", "Folder of the run.")
  flags.DEFINE_enum("mode", "train", MODES, "What to do.")
  flags.DEFINE_multi_string("images", [], "File, folder or pattern (predict); may be repeated.")
  flags.DEFINE_string("to", "", "Folder (predict, label), file or format (export) of the results.")
  flags.DEFINE_string("profile_steps", "", "Steps to trace for XProf, first:last (train).")
  cache = str(Path.home() / ".cache/boxseg_jax")
  flags.DEFINE_string("compilation_cache", cache, "Folder of compiled programs.")
  flags.DEFINE_bool("distributed", False, "One of several processes of a job (train, evaluate).")


def _main(_) -> None:
  # Imported late, so that a misspelt flag is told at once.
  from boxseg_jax import parallel
  from boxseg_jax.apps import (
    benchmark,
    check_data,
    export,
    label,
    predict,
    refine,
    report,
    results,
    retrain,
    study,
  )
  from boxseg_jax.training import loop, memory, trace

  values = flags.FLAGS
  # Orbax tells every rename as INFO, every checkpoint between evaluations as a WARNING, and as an
  # ERROR, with a traceback, what it raises as well.
  logging.set_verbosity(logging.FATAL)
  train = partial(loop.train, profile_steps=trace.read_steps(values.profile_steps))
  runs: dict[str, Callable] = {"train": train, "evaluate": results.evaluate_run}
  if values.distributed and values.mode not in runs:
    raise InputError(f"--distributed is for the modes {', '.join(runs)}, not for {values.mode}")
  runs |= {"study": study.run, "benchmark": benchmark.run}
  runs |= {"check_data": check_data.run, "report": report.run, "refine": refine.run}
  runs |= {"retrain": retrain.run}
  runs |= {"export": partial(export.run, to=values.to), "label": partial(label.run, to=values.to)}
  runs |= {"predict": partial(predict.run, images=values.images, to=values.to)}
  parallel.start(values.compilation_cache, distributed=values.distributed)
  workdir = Path(values.workdir)
  with parallel.lost_processes(), memory.told(values.config):
    outcome = runs[values.mode](values.config, workdir)
  print(outcome if isinstance(outcome, str) else results.table(outcome, workdir))


if __name__ == "__main__":
  run()
