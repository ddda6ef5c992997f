"""Eight virtual CPU devices for all tests; set before JAX starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
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
