"""What to do when memory runs out."""

import contextlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from boxseg_jax import config as configuration
from boxseg_jax.errors import OutOfMemoryError

# Keys that memory hangs on, the first to lower first.
TRAINING = ("data.batch_size", "data.canvas")
EVALUATION = ("eval.batch_size", "data.canvas")
EITHER = ("data.batch_size", "eval.batch_size", "data.canvas")
# XLA's words: the status while it compiles or runs, and what a CPU says where a program is started.
_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory")


@contextlib.contextmanager
def told(config: ConfigDict, keys: tuple[str, ...] = EITHER) -> Iterator[None]:
  """Says which keys to lower where memory runs out in this context.

  Args:
    config: the configuration.
    keys: of it, such that lower values take less memory.

  Raises:
    OutOfMemoryError: a device or the host has too little memory.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    if not isinstance(error, MemoryError) and not any(word in str(error) for word in _WORDS):
      raise
    raise OutOfMemoryError(_message(config, keys, error)) from error


def _message(config, keys, error):
  on_host = isinstance(error, MemoryError)
  where = "the host" if on_host else f"the device ({jax.devices()[0].device_kind})"
  flat = configuration.flatten(config)
  lines = [f"  lower --config.{key}, now {flat[key]}" for key in keys]
  if keys != EVALUATION:
    now = flat["optimizer.accumulate"]
    lines.append(f"  or raise --config.optimizer.accumulate, now {now}: the same batch in parts")
    crop = flat["augment.crop"]
    lines.append(f"  or train on parts of the canvas: --config.augment.crop, now {crop}")
  reason = (str(error).splitlines() or [type(error).__name__])[0]
  return "\n".join([f"out of memory on {where}:", *lines, f"  ({reason[:200]})"])
