"""What is long or large, in small: launch/soak.py sees what leaks, and nothing grows too fast."""

import os
import runpy
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from data_cases import make_records
from places import ROOT

from boxseg_jax import config as configuration
from boxseg_jax.data import check, feed, findings, survey, training_set
from boxseg_jax.data.examples import ExampleReader, fitted_size

soak = runpy.run_path(str(ROOT / "launch" / "soak.py"))

_CHILD = """
import sys, time
held, files = [], []
for step in range(1, 31):
  held.append(bytearray(int(sys.argv[2])))
  if sys.argv[3] == "leak":
    files.append(open(sys.argv[1]))
  with open(sys.argv[1], "a") as told:
    told.write("%d\\n" % step)
  time.sleep(0.02)
time.sleep(0.3)
"""


def watched(folder, taken, handles):
  """Samples of a process that takes as many bytes, and file handles if it leaks, at each step."""
  told = folder / "told"
  told.write_text("0\n")

  def progress():
    return int(told.read_text().split()[-1])

  watch = soak["watch"]
  watch.__globals__["_POLL"] = 0.005
  args = [str(told), str(taken), handles]
  status, samples = watch(_CHILD, args, progress, log=folder / "log", counted=True)
  assert status == 0 and samples[-1].done == 30
  return samples


class TestTheSoak:
  def test_memory_and_handles_that_leak_are_seen(self, tmp_path):
    leaky = watched(tmp_path, 2**20, "leak")
    assert soak["_in_use"](leaky, 3)["growth_mib_per_1000"] == pytest.approx(1000, rel=0.2)
    handles = soak["_held"](leaky, 3)["handles"]
    assert handles["end"] - handles["after_warm_up"] >= 20
    tight = watched(tmp_path, 0, "none")
    assert abs(soak["_in_use"](tight, 3)["growth_mib_per_1000"]) < 5
    handles = soak["_held"](tight, 3)["handles"]
    assert handles["end"] <= handles["after_warm_up"]

  def test_what_falls_short_is_told(self):
    good = {
      "growth_mib_per_1000": 0.1,
      "handles": {"after_warm_up": 9, "end": 9},
      "throughput_of_last_tenth": {"processor": 0.99},
    }
    short = soak["short_of_steps"]
    assert list(short({"tf": good})) == []
    bad = {"growth_mib_per_1000": 1.0, "handles": {"after_warm_up": 9, "end": 10}}
    told = list(short({"tf": bad | {"throughput_of_last_tenth": {"processor": 0.9}}}))
    assert len(told) == 3 and all(line.startswith("tf: ") for line in told)
    assert list(soak["short_of_images"]({"exponent": {"processor_s": 2.0, "peak_mib": 1.0}}))
    row = {"files": 200, "broken": 2, "listed": 2, "predicted": 198, "traceback": False}
    row |= {"exit_status": 3, "growth_mib_per_1000": 0}
    assert list(soak["short_of_files"](row)) == []
    assert list(soak["short_of_files"](row | {"listed": 1, "exit_status": 1}))

  def test_growth_and_exponent_by_hand(self):
    sample = soak["Sample"]
    samples = [sample(n, 0.0, 0.0, 300 + 0.002 * n, 400.0, 9, 4) for n in range(0, 500, 10)]
    assert soak["growth"](samples) == pytest.approx(2.0)
    counts = np.array([10, 20, 40])
    assert soak["_exponent"](counts, 3.0 * counts**2) == pytest.approx(2.0)

  def test_a_run_is_not_measured_again(self, tmp_path):
    (tmp_path / "counted-numpy").mkdir()
    with pytest.raises(SystemExit, match="counted-numpy holds an earlier run"):
      soak["steps"](100, "numpy", tmp_path)

  def test_only_whole_lines_of_the_log_count(self, tmp_path):
    tail = soak["_Tail"](tmp_path / "metrics.jsonl")
    assert tail.step() == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 1')
    assert tail.step() == 5
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 10}\n')
    assert tail.step() == 10


