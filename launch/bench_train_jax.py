"""One row of `bench_train.py`: a training step of boxseg_jax, in a process of its own.

Takes the row as JSON and prints what it measured as JSON. "seconds_per_step" is of what PyTorch's
rows do: the network, cross entropy, AdamW. With "method" it also takes our own training step
apart, with augmentation on the device, moving average and metrics, as `--mode=benchmark` does.
"""

import itertools
import json
import sys
from functools import partial

import jax
import numpy as np
import optax

from boxseg_jax import batch as contract
from boxseg_jax import config as configuration
from boxseg_jax.apps import benchmark
from boxseg_jax.data.box_priors import box_priors
from boxseg_jax.data.order import mask_images_per_batch
from boxseg_jax.parallel import AXIS, Parallel, device_peak_bytes
from boxseg_jax.training import build, origin, speed
from boxseg_jax.training.state import TrainState

NETWORKS = {
  "unet-conv": {"name": "unet", "encoder.name": "conv"},
  "unet-r34": {"name": "unet", "encoder.name": "resnet34"},
  "erfnet": {"name": "erfnet"},
  "deeplabv3plus-r50": {"name": "deeplabv3plus", "encoder.name": "resnet50"},
}
_BOXES = 8  # per image
_OF_PARENT = ("command", "device", "host cores")  # told once, for all rows
_HOST_BATCHES, _WARM_UP, _BEYOND = 4, 4, 4


def configured(row):
  """The default configuration with a row's network, size and dtype."""
  config = configuration.get_config()
  options = {f"model.{key}": value for key, value in NETWORKS[row["network"]].items()}
  names = ("background", *(f"class{i}" for i in range(1, row["num_classes"])))
  config.update_from_flattened_dict(options)
  config.data.canvas, config.data.class_names = tuple(row["size"]), names
  config.data.batch_size, config.model.dtype = row["batch_size"], row["dtype"]
  config.benchmark.steps, config.benchmark.repeats = row["steps"], row["repeats"]
  configuration.check(config)
  return config


def made_batch(config, mask_images, seed=0):
  """A batch of noise with boxes, of the contract of `boxseg_jax.batch`; mask images first."""
  rng = np.random.default_rng(seed)
  count, num_classes = config.data.batch_size, len(config.data.class_names)
  example = contract.padding_example(tuple(config.data.canvas), _BOXES)
  batch = {name: np.stack([value] * count) for name, value in example.items()}
  batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
  batch["labels"] = rng.integers(0, num_classes, batch["labels"].shape, np.uint8)
  batch["labels"][mask_images:] = contract.VOID
  corners = np.sort(rng.random((2, count, _BOXES, 2), np.float32), axis=0)
  batch["boxes"] = np.concatenate(list(corners), axis=-1)
  batch["box_classes"] = rng.integers(1, num_classes, (count, _BOXES), np.int32)
  batch["has_mask"][:mask_images] = True
  batch["valid"][:] = True
  return batch


def plain_step(model, optimizer):
  """`(state, batch) -> (state, loss)` that does what PyTorch's rows do, and nothing else."""

  def step(state, batch):
    def loss(params):
      variables = {"params": params, "batch_stats": state.batch_stats}
      image = batch["image"] / 255.0
      outputs, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
      # As the method's own loss: the gradient of picking by index is a scatter, slow on CPUs.
      labels = jax.nn.one_hot(batch["labels"], outputs.logits.shape[-1])
      each = optax.softmax_cross_entropy(outputs.logits, labels)
      return each.mean(), updated["batch_stats"]

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    value, grads = jax.lax.pmean((value, grads), AXIS)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, stats, {}, opt_state), value

  return step


def _plain(config, parallel, of_data):
  """The stepper of `plain_step`, and how many parameters its network has."""
  model, optimizer = build.make_model(config), optax.adamw(1e-3, weight_decay=1e-4)
  settings = build.loss_settings(config, **of_data)._replace(teacher="self")
  init = partial(build.init, model, tuple(config.data.canvas), settings)
  variables = jax.jit(init)(jax.random.key(0, impl="rbg"))
  opt_state = jax.jit(optimizer.init)(variables["params"])
  state = TrainState(np.int32(0), variables["params"], variables["batch_stats"], {}, opt_state)
  state = parallel.replicate(state)
  batch = {k: v for k, v in made_batch(config, config.data.batch_size).items() if k in _USED}
  batch = parallel.put_batch(batch)
  step = parallel.compile(plain_step(model, optimizer), donate_state=True)
  program = speed.compile_step(step, state, batch)
  stepper = speed.Stepper(program, state, batch, steps=config.benchmark.steps)
  return stepper, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


_USED = ("image", "labels")


def _from_host(config, parallel, stepper):
  """Seconds per step with batches that are copied to the device meanwhile."""
  made = [made_batch(config, config.data.batch_size, seed) for seed in range(_HOST_BATCHES)]
  count = _WARM_UP + config.benchmark.steps + _BEYOND
  batches = itertools.islice(itertools.cycle(made), count)
  used = ({name: batch[name] for name in _USED} for batch in batches)
  return stepper.fed(parallel.prefetch(used), _WARM_UP)


def measure(row):
  """What one row found, see `bench_train.py`."""
  config = configured(row)
  devices = jax.local_devices()[:1]
  parallel = Parallel(config.parallel.kind, devices)
  masks = mask_images_per_batch(-1, num_masks=1, num_boxes=4, batch_size=row["batch_size"])
  num_classes = len(config.data.class_names)
  of_data = {"class_weights": (1.0,) * num_classes, "mask_images": masks}
  of_data["box_priors"] = box_priors([], num_classes)
  stepper, parameters = _plain(config, parallel, of_data)
  stepper.on_device()
  peak = device_peak_bytes(devices)
  timings = {"device": stepper.on_device, "host": lambda: _from_host(config, parallel, stepper)}
  seconds = speed.take_turns(timings, row["repeats"])
  program, kind = stepper.program, devices[0].device_kind
  rates = benchmark.flop_rates(program.flops, seconds["device"][0], kind, row["dtype"])
  missing = rates.pop("left_out")
  found = {
    "device": kind,
    "versions": {k: v for k, v in origin.here().items() if k not in _OF_PARENT},
    "how": "XLA",
    "note": "; ".join(f"{name} left out: {why}" for name, why in missing.items()),
    "parameters": parameters,
    "seconds_per_step": seconds["device"][0],
    "slowest_seconds_per_step": seconds["device"][-1],
    "seconds_per_step_from_host": seconds["host"][0],
    "first_step_seconds": program.trace_seconds + program.compile_seconds,
    "memory_bytes": peak or program.memory_bytes,
    **rates,
    "xla_flops_per_step": program.xla_flops,
  }
  if row["method"]:
    batch = made_batch(config, masks)
    silent = benchmark.Bench(config, parallel, batch, report=lambda line: None, **of_data)
    found["taken_apart"] = silent.measure({})
  return found


def main():
  print(json.dumps(measure(json.loads(sys.argv[1]))))


if __name__ == "__main__":
  main()
