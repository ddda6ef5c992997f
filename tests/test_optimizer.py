"""Optimisers and schedules against hand numbers."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from boxseg_jax.errors import InputError
from boxseg_jax.training import optimizer as optimizers


def make(name="sgd", **changes):
  settings = {
    "schedule": lambda step: 0.1,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "clip_norm": 0.0,
    "encoder_rate": 1.0,
  }
  return optimizers.make_optimizer(name, **(settings | changes))


PARAMS = {
  "encoder": {"kernel": jnp.array([[1.0]]), "bias": jnp.array([1.0])},
  "head": {"kernel": jnp.array([[1.0]]), "bias": jnp.array([1.0])},
}
GRADS = {
  "encoder": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([0.0])},
  "head": {"kernel": jnp.array([[4.0]]), "bias": jnp.array([0.0])},
}


def stepped(optimizer, steps=1):
  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(steps):
    updates, state = optimizer.update(GRADS, state, params)
    params = optax.apply_updates(params, updates)
  return params


def kernels(params):
  return [float(params[part]["kernel"][0, 0]) for part in ("encoder", "head")]


def test_schedules_warm_up_peak_and_end_at_zero():
  for name, middle in [("cosine", 0.5), ("poly", 0.5**0.9)]:
    schedule = optimizers.make_schedule(name, learning_rate=2.0, num_steps=110, warmup_steps=10)
    found = [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(found, [0.0, 1.0, 2.0, 2.0 * middle, 0.0], atol=1e-6)


def test_no_warm_up_starts_at_the_peak():
  schedule = optimizers.make_schedule("cosine", learning_rate=2.0, num_steps=10, warmup_steps=0)
  assert float(schedule(0)) == 2.0


def test_sgd_by_hand():
  np.testing.assert_allclose(kernels(stepped(make())), [0.7, 0.6], rtol=1e-6)


def test_nesterov_momentum_by_hand():
  # v = g, then v = g + 0.5 v; a step is g + 0.5 v.
  moved = 1 - np.array(kernels(stepped(make(momentum=0.5), steps=2)))
  np.testing.assert_allclose(moved, [0.3 * (1.5 + 1.75), 0.4 * 3.25], rtol=1e-6)


def test_clipping_scales_to_the_global_norm():
  np.testing.assert_allclose(kernels(stepped(make(clip_norm=1.0))), [0.94, 0.92], rtol=1e-5)


def test_encoder_has_its_share_of_the_rate():
  np.testing.assert_allclose(kernels(stepped(make(encoder_rate=0.1))), [0.97, 0.6], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_pulls_kernels_and_leaves_biases(name):
  decayed, plain = stepped(make(name, weight_decay=0.5)), stepped(make(name))
  for part in ("encoder", "head"):
    assert float(plain[part]["kernel"][0, 0] - decayed[part]["kernel"][0, 0]) == pytest.approx(
      0.1 * 0.5, rel=1e-5
    )
    assert float(decayed[part]["bias"][0]) == 1.0


def test_adamw_first_step_is_the_rate():
  np.testing.assert_allclose(kernels(stepped(make("adamw"))), [0.9, 0.9], rtol=1e-5)


def test_unknown_names_are_refused():
  with pytest.raises(InputError, match="'adam'"):
    make("adam")
  with pytest.raises(InputError, match="'linear'"):
    optimizers.make_schedule("linear", learning_rate=1.0, num_steps=2, warmup_steps=1)
