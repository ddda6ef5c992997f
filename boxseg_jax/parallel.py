"""The only file that knows devices, meshes and processes.

A step is a pure function `(state, batch) -> (state, metrics)` over the named
axis `AXIS`: it sees its device's part of the batch and sums over devices with
`jax.lax.psum(..., AXIS)`. `Parallel` runs the same function either under
`jax.pmap` or under `jit(shard_map)` on a mesh of one axis; the state is one
unstacked pytree for both, so checkpoints do not care.
"""

import collections
import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from boxseg_jax.errors import InputError, LostProcessError

AXIS = "batch"
KINDS = ("pmap", "jit")
_PATIENCE = 20  # seconds without a sign of life after which a process counts as lost


def start(compilation_cache: str, *, distributed: bool = False) -> None:
  """Sets JAX up, before it is used in any other way.

  Args:
    compilation_cache: folder in which compiled programs outlive the process, so that a run started
      again begins at once; JAX_COMPILATION_CACHE_DIR goes before it.
    distributed: whether this is one of several processes of a job. Cloud TPUs, Slurm, Open MPI and
      Kubernetes tell it which one; elsewhere JAX_COORDINATOR_ADDRESS (host:port of the first one),
      JAX_NUM_PROCESSES and JAX_PROCESS_ID do. The first one alone writes to the standard output.

  Raises:
    InputError: nothing says which process this is, or the others are not there.
  """
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", compilation_cache)
  if distributed:
    _join_processes()


def _join_processes():
  try:
    jax.distributed.initialize(
      num_processes=_number("JAX_NUM_PROCESSES"),
      process_id=_number("JAX_PROCESS_ID"),
      heartbeat_timeout_seconds=_PATIENCE,
      shutdown_timeout_seconds=_PATIENCE,
    )
  except (ValueError, RuntimeError) as error:
    raise InputError(f"--distributed: the processes cannot be joined: {error}") from error
  if jax.process_index() > 0:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, as long as the process lives


def _number(variable):
  value = os.environ.get(variable)
  try:
    return None if value is None else int(value)
  except ValueError as error:
    raise InputError(f"{variable} is {value!r}, but must be a whole number") from error


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
  """Says what it means when a sum over processes fails.

  Where JAX notices first, by the missing signs of life, it ends the process with its own words.

  Raises:
    LostProcessError: another process has died or cannot be reached.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    of_the_job = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    if jax.process_count() == 1 or not of_the_job:
      raise
    reason = str(error).splitlines()[0]
    raise LostProcessError(
      f"process {jax.process_index()} of {jax.process_count()} stops, as another one has died or "
      f"cannot be reached; the same command goes on from the last checkpoint ({reason})"
    ) from error


def wait_for_all(what: str) -> None:
  """Returns when all processes of the job have come here; `what` tells places apart."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


class StopRequest:
  """Learns of SIGTERM (which preempted machines get, too) in time for a last checkpoint.

  A context manager. A second SIGTERM ends the process at once.
  """

  def __init__(self):
    """Knows of no request."""
    self._requested = False
    self._handler = None

  def __enter__(self):
    # Of several processes JAX asks each one. Signals can be caught in the main thread alone.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._handler = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *error):
    if self._handler is not None:
      signal.signal(signal.SIGTERM, self._handler)
    self._handler = None

  def _note(self, number, frame):
    del number, frame
    self._requested = True
    self.__exit__()

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; the same answer on all processes, which all have to ask."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._requested


@dataclasses.dataclass(frozen=True)
class Step:
  """A step over all devices, and what it is given along with each state and batch.

  Attributes:
    run: of `jax.jit` or `jax.pmap`, or what is compiled of it: `(state, batch, *constants) ->
      outputs`.
    constants: pytrees on all devices.
  """

  run: Any
  constants: tuple[Any, ...]

  def __call__(self, state, batch):
    """The outputs for a state and a batch."""
    return self.run(state, batch, *self.constants)

  def lower(self, state, batch) -> jax.stages.Lowered:
    """The program for a state and a batch, before it is compiled."""
    return self.run.lower(state, batch, *self.constants)


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

  def compile(
    self, step: Callable, *, constants: tuple[Any, ...] = (), donate_state: bool = False
  ) -> Step:
    """The step over all devices.

    Args:
      step: pure `(state, batch, *constants) -> outputs` over the axis `AXIS`; its outputs must
        be equal on all devices (summed with psum or computed from such sums).
      constants: pytrees of arrays. The program does not depend on their values, so that runs which
        differ in nothing else take it from the compilation cache.
      donate_state: reuse the state's buffers; the old state is gone after the call.

    Returns:
      `(state, batch) -> outputs`; the batch comes from `put_batch`, state and
      outputs are replicated.
    """
    donate = (0,) if donate_state else ()
    constants = self.replicate(constants)
    if self.kind == "pmap":
      mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, *[None for _ in constants]),
        out_axes=None,
        devices=self.devices,
        donate_argnums=donate,
      )
      return Step(mapped, constants)
    sharded = jax.shard_map(
      step,
      mesh=self.mesh,
      in_specs=(PartitionSpec(), PartitionSpec(AXIS), *[PartitionSpec() for _ in constants]),
      out_specs=PartitionSpec(),
      # Sums are written out in the step, as pmap needs them: the automatic ones
      # of the checked mode would count gradients twice.
      check_vma=False,
    )
    return Step(jax.jit(sharded, donate_argnums=donate), constants)

  def whole(self, tree):
    """Outputs of `compile` as arrays over all devices: pmap gives each process its own."""

    def join(x):
      parts = [shard.data for shard in x.addressable_shards]
      return jax.make_array_from_single_device_arrays(x.shape, self.replicated, parts)

    return jax.tree.map(join, tree)

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
    queue: collections.deque = collections.deque()
    for batch in batches:
      queue.append(self.put_batch(batch))  # returns at once; the copy goes on behind it
      if len(queue) > ahead:
        yield queue.popleft()
    yield from queue

  def peak_memory(self) -> dict[str, float]:
    """The most memory that was in use at once so far, in GiB.

    Returns:
      "device_memory_gib", of the fullest device of this process; where devices do not tell, as
      CPUs do not, "host_memory_gib", the resident size of this process; {} where that is unknown
      too (not on Linux and macOS).
    """
    local = [device for device in self.devices if device.process_index == self.process_index]
    peak = device_peak_bytes(local)
    if peak is not None:
      return {"device_memory_gib": peak / 2**30}
    resident = _peak_resident_bytes()
    return {} if resident is None else {"host_memory_gib": resident / 2**30}

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of arrays of which every device has a copy."""
    return NamedSharding(self.mesh, PartitionSpec())

  def replicate(self, tree):
    """Puts one copy of the pytree on every device."""
    return jax.device_put(tree, self.replicated)


def device_peak_bytes(devices: Iterable) -> int | None:
  """The most that any of the devices has held so far; None where they do not tell (CPUs)."""
  told = [device.memory_stats() or {} for device in devices]
  return max((one["peak_bytes_in_use"] for one in told if "peak_bytes_in_use" in one), default=None)


def _peak_resident_bytes() -> int | None:
  try:
    import resource
  except ImportError:
    return None
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024
