"""What a training will take: steps per epoch and memory, computed without running a step."""

import math
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from boxseg_jax import augment
from boxseg_jax.batch import padding_example
from boxseg_jax.data.training_set import TrainingSet
from boxseg_jax.parallel import AXIS, Parallel
from boxseg_jax.training import build
from boxseg_jax.training.step import make_loss


class Budget(NamedTuple):
  """What a run of the configuration takes.

  Attributes:
    mask_steps: steps in which every mask image is seen once; 0 = there are none.
    box_steps: the same for box images.
    mask_epochs: how often a mask image is seen in `train.num_steps`.
    box_epochs: the same for box images.
    cache_bytes: of decoded images that the host keeps (`data.cache`).
    parameters: number of parameters.
    state_bytes: of parameters, their moving average and the optimiser, on each device.
    step_bytes: of what a step keeps for its gradients, on each device: an upper bound, as
      compilers merge and drop some of it.
  """

  mask_steps: int
  box_steps: int
  mask_epochs: float
  box_epochs: float
  cache_bytes: int
  parameters: int
  state_bytes: int
  step_bytes: int


def estimate(config: ConfigDict, training: TrainingSet, judged: int) -> Budget:
  """Estimates a run; takes seconds, and no accelerator memory.

  Args:
    config: the configuration.
    training: the training set.
    judged: number of images of the evaluation split.

  Raises:
    InputError: a batch size that the devices cannot share, or what the model finds wrong.
  """
  parallel = Parallel(config.parallel.kind)
  parallel.check_batch_size("eval.batch_size", config.eval.batch_size)
  batch_size = config.data.batch_size
  parallel.check_batch_size("data.batch_size", batch_size, config.optimizer.accumulate)
  masks, boxes = len(training.mask_indices), len(training.box_indices)
  of_masks, of_boxes = training.mask_images, batch_size - training.mask_images
  pixels = int(np.prod(config.data.canvas))
  images = masks + boxes + judged
  parts = parallel.device_count * config.optimizer.accumulate
  parameters, state_bytes, step_bytes = _device_memory(config, training, batch_size // parts)
  return Budget(
    mask_steps=math.ceil(masks / of_masks) if of_masks else 0,
    box_steps=math.ceil(boxes / of_boxes) if of_boxes else 0,
    mask_epochs=config.train.num_steps * of_masks / max(masks, 1),
    box_epochs=config.train.num_steps * of_boxes / max(boxes, 1),
    cache_bytes=4 * pixels * images if config.data.cache else 0,
    parameters=parameters,
    state_bytes=state_bytes,
    step_bytes=step_bytes,
  )


def _device_memory(config, training, local_batch):
  """(number of parameters, bytes of the state, bytes kept for the gradients)."""
  model = build.make_model(config)
  optimizer, _ = build.make_optimizer(config)
  settings = build.loss_settings(
    config,
    training.class_weights,
    mask_images=training.mask_images,
    box_priors=training.box_priors,
  )
  parallel = Parallel(config.parallel.kind)
  state = build.state_like(config, model, optimizer, settings, parallel)
  batch = _batch_like(config, training, local_batch)
  loss = make_loss(model, settings)

  def kept(state, batch):
    def total(params):
      return loss(params, state.batch_stats, state.ema, state.step, augment.prepare(batch))[0]

    # What differentiation holds on to is in the function that goes backwards.
    return jax.tree.leaves(jax.vjp(total, state.params)[1])

  over_devices = jax.vmap(kept, in_axes=(None, 0), axis_name=AXIS)
  held = jax.eval_shape(over_devices, state, batch)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
  return count, _bytes(state), max(_bytes(held) - _bytes(state.params), 0)


def _batch_like(config, training, local_batch):
  """Shapes of what a device sees of a batch, with an axis over devices in front."""
  view = tuple(config.augment.crop or config.data.canvas)
  example = padding_example(view, training.reader.max_boxes)
  return {
    name: jax.ShapeDtypeStruct((1, local_batch, *value.shape), value.dtype)
    for name, value in example.items()
  }


def _bytes(tree):
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
