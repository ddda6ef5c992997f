"""Too little memory, on a device and on the host."""

import sys
from functools import partial

import drill
import jax
import jax.numpy as jnp
import pytest

from boxseg_jax.errors import OutOfMemoryError
from boxseg_jax.training import memory

# As a GPU words it.
TEXT = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 137438953472 bytes."


def test_what_to_lower_is_told(whole, cache, tmp_path):
  keys = (
    "config.data.batch_size, now 8",
    "config.data.canvas",
    "config.optimizer.accumulate",
    "augment.crop",
  )
  args = drill.arguments(whole[0], tmp_path / "run", cache)
  fault = partial(drill.when, "step", 1, partial(drill.out_of_memory, TEXT))
  status, said = drill.run(tmp_path / "log", args, fault)
  assert status == 1, said
  drill.assert_told(said, "error: out of memory on the device (cpu)", *keys, TEXT)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits addresses as Linux does")
def test_a_step_larger_than_the_memory(cache, tmp_path):
  """What a step needs is taken at once, and is five times the limit: nothing else fails first."""
  config = drill.small(data__batch_size=4096, data__canvas=(64, 64), model__width=32)
  args = drill.arguments(config, tmp_path / "run", cache)
  status, said = drill.run(tmp_path / "log", args, partial(drill.memory_limited, 16 * 2**30))
  assert status == 1, said
  told = "error: out of memory on the device (cpu)"
  drill.assert_told(said, told, "config.data.batch_size, now 4096", "Out of memory allocating")


def test_what_xla_itself_raises():
  """More than any machine has: the allocator's own exception, and its own words."""
  words = r"eval\.batch_size, now 8(.|\n)*RESOURCE_EXHAUSTED"
  told = memory.told(drill.small(), memory.EVALUATION)
  with pytest.raises(OutOfMemoryError, match=words), told:
    jax.block_until_ready(jnp.zeros((2**46,), jnp.float32))


def test_memory_of_the_host():
  with pytest.raises(OutOfMemoryError, match="on the host"), memory.told(drill.small()):
    bytearray(2**62)


def test_other_errors_of_xla_stay_what_they_are():
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.told(drill.small()):
    raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
