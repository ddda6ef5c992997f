"""All that persists from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


class TrainState(flax.struct.PyTreeNode):
  """Everything a checkpoint holds; randomness is derived from the seed and `step`.

  Attributes:
    step: int32 scalar, number of steps taken.
    params: parameters, float32.
    batch_stats: running statistics of batch norm ({} with group norm).
    ema: {"params", "batch_stats"}, moving average of both.
    opt_state: state of the optimiser.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  ema: Any
  opt_state: Any


def create_state(variables, optimizer) -> TrainState:
  """State at step 0.

  Args:
    variables: {"params", ["batch_stats"]} of the model.
    optimizer: optax transformation.

  Returns:
    TrainState whose moving average equals the parameters.
  """
  params, batch_stats = variables["params"], variables.get("batch_stats", {})
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    # Copied, because a donated state may not hold the same buffer twice.
    ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}),
    opt_state=optimizer.init(params),
  )


def update_ema(ema, params, batch_stats, *, step, decay):
  """Moving average with the decay warmed up, so that the start does not linger in it.

  Args:
    ema: {"params", "batch_stats"}.
    params: new parameters.
    batch_stats: new running statistics.
    step: int32 scalar, steps taken before this one.
    decay: in [0, 1); used from the step where it falls below (1 + step) / (10 + step).

  Returns:
    The new average, a pytree like `ema`.
  """
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  new = {"params": params, "batch_stats": batch_stats}
  return jax.tree.map(lambda old, value: decay * old + (1.0 - decay) * value, ema, new)
