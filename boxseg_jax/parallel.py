"""The only file that knows devices, meshes and processes.

A step is a pure function `(state, batch) -> (state, metrics)` over the named
axis `AXIS`: it sees its device's part of the batch and sums over devices with
`jax.lax.psum(..., AXIS)`. `Parallel` runs the same function either under
`jax.pmap` or under `jit(shard_map)` on a mesh of one axis; the state is one
unstacked pytree for both, so checkpoints do not care.
"""

import collections
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from boxseg_jax.errors import InputError

AXIS = "batch"
KINDS = ("pmap", "jit")


def keep_compiled_programs(folder: str) -> None:
  """Lets compiled programs outlive the process, so that a run started again begins at once.

  Args:
    folder: where they are kept, unless JAX_COMPILATION_CACHE_DIR names another.
  """
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", folder)


class Parallel:
  """Runs per-device functions on all devices."""

  def __init__(self, kind: str = "pmap", devices=None):
    """Args: kind: "pmap" or "jit"; devices: list, all that JAX finds by default."""
    if kind not in KINDS:
      raise InputError(f"config.parallel.kind is {kind!r}, but must be one of {KINDS}")
    self.kind = kind
    self.devices = list(jax.devices() if devices is None else devices)
    self.mesh = Mesh(np.array(self.devices), (AXIS,))
    self.process_index = jax.process_index()
    self.process_count = jax.process_count()

  @property
  def device_count(self) -> int:
    """Number of devices over all processes."""
    return len(self.devices)

  def check_batch_size(self, name: str, batch_size: int, accumulate: int = 1) -> None:
    """Refuses a global batch that does not split evenly.

    Args:
      name: of the config key, for the message.
      batch_size: the global batch.
      accumulate: micro-batches per device and step.

    Raises:
      InputError: it does not split over the devices and their micro-batches.
    """
    if batch_size % (self.device_count * accumulate):
      raise InputError(
        f"config.{name} = {batch_size} does not divide over {self.device_count} devices"
        + (f" with {accumulate} micro-batches each" if accumulate > 1 else "")
      )

  def compile(self, step: Callable, *, donate_state: bool = False) -> Callable:
    """The step over all devices.

    Args:
      step: pure `(state, batch) -> outputs` over the axis `AXIS`; its outputs must be
        equal on all devices (summed with psum or computed from such sums).
      donate_state: reuse the state's buffers; the old state is gone after the call.

    Returns:
      `(state, batch) -> outputs`; the batch comes from `put_batch`, state and
      outputs are replicated.
    """
    donate = (0,) if donate_state else ()
    if self.kind == "pmap":
      return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=self.devices,
        donate_argnums=donate,
      )
    sharded = jax.shard_map(
      step,
      mesh=self.mesh,
      in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
      out_specs=PartitionSpec(),
      # Sums are written out in the step, as pmap needs them: the automatic ones
      # of the checked mode would count gradients twice.
      check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=donate)

  def put_batch(self, batch):
    """Moves this process's part of a global batch to its devices.

    Args:
      batch: numpy arrays [global batch / processes, ...].

    Returns:
      The arrays as the compiled step takes them.
    """
    sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
    if self.kind == "pmap":
      local = len(self.devices) // self.process_count
      batch = {k: v.reshape(local, -1, *v.shape[1:]) for k, v in batch.items()}
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

  def prefetch(self, batches: Iterable, ahead: int = 2) -> Iterator:
    """Moves batches to the devices before they are asked for.

    Args:
      batches: numpy batches, as `put_batch` takes them.
      ahead: how many are on their way.

    Returns:
      Iterator over what `put_batch` gives, in order.
    """
    queue = collections.deque()
    for batch in batches:
      queue.append(self.put_batch(batch))  # returns at once; the copy goes on behind it
      if len(queue) > ahead:
        yield queue.popleft()
    yield from queue

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of arrays of which every device has a copy."""
    return NamedSharding(self.mesh, PartitionSpec())

  def replicate(self, tree):
    """Puts one copy of the pytree on every device."""
    return jax.device_put(tree, self.replicated)
