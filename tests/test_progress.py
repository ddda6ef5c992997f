"""The progress line and the metric files: what a person and a resumed run get to see."""

import errno
import io
import json
import math
import os

import numpy as np
import pytest

from boxseg_jax.errors import WriteError
from boxseg_jax.training.metric_writer import MetricWriter
from boxseg_jax.training.progress import Progress


class Clock:
  """Seconds that pass only when told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  """Renders what a person sees: carriage returns go back to the start of the line."""

  def isatty(self):
    return True

  def screen(self):
    lines = []
    for written in self.getvalue().split("\n"):
      shown = []
      for piece in written.split("\r"):
        shown[: len(piece)] = piece
      lines.append("".join(shown).rstrip())
    return lines


def make_progress(stream, total_steps=100, **options):
  clock = Clock()
  return Progress(total_steps, stream, batch_size=8, clock=clock, **options), clock


def test_rate_leaves_out_compilation_and_pauses():
  progress, clock = make_progress(io.StringIO())
  clock.now += 60  # compilation
  progress.update(1)
  assert math.isnan(progress.images_per_second)
  clock.now += 5
  progress.update(11, loss=0.5)
  assert progress.images_per_second == pytest.approx(10 * 8 / 5)
  with progress.paused():
    clock.now += 1000  # evaluation
  clock.now += 5
  progress.update(21, loss=0.5)
  assert progress.images_per_second == pytest.approx(16)
  assert progress.line().endswith("16.0 images/s  0:40 left")  # 79 steps, 2 a second: 39.5 s


def test_rate_counts_only_steps_known_to_be_done():
  """Updates without a loss are steps on their way; they move the count, not the rate."""
  progress, clock = make_progress(io.StringIO())
  progress.update(1)
  for step in range(2, 11):
    progress.update(step)
  assert math.isnan(progress.images_per_second)
  clock.now += 10
  progress.update(11, loss=0.5)
  assert progress.images_per_second == pytest.approx(8)


def test_rate_follows_a_machine_that_slows_down():
  progress, clock = make_progress(io.StringIO(), total_steps=10000)
  progress.update(0)
  for step in range(1, 101):
    clock.now += 1 if step <= 50 else 4
    progress.update(step, loss=1.0)
  assert progress.images_per_second == pytest.approx(2)


def test_a_resumed_run_counts_its_own_steps_alone():
  progress, clock = make_progress(io.StringIO(), start_step=60)
  assert progress.line() == "step 60/100"
  clock.now += 30
  progress.update(61)
  clock.now += 9
  progress.update(70, loss=0.25)
  assert progress.line() == "step 70/100  loss 0.2500  8.0 images/s  0:30 left"


def test_waiting_for_batches_is_a_share_of_the_time_of_the_steps():
  progress, clock = make_progress(io.StringIO(), device_count=4)

  def feed():
    for step in range(1, 12):
      clock.now += 3 if step > 1 else 50  # shuffling starts
      yield step

  for step in progress.watch(feed()):
    clock.now += 1 if step > 1 else 60  # compilation
    progress.update(step, loss=1.0 if step in (6, 11) else None)
    if step < 6:
      assert all(map(math.isnan, progress.measured().values()))
    with progress.paused():
      clock.now += 1000  # evaluation
  assert progress.measured() == {
    "images_per_second": pytest.approx(2),
    "images_per_second_per_device": pytest.approx(0.5),
    "input_wait_share": pytest.approx(0.75),
  }


def test_a_log_file_gets_whole_lines_and_no_control_characters():
  stream = io.StringIO()
  progress, clock = make_progress(stream)
  for step in range(1, 21):
    clock.now += 0.5
    logged = step % 10 == 0
    progress.update(step, loss=1 / step if logged else None, iou=0.5 if step == 10 else None)
  progress.close()
  assert stream.getvalue().splitlines() == [
    "step 10/100  loss 0.1000  IoU 0.500  16.0 images/s  0:45 left",
    "step 20/100  loss 0.0500  IoU 0.500  16.0 images/s  0:40 left",
  ]
  assert "\r" not in stream.getvalue()


def test_a_terminal_shows_one_live_line():
  terminal = Terminal()
  progress, clock = make_progress(terminal)
  progress.update(1, loss=123.0, iou=0.25)
  clock.now += 1
  progress.update(2)
  assert terminal.screen() == ["step 2/100  loss 123.0000  IoU 0.250"]
  clock.now += 1
  progress.update(3, loss=1.0, iou=math.nan)  # shorter: nothing of the old line is left
  progress.close()
  assert terminal.screen() == [
    "step 3/100  loss 1.0000  IoU 0.250  8.0 images/s  1:37 left",
    "",
  ]


def test_a_terminal_is_not_flooded():
  terminal = Terminal()
  progress, clock = make_progress(terminal, total_steps=10000)
  for step in range(1, 1001):
    clock.now += 0.001
    progress.update(step)
  assert 4 <= terminal.getvalue().count("\r") <= 6  # one second, five a second


def test_the_longest_line_fits_80_columns():
  progress, clock = make_progress(Terminal(), total_steps=1_000_000)
  progress.update(1)
  clock.now += 0.4
  progress.update(1001, loss=-1.234e-12, iou=0.98765)
  clock.now += 4e7
  progress.update(999_999, loss=-1.234e12, iou=0.98765)
  assert "IoU 0.988" in progress.line()
  assert len(progress.line()) <= 79


def lines_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_json_lines_and_nan_is_null(tmp_path):
  writer = MetricWriter(tmp_path / "run")
  writer.write(10, {"train/loss": np.float32(0.5), "iou/car": math.nan, "sigma": math.inf})
  # Read while the writer is open: a kill loses no line.
  assert lines_of(tmp_path / "run") == [
    {"step": 10, "train/loss": 0.5, "iou/car": None, "sigma": None}
  ]
  writer.write(20, {"train/loss": 1})
  writer.close()
  assert [line["step"] for line in lines_of(tmp_path / "run")] == [10, 20]


def test_rewind_drops_later_steps_and_a_torn_line(tmp_path):
  writer = MetricWriter(tmp_path)
  for step in (10, 20, 30):
    writer.write(step, {"loss": step})
  writer.close()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 15, "lo')
  resumed = MetricWriter(tmp_path)
  resumed.rewind(20)
  resumed.write(30, {"loss": 31})
  resumed.close()
  assert lines_of(tmp_path) == [
    {"step": 10, "loss": 10},
    {"step": 20, "loss": 20},
    {"step": 30, "loss": 31},
  ]
  assert [path.name for path in tmp_path.glob("*.part")] == []


def test_rewind_of_a_new_run_does_nothing(tmp_path):
  MetricWriter(tmp_path).rewind(0)
  assert list(tmp_path.iterdir()) == []


def read_events(workdir):
  """Events of all TensorBoard files of a run, oldest file first."""
  from tensorboardX.proto.event_pb2 import Event

  events = []
  for path in sorted(workdir.glob("tensorboard/*tfevents*"), key=lambda path: path.stat().st_mtime):
    data = path.read_bytes()
    while data:  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
      length = int.from_bytes(data[:8], "little")
      events.append(Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return events


def test_tensorboard_gets_finite_scalars_and_pictures(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write(10, {"train/loss": 0.5, "iou/car": math.nan})
  writer.write_image(10, "pictures", np.zeros((4, 6, 3), np.uint8))
  writer.close()
  values = {(v.tag, e.step): v for e in read_events(tmp_path) for v in e.summary.value}
  assert values.keys() == {("train/loss", 10), ("pictures", 10)}
  assert values["train/loss", 10].simple_value == 0.5
  assert (values["pictures", 10].image.height, values["pictures", 10].image.width) == (4, 6)


def test_tensorboard_is_told_to_hide_what_a_resume_repeats(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.rewind(20)
  writer.write(30, {"loss": 1.0})
  writer.close()
  starts = [event.step for event in read_events(tmp_path) if event.HasField("session_log")]
  assert starts == [21]


def test_lines_that_cannot_be_written_wait_and_none_is_halved(tmp_path, monkeypatch):
  writer = MetricWriter(tmp_path)
  writer.write(1, {"loss": 1.0})
  with monkeypatch.context() as patch:
    patch.setattr("builtins.open", _on_a_full_disk(open))
    writer.write(2, {"loss": 2.0})
    with pytest.raises(WriteError, match=r"metrics\.jsonl cannot be written: .*No space left"):
      writer.flush()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1]
  writer.write(3, {"loss": 3.0})
  writer.flush()
  writer.close()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def _on_a_full_disk(really_open):
  """Files of which half of what is written gets in, once, as when a disk becomes full."""

  class Full(io.FileIO):
    calls = 0

    def write(self, content):
      self.calls += 1
      if self.calls > 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return super().write(bytes(content)[: len(content) // 2])

  def opened(path, mode="r", *args, **kwargs):
    is_log = str(path).endswith("metrics.jsonl") and "a" in mode
    return Full(path, "a") if is_log else really_open(path, mode, *args, **kwargs)

  return opened


def test_tensorboard_on_a_full_disk_neither_hangs_nor_is_silent(tmp_path, monkeypatch):
  """Its own writer has a thread that dies, and a queue that then fills up."""
  writer = MetricWriter(tmp_path)

  def fails(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", fails)
    for step in range(50):
      writer.write(step, {"loss": 1.0})
    with pytest.raises(WriteError, match="tensorboard cannot be written: .*No space left"):
      writer.flush_tensorboard()
  writer.write(50, {"loss": 2.0})
  writer.flush_tensorboard()
  writer.close()
  assert [event.step for event in read_events(tmp_path) if event.summary.value] == [50]
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 51
