"""Eight virtual CPU devices for all tests; set before JAX starts."""

import contextlib
import ctypes
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    # They share the cores with other tests, and may wait long for each other: by default the
    # process is aborted after 40 seconds.
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60",
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
  ]
)

import pytest


@pytest.fixture(autouse=True, scope="session")
def _compilation_cache(tmp_path_factory):
  """Programs that several tests compile are compiled once per session, or kept where asked to."""
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  import jax

  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(autouse=True, scope="module")
def _memory_is_given_back():
  """Programs that were compiled, and what was needed to: or a process comes to have over 4 GB."""
  yield
  import jax

  jax.clear_caches()
  with contextlib.suppress(AttributeError):  # of glibc alone
    ctypes.CDLL(None).malloc_trim(0)
