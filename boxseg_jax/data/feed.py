"""Examples -> batches, for training and for evaluation.

Training has two feeds with equal batches, bit for bit: tf.data, and threads where
TensorFlow is absent. Both only call the reader, so nothing in them can differ.
"""

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np

from boxseg_jax.batch import VOID, padding_example
from boxseg_jax.data import windows
from boxseg_jax.data.examples import ExampleReader
from boxseg_jax.errors import InputError

_AHEAD = 2  # batches that are ready or in work beyond the one in use
_ALIGNED = 64  # bytes; either library copies what begins elsewhere
_BUCKET = 128  # pixels; images' own sizes are rounded up to multiples of it


def training_batches(
  reader: Callable[[int], dict[str, np.ndarray]],
  batch_at: Callable[[int], np.ndarray],
  *,
  start_step: int,
  num_steps: int,
  process_index: int,
  process_count: int,
  workers: int,
  pipeline: str,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's part of the batches of num_steps steps from start_step on.

  Args:
    reader: position of a record -> example; called from several threads.
    batch_at: step -> int [batch_size], positions of the global batch.
    start_step: the first step to yield.
    num_steps: how many batches to yield.
    process_index: this process, in [0, process_count).
    process_count: processes among which the global batch is divided in equal,
      contiguous parts; this one gets [p * local : (p + 1) * local].
    workers: threads that read.
    pipeline: "tf", "numpy", or "auto" = "tf" where TensorFlow is installed.

  Yields:
    Batches of the training contract with `batch` = batch_size / process_count.

  Raises:
    InputError: an unknown pipeline, "tf" without TensorFlow, a batch that cannot be
      divided, or whatever the reader raises.
  """
  feeds = {"tf": _tf_batches, "numpy": _numpy_batches}
  pipeline = _pipeline(pipeline)
  if num_steps <= 0:
    return iter(())
  local = local_batch_size(len(batch_at(start_step)), process_count)
  mine = slice(process_index * local, (process_index + 1) * local)
  steps = range(start_step, start_step + num_steps)
  return feeds[pipeline](reader, lambda step: batch_at(step)[mine], steps, local, workers)


def evaluation_batches(
  reader: ExampleReader,
  *,
  batch_size: int,
  process_index: int,
  process_count: int,
  workers: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's part of batches that hold every record once.

  Records are grouped by the size of their labels, rounded up to multiples of 128
  pixels, so that few shapes have to be compiled. Number and shapes of the batches
  are the same on every process.

  Args:
    reader: the reader.
    batch_size: images in the global batch.
    process_index: this process, in [0, process_count).
    process_count: processes among which the global batch is divided.
    workers: threads that read ahead.

  Yields:
    Batches of the evaluation contract with `batch` = batch_size / process_count;
    where records run out, padding with `valid` False.

  Raises:
    InputError: a batch that cannot be divided, or whatever the reader raises.
  """
  local = local_batch_size(batch_size, process_count)
  mine = slice(process_index * local, (process_index + 1) * local)

  def read(planned):
    full_size, indices = planned
    examples = (_evaluation_example(reader, index, full_size) for index in indices[mine])
    return _stack(examples, local)

  return ahead(read, _evaluation_plan(reader, batch_size), workers, _AHEAD)


def tile_batches(
  reader: ExampleReader,
  *,
  overlap: float,
  batch_size: int,
  process_index: int,
  process_count: int,
  workers: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's part of batches that hold every pixel of every record once.

  An example is a window of an image at its own resolution, see `windows`: it shows more than
  is its own, and the labels of the rest are void. Images without a mask are void all over. All
  batches have one shape, and no more than `workers` + 1 whole images are in memory.

  Args:
    reader: the reader; its canvas is the size of a window.
    overlap: least share of a window that the next one sees too, in [0, 1).
    batch_size: windows in the global batch.
    process_index: this process, in [0, process_count).
    process_count: processes among which the global batch is divided.
    workers: threads that read images ahead.

  Yields:
    Batches of the evaluation contract with `batch` = batch_size / process_count, without
    boxes; where windows run out, padding with `valid` False.

  Raises:
    InputError: a batch that cannot be divided, or whatever the records raise.
  """
  local = local_batch_size(batch_size, process_count)
  planned: list[tuple[int, windows.Window | None]] = [
    (index, window)
    for index, record in enumerate(reader.records)
    for window in windows.windows(record.size, reader.canvas, overlap)
  ]
  planned += [(-1, None)] * (-len(planned) % batch_size)
  parts = np.arange(len(planned)).reshape(-1, process_count, local)[:, process_index]
  examples = _tile_examples(reader, [planned[place] for place in parts.ravel()], workers)
  for _ in parts:
    yield _stack(islice(examples, local), local)


def local_batch_size(batch_size: int, process_count: int) -> int:
  """Images of a global batch that one process reads.

  Args:
    batch_size: images in the global batch.
    process_count: number of processes.

  Returns:
    batch_size / process_count.

  Raises:
    InputError: it is no whole number.
  """
  if batch_size < 1 or batch_size % process_count:
    raise InputError(
      f"the batch size is {batch_size}, but must be a multiple of the {process_count} process(es)"
    )
  return batch_size // process_count


def bucket(size: tuple[int, int]) -> tuple[int, int]:
  """The next larger (height, width) of a few that programs are compiled for, in pixels."""
  height, width = (-(-side // _BUCKET) * _BUCKET for side in size)
  return height, width


def _pipeline(name: str) -> str:
  if name not in ("tf", "numpy", "auto"):
    raise InputError(f"data.pipeline is {name!r}, but must be 'tf', 'numpy' or 'auto'")
  if name == "numpy":
    return name
  try:
    tensorflow()
  except ImportError as error:
    if name == "tf":
      raise InputError(
        f"data.pipeline is 'tf', but TensorFlow cannot be imported: {error}"
      ) from error
    return "numpy"
  return "tf"


def tensorflow() -> Any:
  """Imports TensorFlow so that it leaves the log and the GPU's memory alone."""
  # Without these it greets the reader of the log at length.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  import tensorflow as tf

  # A full build would take the memory that JAX needs. Where somebody has used
  # TensorFlow before (RuntimeError), it is theirs to configure.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")
  return tf


def _numpy_batches(reader, indices_at, steps, local, workers) -> Iterator[dict[str, np.ndarray]]:
  sample = reader(int(indices_at(steps[0])[0]))

  def places():
    for step in steps:
      batch = _empty_batch(sample, local)
      for place, index in enumerate(indices_at(step)):
        yield batch, place, int(index)

  def read(item):
    batch, place, index = item
    _put(batch, place, reader(index))
    return batch

  filled = ahead(read, places(), workers, depth=_AHEAD * local)
  for _ in steps:
    yield [next(filled) for _ in range(local)][-1]


def _tf_batches(reader, indices_at, steps, local, workers) -> Iterator[dict[str, np.ndarray]]:
  tf = tensorflow()
  sample = reader(int(indices_at(steps[0])[0]))
  types = [tf.as_dtype(value.dtype) for value in sample.values()]
  failures = []

  def read(step):
    try:
      batch = _stack((reader(int(index)) for index in indices_at(int(step))), local)
      return [batch[name] for name in sample]
    except Exception as error:
      failures.append(error)  # TensorFlow would pass on no more than its text
      raise

  def load(step):
    # A whole batch at once: stacked here, it is not copied again example by example.
    arrays = tf.numpy_function(read, [step], types, stateful=False)
    for array, value in zip(arrays, sample.values(), strict=True):
      array.set_shape((local, *value.shape))
    return dict(zip(sample, arrays, strict=True))

  dataset = tf.data.Dataset.range(steps.start, steps.stop)
  dataset = dataset.map(load, num_parallel_calls=workers, deterministic=True).prefetch(_AHEAD)
  options = tf.data.Options()
  options.threading.private_threadpool_size = workers
  return _reraising(dataset.with_options(options).as_numpy_iterator(), failures, tf.errors.OpError)


def _reraising(batches, failures, error_type) -> Iterator[dict[str, np.ndarray]]:
  try:
    yield from batches
  except error_type:
    if failures:
      raise failures[0] from None
    raise


def _evaluation_plan(
  reader: ExampleReader, batch_size: int
) -> list[tuple[tuple[int, int], list[int]]]:
  """(full_height, full_width) and record positions of every global batch, -1 = padding."""
  buckets: dict[tuple[int, int], list[int]] = {}
  for index, record in enumerate(reader.records):
    buckets.setdefault(bucket(record.size), []).append(index)
  plan = []
  for full_size, indices in sorted(buckets.items()):
    indices = indices + [-1] * (-len(indices) % batch_size)
    for start in range(0, len(indices), batch_size):
      plan.append((full_size, indices[start : start + batch_size]))
  return plan


def _evaluation_example(
  reader: ExampleReader, index: int, full_size: tuple[int, int]
) -> dict[str, np.ndarray]:
  full = np.full(full_size, VOID, np.uint8)
  if index < 0:
    example = padding_example(reader.canvas, reader.max_boxes)
    return example | {"full_labels": full, "full_size": np.ones(2, np.int32)}
  example = reader.evaluation(index)
  height, width = example["full_labels"].shape
  full[:height, :width] = example["full_labels"]
  return example | {"full_labels": full}


def _tile_examples(reader, planned, workers) -> Iterator[dict[str, np.ndarray]]:
  """Examples of (position of a record, window) pairs; -1 = padding."""
  by_image = [(index, list(pairs)) for index, pairs in groupby(planned, key=lambda pair: pair[0])]
  whole = ahead(
    partial(_read_whole, reader.records), [index for index, _ in by_image], workers, workers - 1
  )
  for (index, pairs), (image, labels) in zip(by_image, whole, strict=True):
    for _, window in pairs:
      yield _tile_example(reader, index, window, image, labels)


def _read_whole(records, index: int) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Image and labels (None where nothing is known) of a record at its own size."""
  if index < 0:
    return None, None
  read_labels = records[index].read_labels
  return records[index].read_image(), None if read_labels is None else read_labels()


def _tile_example(reader: ExampleReader, index: int, window, image, labels):
  example = padding_example(reader.canvas, reader.max_boxes)
  own = example["labels"]
  if window is None:
    return example | {"full_labels": own, "full_size": np.ones(2, np.int32)}
  if labels is not None:
    rows, columns = window
    own[rows.own_inside, columns.own_inside] = labels[rows.own, columns.own]
  return example | {
    "image": windows.cut(image, window, reader.canvas),
    "has_mask": np.array(labels is not None),
    "valid": np.array(True),
    "extent": windows.extent(window, reader.canvas),
    "image_id": np.array(index, np.int32),
    "full_labels": own,
    "full_size": np.array(window.size, np.int32),
  }


def _stack(examples: Iterable[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
  """A batch of as many examples; each is copied before the next one is made."""
  batch: dict[str, np.ndarray] = {}
  for place, example in enumerate(examples):
    batch = batch or _empty_batch(example, count)
    _put(batch, place, example)
  return batch


def _put(batch, place: int, example: dict[str, np.ndarray]):
  # At once, not when all are there: an example's memory is then used again for the next one. A
  # batch of them would be fresh memory, whose pages cost a third of the time of reading (480x360).
  for name, value in example.items():
    batch[name][place] = value


def _empty_batch(example: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
  return {name: _aligned((count, *value.shape), value.dtype) for name, value in example.items()}


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """`np.empty`, where TensorFlow and JAX on CPU take the array over as it lies."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + _ALIGNED, np.uint8)
  start = -memory.ctypes.data % _ALIGNED
  return memory[start : start + size].view(dtype).reshape(shape)


def ahead(function: Callable, items: Iterable, workers: int, depth: int) -> Iterator:
  """`map` in threads, in order.

  Args:
    function: called in several threads at once.
    items: what it is called with, drawn as room becomes free.
    workers: threads.
    depth: results in work or waiting at most.

  Yields:
    Results in the order of the items; what the function raises is raised in its place. The
    threads end with the iterator.
  """
  pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="boxseg-read")
  waiting: deque[Future] = deque()
  try:
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > depth:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
