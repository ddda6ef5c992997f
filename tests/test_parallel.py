"""One function over any number of devices, under pmap and under jit."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boxseg_jax.batch import visible_pixels
from boxseg_jax.errors import InputError
from boxseg_jax.parallel import AXIS, KINDS, Parallel


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [1, 4, 8])
def test_sums_over_the_global_batch(kind, devices):
  parallel = Parallel(kind, jax.devices()[:devices])

  def step(state, batch):
    total = jax.lax.psum(batch["x"].sum(axis=0), AXIS)
    return state + total, {"total": total}

  run = parallel.compile(step, donate_state=True)
  state = parallel.replicate(jnp.zeros(2))
  batch = {"x": np.arange(16, dtype=np.float32).reshape(8, 2)}
  for _ in range(2):
    state, metrics = run(state, parallel.put_batch(batch))
  np.testing.assert_array_equal(metrics["total"], [56, 64])
  np.testing.assert_array_equal(state, [112, 128])
  assert state.is_fully_replicated and len(state.sharding.device_set) == devices


def test_each_device_sees_its_part_in_order():
  for kind in KINDS:
    parallel = Parallel(kind, jax.devices())
    run = parallel.compile(lambda state, batch: jax.lax.all_gather(batch["x"] + state, AXIS))
    found = run(1, parallel.put_batch({"x": np.arange(16)}))
    np.testing.assert_array_equal(found, np.arange(1, 17).reshape(8, 2))


def test_batch_that_does_not_divide_is_refused():
  parallel = Parallel("jit", jax.devices())
  parallel.check_batch_size("data.batch_size", 16)
  with pytest.raises(InputError, match=r"data\.batch_size = 12 .* 8 devices"):
    parallel.check_batch_size("data.batch_size", 12)


def test_unknown_kind_is_refused():
  with pytest.raises(InputError, match="'pmapp'"):
    Parallel("pmapp")


class TestPeakMemory:
  def test_of_the_process_where_devices_do_not_tell(self):
    found = Parallel("jit").peak_memory()
    assert list(found) == ["host_memory_gib"]
    assert 0.05 < found["host_memory_gib"] < 500

  def test_of_the_fullest_device_of_this_process(self):
    parallel = Parallel("jit")
    parallel.devices = [
      SimpleNamespace(process_index=0, memory_stats=lambda p=peak: {"peak_bytes_in_use": p * 2**30})
      for peak in (3, 5, 4)
    ] + [SimpleNamespace(process_index=1, memory_stats=None)]  # others' cannot be asked
    assert parallel.peak_memory() == {"device_memory_gib": 5.0}


def test_visible_pixels_by_hand():
  found = visible_pixels(jnp.array([[0.5, 1.0], [1.0, 0.25]]), (4, 4))
  expected = np.zeros((2, 4, 4), bool)
  expected[0, :2] = True
  expected[1, :, :1] = True
  np.testing.assert_array_equal(found, expected)