def opened(folder, count):
  """(calls of the main thread, peak of what Python holds in bytes) of opening a training set."""
  soak["write_coco"](folder / str(count), folder / "pool", count)
  config = configuration.get_config()
  config.data.source, config.data.root, config.data.workers = "coco", str(folder / str(count)), 1
  config.data.class_names = ("background", "star", "crescent", "sun")
  config.data.canvas = (48, 64)
  calls = 0

  def seen(frame, event, argument):
    nonlocal calls
    # Waiting for the readers takes as many turns as it takes.
    calls += event == "call" and "threading" not in frame.f_code.co_filename

  tracemalloc.start()
  sys.setprofile(seen)
  try:
    assert len(training_set.open_training_set(config, report=lambda line: None).reader) == count
  finally:
    sys.setprofile(None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  return calls, peak


def test_opening_a_set_is_linear_in_its_images(tmp_path):
  soak["write_photos"](tmp_path / "pool", 160)
  opened(tmp_path, 20)  # what is imported and remembered once
  by_count = {count: np.array(opened(tmp_path, count)) for count in (40, 80, 160)}
  first, second = by_count[80] - by_count[40], by_count[160] - by_count[80]
  calls, memory = second / first
  assert calls == pytest.approx(2, rel=0.15)
  assert memory == pytest.approx(2, rel=0.25)


def test_few_images_are_in_hand_at_once():
  drawn = []

  class Counted(list):
    def __iter__(self):
      for record in super().__iter__():
        drawn.append(record)
        yield record

  most = 0

  def progress(done):
    nonlocal most
    most = max(most, len(drawn) - done)

  records = Counted(make_records(200))
  facts = check.look_at(records, num_classes=3, workers=2, progress=progress)
  assert [f.image_id for f in facts] == [r.image_id for r in list.__iter__(records)]
  assert most <= 20


def test_a_set_of_equal_images_fills_no_page():
  facts = check.look_at(make_records(1), num_classes=3, workers=1)
  facts = [facts[0]._replace(image_id=f"image{number}.png") for number in range(5000)]
  found = findings.judge(
    survey.summarize(facts, (20, 30)), ("background", "a", "b"), findings.Use(True, True, True)
  )
  (told,) = [one.message() for one in found if "more than once" in one.text]
  assert "4999 images are there more than once" in told and "(and 4996 more)" in told
  assert len(told) < 200


def test_sizes_on_the_canvas_against_one_box_after_the_other():
  random = np.random.default_rng(0)
  (like,) = check.look_at(make_records(1), num_classes=3, workers=1)
  facts = []
  for number in range(40):
    size, count = tuple(random.integers(20, 200, 2).tolist()), random.integers(0, 6)
    sides = random.integers(0, 5, (count, 2)).astype(np.float32)  # some without area, many equal
    classes = random.integers(1, 4, count).astype(np.int32)
    unknown = np.full(count, np.nan, np.float32)
    of_boxes = {"sides": sides, "box_classes": classes, "fits": unknown, "fills": unknown}
    facts.append(like._replace(image_id=f"{number}", size=size, **of_boxes))
  canvas, boxes = (48, 64), []
  for seen in facts:
    scale = np.array(fitted_size(seen.size, canvas)) / seen.size
    for label, side in zip(seen.box_classes, seen.sides * scale, strict=True):
      boxes += [(seen.image_id, int(label), *map(float, side))] if min(side) > 0 else []
  smallest = {}
  for box in sorted(boxes, key=lambda box: box[2] * box[3]):
    smallest.setdefault(box[1], box)
  summary = survey.summarize(facts, canvas)
  assert summary.smallest == list(smallest.values())
  np.testing.assert_array_equal(summary.thin_sides, np.float32([min(b[2:]) for b in boxes]))
  np.testing.assert_array_equal(summary.side_classes, [box[1] for box in boxes])


@pytest.mark.parametrize("pipeline", ["numpy", "tf"])
def test_feeds_that_are_left_hold_nothing(pipeline):
  """Neither file handles nor threads, however often a feed is opened, left midway or used up."""
  if pipeline == "tf":
    pytest.importorskip("tensorflow")
  records = make_records(8)
  reader = ExampleReader(records, (8, 8), 1, np.zeros(8, bool), cache=True)

  def use(taken):
    batches = feed.training_batches(
      reader,
      lambda step: np.arange(2 * step, 2 * step + 2) % 8,
      start_step=0,
      num_steps=6,
      process_index=0,
      process_count=1,
      workers=2,
      pipeline=pipeline,
    )
    for _ in range(taken):
      next(batches)
    batches.close()

  def held():
    for thread in threading.enumerate():  # those that end are given the time
      if thread.name.startswith("boxseg-read"):
        thread.join(10)
    return len(os.listdir("/proc/self/fd")), threading.active_count()

  for taken in (1, 6):
    use(taken)
  before = held()
  for taken in (1, 3, 6) * 5:
    use(taken)
  handles, threads = held()
  assert handles <= before[0] and threads <= before[1]
