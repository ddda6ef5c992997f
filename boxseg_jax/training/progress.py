"""How far a run is: one live line on a terminal, separate lines in a log file."""

import collections
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

_WINDOW = 20  # intervals the rate is taken over: steady, yet follows a machine that slows down
_REDRAW_SECONDS = 0.2  # eyes need no more, and a terminal over a network gets no more
_BAR = 24  # characters
_COLUMNS = 79  # of 80: a full line would wrap on some terminals


class Progress:
  """Shows step, loss, IoU so far, images per second and the time left.

  The rate leaves out compilation (everything before the first `update`) and what is run under
  `paused`; the time left is that of the training steps alone. Time spent on waiting for batches is
  known of those that come through `watch`.
  """

  def __init__(
    self,
    total_steps: int,
    stream: TextIO | None = None,
    *,
    batch_size: int,
    device_count: int = 1,
    start_step: int = 0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Shows nothing yet.

    Args:
      total_steps: of the whole run.
      stream: where to write; None = standard output. A terminal gets the live line.
      batch_size: images per step, over all devices.
      device_count: how many devices these are.
      start_step: steps done by the runs that this one resumes.
      clock: seconds.
    """
    self._total_steps = total_steps
    self._stream = sys.stdout if stream is None else stream
    self._live = self._stream.isatty()
    self._batch_size = batch_size
    self._device_count = device_count
    self._clock = clock
    self._step = start_step
    self._values: dict[str, float] = {}
    # (steps, seconds, waited)
    self._intervals: collections.deque[tuple] = collections.deque(maxlen=_WINDOW)
    self._waited = 0.0  # seconds since the mark
    self._mark: tuple[int, float] | None = None  # step and time at which the next one begins
    self._drawn = ""
    self._drawn_at = -math.inf

  def update(self, step: int, *, loss: float | None = None, iou: float | None = None) -> None:
    """Tells that `step` steps are done; cheap enough for every step.

    Args:
      step: number of steps done.
      loss: of this step, where it was fetched from the device; a log file gets a line only then.
      iou: the IoU so far; the last one that is not NaN stays on show.
    """
    self._step = step
    if loss is not None:
      self._values["loss"] = loss
    if iou is not None and not math.isnan(iou):
      self._values["IoU"] = iou
    if self._mark is None:
      self._mark, self._waited = (step, self._clock()), 0.0  # compiled by now
    elif loss is not None and step > self._mark[0]:
      # Only a fetched loss proves that the steps are done, not just on their way.
      now = self._clock()
      self._intervals.append((step - self._mark[0], now - self._mark[1], self._waited))
      self._mark, self._waited = (step, now), 0.0
    if self._live:
      self._draw(at_once=loss is not None)
    elif loss is not None:
      print(self.line(), file=self._stream, flush=True)

  def watch(self, batches: Iterable) -> Iterator:
    """Passes batches on; the time until each is there counts as waiting."""
    begin = self._clock()
    for batch in batches:
      self._waited += self._clock() - begin
      yield batch
      begin = self._clock()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """The time spent in this context (evaluation, checkpoints) is no training time."""
    begin = self._clock()
    try:
      yield
    finally:
      if self._mark is not None:
        self._mark = (self._mark[0], self._mark[1] + self._clock() - begin)

  def close(self) -> None:
    """Leaves the last live line standing and goes on below it."""
    if self._drawn:
      print(file=self._stream, flush=True)
    self._drawn = ""

  @property
  def images_per_second(self) -> float:
    """Rate over the recent steps; NaN as long as there is none."""
    steps, seconds, _ = self._recently()
    return steps * self._batch_size / seconds if seconds > 0 else math.nan

  def measured(self) -> dict[str, float]:
    """What the log says of speed, over the recent steps; NaN as long as there is none.

    Returns:
      "images_per_second", of all devices; "images_per_second_per_device"; "input_wait_share" in
      [0, 1], of the time in which the loop waited for its next batch. The devices may be at work
      on what they have meanwhile, so they lose that share at most.
    """
    _, seconds, waited = self._recently()
    rate = self.images_per_second
    return {
      "images_per_second": rate,
      "images_per_second_per_device": rate / self._device_count,
      "input_wait_share": waited / seconds if seconds > 0 else math.nan,
    }

  def _recently(self):
    """(steps, seconds, seconds waited) of the recent steps."""
    return tuple(map(sum, zip(*self._intervals, strict=True))) or (0, 0.0, 0.0)

  def line(self) -> str:
    """What is on show, at most 79 characters."""
    parts = [f"step {self._step}/{self._total_steps}"]
    if "loss" in self._values:
      parts.append(f"loss {_number(self._values['loss'])}")
    if "IoU" in self._values:
      parts.append(f"IoU {self._values['IoU']:.3f}")
    rate = self.images_per_second
    if rate > 0:
      seconds = (self._total_steps - self._step) * self._batch_size / rate
      parts += [f"{rate:.{0 if rate >= 100 else 1}f} images/s", f"{_duration(seconds)} left"]
    return "  ".join(parts)[:_COLUMNS]

  def _draw(self, at_once: bool) -> None:
    """Writes the line over the last one."""
    now = self._clock()
    if not at_once and now - self._drawn_at < _REDRAW_SECONDS:
      return
    line = self.line()
    self._stream.write("\r" + line.ljust(len(self._drawn)))
    self._stream.flush()
    self._drawn, self._drawn_at = line, now


class Count:
  """Shows how many images are read or done: a bar on a terminal, else one line at the end.

  Call it as `count(done, total)`; `close` ends the line.
  """

  def __init__(
    self,
    name: str,
    stream: TextIO | None = None,
    *,
    unit: str = "images",
    clock: Callable[[], float] = time.monotonic,
  ):
    """Shows nothing yet.

    Args:
      name: of the split.
      stream: where to write; None = standard output.
      unit: what is counted.
      clock: seconds.
    """
    self._name = name
    self._unit = unit
    self._stream = sys.stdout if stream is None else stream
    self._live = self._stream.isatty()
    self._clock = clock
    self._started = clock()
    self._line = ""
    self._drawn_at = -math.inf

  def __call__(self, done: int, total: int) -> None:
    """Tells that `done` of `total` are done."""
    now = self._clock()
    rate = done / max(now - self._started, 1e-9)
    speed = f"{rate:.{0 if rate >= 100 else 1}f} {self._unit}/s"
    parts = [f"{self._name} {done}/{total} {self._unit}", speed]
    if self._live:
      filled = _BAR * done // max(total, 1)
      parts.insert(0, "[" + "#" * filled + "." * (_BAR - filled) + "]")
      parts.append(f"{_duration((total - done) / rate)} left")
    before, self._line = len(self._line), "  ".join(parts)[:_COLUMNS]
    if self._live and (done == total or now - self._drawn_at >= _REDRAW_SECONDS):
      self._stream.write("\r" + self._line.ljust(before))
      self._stream.flush()
      self._drawn_at = now

  def close(self) -> None:
    """Leaves the last line standing and goes on below it."""
    if self._line:
      print("" if self._live else self._line, file=self._stream, flush=True)
    self._line = ""


def _number(value: float) -> str:
  """Four digits behind the point where they say something, else an exponent."""
  plain = not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e4
  return f"{value:.4f}" if plain else f"{value:.2e}"


def _duration(seconds: float) -> str:
  """H:mm:ss, or m:ss below an hour."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
