"""Batch normalisation against flax's own, whose gradient is derived automatically."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from boxseg_jax.models.batch_norm import BatchNorm

CONSTANTS = {"momentum": 0.9, "epsilon": 1e-3}


def setting(seed=0, offset=0.0):
  """(variables, x [2, 3, 5, 7, 4], direction of the same shape); 2 devices."""
  rng = np.random.default_rng(seed)
  x = rng.normal(offset, 2, (2, 3, 5, 7, 4)).astype(np.float32)
  params = {"scale": rng.normal(1, 0.5, 4), "bias": rng.normal(0, 0.5, 4)}
  stats = {"mean": rng.normal(0, 1, 4), "var": rng.uniform(0.5, 2, 4)}
  variables = jax.tree.map(jnp.float32, {"params": params, "batch_stats": stats})
  return variables, x, rng.normal(0, 1, x.shape).astype(np.float32)


def both(dtype=jnp.float32, axis_name=None, act=None):
  """(ours, flax's) as functions of (variables, x, train) -> (y, new batch_stats)."""
  options = CONSTANTS | {"dtype": dtype, "axis_name": axis_name}
  ours, theirs = BatchNorm(**options, act=act), nn.BatchNorm(**options)

  def apply_ours(variables, x, train):
    y, new = ours.apply(variables, x, train, mutable=["batch_stats"])
    return y, new["batch_stats"]

  def apply_theirs(variables, x, train):
    average = {"use_running_average": not train}
    y, new = theirs.apply(variables, x, mutable=["batch_stats"], **average)
    return act(y) if act else y, new["batch_stats"]

  return apply_ours, apply_theirs


def assert_near(ours, theirs, tolerance):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert one.dtype == other.dtype
    scale = max(1.0, float(jnp.abs(other).max()))
    np.testing.assert_allclose(np.float64(one), np.float64(other), rtol=0, atol=tolerance * scale)


def test_has_the_variables_of_flax():
  ours = BatchNorm(**CONSTANTS, dtype=jnp.float32, axis_name="batch")
  theirs = nn.BatchNorm(**CONSTANTS, use_running_average=False)
  x = setting()[1][0]
  assert_near(ours.init(jax.random.key(0), x, True), theirs.init(jax.random.key(0), x), 0)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("act", [None, nn.relu, nn.relu6])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_result_statistics_and_gradients(
  backend, act, dtype, tolerance, train, offset, monkeypatch
):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)  # which chooses how sums are taken
  variables, x, direction = setting(offset=offset)

  def outcome(apply):
    def along(params, x):
      y, stats = apply(variables | {"params": params}, x, train)
      return (y.astype(jnp.float32) * direction[0]).sum(), (y, stats)

    gradients, outputs = jax.grad(along, argnums=(0, 1), has_aux=True)(
      variables["params"], x[0].astype(dtype)
    )
    return outputs, gradients

  # Squares of what lies far from 0 lose digits, on both sides.
  assert_near(*map(outcome, both(dtype, act=act)), tolerance * (1 + offset))


def test_over_devices():
  variables, x, direction = setting(1)

  def outcome(apply, x, direction):
    """(gradients, new statistics) as a training step takes them: inside of the mapped axis."""

    def along(params, x):
      y, stats = apply(variables | {"params": params}, x, True)
      return (y * direction).sum(), stats

    return jax.grad(along, argnums=(0, 1), has_aux=True)(variables["params"], x)

  ours, theirs = (
    jax.vmap(partial(outcome, apply), axis_name="batch")(x, direction)
    for apply in both(axis_name="batch")
  )
  assert_near(ours, theirs, 1e-5)
  # The same as one device that sees all of it.
  whole = outcome(both()[1], *(array.reshape(6, 5, 7, 4) for array in (x, direction)))
  (to_params, to_x), stats = ours
  assert_near(jax.tree.map(lambda g: g.sum(0), to_params), whole[0][0], 1e-5)
  assert_near(to_x.reshape(6, 5, 7, 4), whole[0][1], 1e-5)
  assert_near(jax.tree.map(lambda s: s[0], stats), whole[1], 1e-5)


def test_a_channel_of_one_value_has_no_gradient_that_is_not_finite():
  variables, _, direction = setting()
  ours = both()[0]
  x = jnp.full((3, 5, 7, 4), 7.0)
  gradient = jax.grad(lambda x: (ours(variables, x, True)[0] * direction[0]).sum())(x)
  assert bool(jnp.isfinite(gradient).all())
