"""Optimisers and learning-rate schedules, put together from optax."""

import jax
import optax

from boxseg_jax.errors import InputError


def make_schedule(name: str, *, learning_rate: float, num_steps: int, warmup_steps: int):
  """Learning rate by step: linear warm-up, then to 0 at `num_steps`.

  Args:
    name: "cosine", or "poly" with power 0.9.
    learning_rate: peak.
    num_steps: length of the training in steps.
    warmup_steps: steps of the warm-up, below num_steps.

  Returns:
    An optax schedule.

  Raises:
    InputError: unknown name.
  """
  decay_steps = max(num_steps - warmup_steps, 1)
  if name == "cosine":
    decay = optax.cosine_decay_schedule(learning_rate, decay_steps)
  elif name == "poly":
    decay = optax.polynomial_schedule(learning_rate, 0.0, power=0.9, transition_steps=decay_steps)
  else:
    raise InputError(f"config.optimizer.schedule is {name!r}, but must be 'cosine' or 'poly'")
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def _is_kernel(params):
  """True for weights of convolutions: biases and norms are not decayed."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def _scale_encoder(rate: float):
  """Scales the updates of the parameters under the top-level key "encoder"."""

  def update(updates, state, params=None):
    del params
    scaled = dict(updates)
    if "encoder" in scaled:
      scaled["encoder"] = jax.tree.map(lambda u: rate * u, scaled["encoder"])
    return scaled, state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
  name: str,
  *,
  schedule,
  weight_decay: float,
  momentum: float,
  clip_norm: float,
  encoder_rate: float,
) -> optax.GradientTransformation:
  """Clipping -> AdamW or SGD with decoupled decay -> lower rate of the encoder.

  Args:
    name: "adamw" or "sgd".
    schedule: learning rate by step.
    weight_decay: decay of kernels, decoupled (times the learning rate).
    momentum: of SGD.
    clip_norm: largest global norm of the gradient, 0 = no clipping.
    encoder_rate: the encoder's share of the learning rate.

  Returns:
    The optax transformation.

  Raises:
    InputError: unknown name.
  """
  if name == "adamw":
    base = optax.adamw(schedule, weight_decay=weight_decay, mask=_is_kernel)
  elif name == "sgd":
    base = optax.chain(
      optax.trace(momentum, nesterov=True),
      optax.add_decayed_weights(weight_decay, mask=_is_kernel),
      optax.scale_by_learning_rate(schedule),
    )
  else:
    raise InputError(f"config.optimizer.name is {name!r}, but must be 'adamw' or 'sgd'")
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  slower = [_scale_encoder(encoder_rate)] if encoder_rate != 1.0 else []
  return optax.chain(*clip, base, *slower)
