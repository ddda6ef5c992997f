"""Teaches a refiner on the crops of boxes whose masks are known."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from boxseg_jax.losses import instances
from boxseg_jax.models import refiner

# Chosen on `camvid/val` (launch/results/method.md).
BATCH_SIZE = 32
_LEARNING_RATE = 4e-3
_WEIGHT_DECAY = 1e-2
_LARGEST_GRADIENT = 1.0
_DECAY = 0.99  # of the moving average


class Example(NamedTuple):
  """The crop of one box; float16, as there are many.

  Attributes:
    probability: [side, side], see `losses.instances.Outcome`.
    evidence: [side, side, channels], likewise.
    features: [side / 2, side / 2, f], likewise.
    target: [side, side] in [0, 1], the object.
    counted: [side, side], 1 for the pixels of its box that are known, else 0.
  """

  probability: np.ndarray
  evidence: np.ndarray
  features: np.ndarray
  target: np.ndarray
  counted: np.ndarray


def fit(
  examples: Sequence[Example],
  *,
  num_steps: int,
  seed: int,
  progress: Callable[[int], Any] = lambda done: None,
):
  """Learns how the outcome of the rules is to be corrected.

  Args:
    examples: at least one.
    num_steps: of batches of 32 crops, drawn at random.
    seed: of the parameters, the draws, and what is left out or moved at random.
    progress: called after each step with the number of steps done.

  Returns:
    {"params"}, float32, the moving average.
  """
  schedule = optax.cosine_onecycle_schedule(num_steps, _LEARNING_RATE)
  optimizer = optax.chain(
    optax.clip_by_global_norm(_LARGEST_GRADIENT),
    optax.adamw(schedule, weight_decay=_WEIGHT_DECAY),
  )
  key, draws = jax.random.key(seed), np.random.default_rng(seed)
  first = _batch(examples[:1])
  init = jax.jit(lambda key: refiner.build().init(key, first.evidence, first.features, train=False))
  params = init(key)
  state = params, optimizer.init(params), jax.tree.map(jnp.copy, params)
  step = jax.jit(_make_step(optimizer), donate_argnums=0)
  for done in range(num_steps):
    chosen = draws.integers(0, len(examples), BATCH_SIZE)
    batch = _batch([examples[index] for index in chosen])
    state = step(state, batch, jax.random.fold_in(key, done))
    progress(done + 1)
  return jax.device_get(state[2])


def _batch(examples: Sequence[Example]) -> Example:
  return Example(*(np.stack(field).astype(np.float32) for field in zip(*examples, strict=True)))


def _make_step(optimizer):
  def loss(params, batch: Example, key):
    noise, dropout = jax.random.split(key)
    evidence = instances.less_sure(batch.evidence, noise)
    correction = refiner.build().apply(
      params, evidence, batch.features, train=True, rngs={"dropout": dropout}
    )
    odds = instances.refined(batch.probability, correction)
    return jnp.mean(instances.refiner_loss(odds, batch.target, batch.counted))

  def step(state, batch, key):
    params, opt_state, average = state
    grads = jax.grad(loss)(params, batch, key)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, optax.incremental_update(params, average, 1 - _DECAY)

  return step
