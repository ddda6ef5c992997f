"""Feeds: both give the batches of the order, whole over the processes, with errors passed on."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from data_cases import make_record, make_records, refuse
from places import ROOT

from boxseg_jax.data import feed, order
from boxseg_jax.data.examples import ExampleReader
from boxseg_jax.errors import InputError

CANVAS = (16, 24)
HIDE = np.array([False, True, True, False, True, True, False, True, True])


def make_reader(records=None, cache=False):
  records = make_records(len(HIDE)) if records is None else records
  return ExampleReader(records, CANVAS, 2, HIDE[: len(records)], cache)


def batch_at(step, batch_size=4):
  return order.batch_indices(
    step,
    seed=3,
    mask_indices=np.flatnonzero(~HIDE),
    box_indices=np.flatnonzero(HIDE),
    batch_size=batch_size,
    mask_images=1,
  )


def batches(reader, pipeline, start=0, count=5, process=0, processes=1, indices=batch_at):
  return feed.training_batches(
    reader,
    indices,
    start_step=start,
    num_steps=count,
    process_index=process,
    process_count=processes,
    workers=3,
    pipeline=pipeline,
  )


def assert_equal(first, second):
  assert first.keys() == second.keys()
  for name, value in first.items():
    assert value.dtype == second[name].dtype, name
    np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize("pipeline", ["numpy", "tf"])
def test_batches_are_those_of_the_order_from_any_step(pipeline):
  if pipeline == "tf":
    pytest.importorskip("tensorflow")
  reader = make_reader(cache=True)
  expected = [[reader(i) for i in batch_at(step)] for step in range(14)]
  for start, count in ((0, 14), (3, 4), (11, 3), (5, 0)):
    found = list(batches(reader, pipeline, start, count))
    assert len(found) == count
    for examples, batch in zip(expected[start:], found, strict=False):
      stacked = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
      assert_equal(stacked, batch)


@pytest.mark.parametrize("pipeline", ["numpy", "tf"])
def test_batches_lie_so_that_no_library_has_to_copy_them(pipeline):
  if pipeline == "tf":
    pytest.importorskip("tensorflow")
  for batch in batches(make_reader(), pipeline):
    for name in ("image", "labels", "boxes"):
      assert batch[name].ctypes.data % 64 == 0, name


@pytest.mark.parametrize("cache", [False, True])
def test_both_feeds_are_equal_bit_for_bit(cache):
  pytest.importorskip("tensorflow")
  pairs = zip(
    batches(make_reader(cache=cache), "tf", start=2, count=12),
    batches(make_reader(cache=cache), "numpy", start=2, count=12),
    strict=True,
  )
  for first, second in pairs:
    assert_equal(first, second)


@pytest.mark.parametrize("pipeline", ["numpy", "tf"])
def test_processes_together_read_the_global_batch(pipeline):
  if pipeline == "tf":
    pytest.importorskip("tensorflow")
  whole = batches(make_reader(), pipeline, 1, 3)
  parts = [batches(make_reader(), pipeline, 1, 3, process, 2) for process in range(2)]
  for batch, *shares in zip(whole, *parts, strict=True):
    assert all(len(share["image"]) == 2 for share in shares)
    joined = {name: np.concatenate([share[name] for share in shares]) for name in batch}
    assert_equal(batch, joined)


@pytest.mark.parametrize("pipeline", ["numpy", "tf"])
def test_masks_of_box_images_do_not_matter(pipeline):
  if pipeline == "tf":
    pytest.importorskip("tensorflow")

  def garbage():
    return np.full((20, 30), 77, np.uint8)

  records = make_records(len(HIDE))
  for false_labels in (garbage, refuse):
    swapped = [
      replace(record, read_labels=false_labels) if hidden else record
      for record, hidden in zip(records, HIDE, strict=True)
    ]
    pairs = zip(
      batches(make_reader(records), pipeline),
      batches(make_reader(swapped), pipeline),
      strict=True,
    )
    for honest, false in pairs:
      assert_equal(honest, false)
      assert (honest["labels"][~honest["has_mask"]] == 255).all()


def broken_image():
  raise InputError("photos/x.jpg: no such image file")


@pytest.mark.parametrize("pipeline", ["numpy", "tf"])
def test_what_the_reader_raises_reaches_the_consumer(pipeline):
  if pipeline == "tf":
    pytest.importorskip("tensorflow")
  records = make_records(len(HIDE))
  broken = next(int(index) for index in batch_at(1) if index not in batch_at(0))
  records[broken] = replace(records[broken], read_image=broken_image)
  found = []
  with pytest.raises(InputError, match=r"^photos/x.jpg: no such image file$"):
    for batch in batches(make_reader(records), pipeline, count=10):
      found.append(batch)
  assert len(found) == 1
  with pytest.raises(InputError, match=r"^photos/x.jpg: no such image file$"):
    list(feed.evaluation_batches(make_reader(records), **ONE_PROCESS))


def test_reading_ahead_is_bounded_and_ends_with_the_consumer():
  asked = []

  def reader(index):
    asked.append(index)
    return {"image_id": np.array(index)}

  found = batches(reader, "numpy", count=1000)
  next(found)
  time.sleep(0.1)
  assert len(asked) <= 4 * 4
  assert reading_threads()
  found.close()
  for _ in range(100):
    if not reading_threads():
      return
    time.sleep(0.02)
  raise AssertionError(reading_threads())


def reading_threads():
  return [thread for thread in threading.enumerate() if thread.name.startswith("boxseg-read")]


ONE_PROCESS = {"batch_size": 4, "process_index": 0, "process_count": 1}
SIZES = [(20, 30), (200, 30), (20, 30), (128, 128), (20, 129), (20, 30), (20, 30), (20, 30), (9, 9)]


def sized_records():
  return [make_record(n, size=size) for n, size in enumerate(SIZES)]


def test_evaluation_sees_every_record_once_in_few_shapes():
  reader = make_reader(sized_records())
  found = list(feed.evaluation_batches(reader, **ONE_PROCESS))
  shapes = [batch["full_labels"].shape for batch in found]
  # Seven images fit 128 x 128, one is higher, one is wider.
  assert shapes == [(4, 128, 128), (4, 128, 128), (4, 128, 256), (4, 256, 128)]
  ids = np.concatenate([batch["image_id"] for batch in found])
  valid = np.concatenate([batch["valid"] for batch in found])
  assert sorted(ids[valid]) == list(range(9)) and (ids[~valid] == -1).all()
  for batch in found:
    for row, index in enumerate(batch["image_id"]):
      height, width = batch["full_size"][row]
      labels = batch["full_labels"][row]
      if index < 0:
        assert (labels == 255).all() and (height, width) == (1, 1)
        continue
      assert (height, width) == SIZES[index]
      np.testing.assert_array_equal(labels[:height, :width], reader.records[index].read_labels())
      assert (labels == 255).sum() == labels.size - height * width


def test_evaluation_over_processes_is_the_same_plan():
  reader = make_reader(sized_records())
  whole = list(feed.evaluation_batches(reader, **ONE_PROCESS))
  settings = {"batch_size": 4, "process_count": 4}
  parts = [list(feed.evaluation_batches(reader, process_index=p, **settings)) for p in range(4)]
  for batch, *shares in zip(whole, *parts, strict=True):
    joined = {name: np.concatenate([share[name] for share in shares]) for name in batch}
    assert_equal(batch, joined)


def test_wrong_settings_are_named():
  with pytest.raises(InputError, match=r"batch size is 4.*multiple of the 3 process"):
    batches(make_reader(), "numpy", processes=3)
  with pytest.raises(InputError, match=r"batch size is 4.*multiple of the 3 process"):
    feed.evaluation_batches(make_reader(), batch_size=4, process_index=0, process_count=3)
  with pytest.raises(InputError, match="data.pipeline is 'torch'"):
    batches(make_reader(), "torch")


BLOCKED = """
import importlib, pkgutil, sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
sys.path.insert(0, "tests")
import boxseg_jax.data
for module in pkgutil.iter_modules(boxseg_jax.data.__path__):
  importlib.import_module("boxseg_jax.data." + module.name)
import test_data_feed as cases
ids = [batch["image_id"].tolist() for batch in cases.batches(cases.make_reader(), "auto")]
assert ids == [cases.batch_at(step).tolist() for step in range(5)], ids
try:
  cases.batches(cases.make_reader(), "tf")
except cases.InputError as error:
  print(error)
"""


def test_everything_but_the_tf_feed_works_without_tensorflow():
  run = subprocess.run(
    [sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert run.returncode == 0, run.stderr
  assert "data.pipeline is 'tf', but TensorFlow cannot be imported" in run.stdout


def test_order_and_feed_agree_on_what_a_partial_is():
  # The loop binds the order with functools.partial; a batch of another size has to fit, too.
  six = partial(batch_at, batch_size=6)
  batch = next(batches(make_reader(), "numpy", start=7, process=1, processes=3, indices=six))
  assert batch["image_id"].tolist() == six(7)[2:4].tolist()
