"""How fast the configured training is on this machine, and what its parts cost."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from boxseg_jax import config as configuration
from boxseg_jax.apps import tables
from boxseg_jax.data import training_set
from boxseg_jax.files import write_json
from boxseg_jax.parallel import Parallel, device_peak_bytes
from boxseg_jax.training import build, flops, origin, speed
from boxseg_jax.training.step import LossSettings

_WARM_UP, _BEYOND = 4, 8  # batches that are not counted, so that what is read ahead cancels out
# Bootstrapping begins at a step that no timing reaches by itself, so that one program shows both
# what comes before and what comes after.
_START = 1 << 20
_FULL = _START + 2


class Case(NamedTuple):
  """One row of what the method costs.

  Attributes:
    title: what the step does.
    settings: of its loss; rows with the same ones share a program.
    step: where in the training it is timed.
  """

  title: str
  settings: LossSettings
  step: int


def run(config: ConfigDict, workdir, *, report=print) -> str:
  """Measures the configured training step and its pipeline.

  Args:
    config: the configuration; `benchmark` says how often.
    workdir: folder of `benchmark.json`; a run that it holds is left as it is.
    report: takes lines of text for the person who waits.

  Returns:
    The table.

  Raises:
    InputError: something in the configuration or the data is wrong.
  """
  configuration.check(config)
  parallel = Parallel(config.parallel.kind)
  accumulate = config.optimizer.accumulate
  parallel.check_batch_size("data.batch_size", config.data.batch_size, accumulate)
  training = training_set.open_training_set(config, report=report)
  of_data = {
    "class_weights": training.class_weights,
    "mask_images": training.mask_images,
    "box_priors": training.box_priors,
  }
  batch = next(_batches(config, training, parallel, count=1))
  bench = Bench(config, parallel, batch, report=report, **of_data)
  found = origin.here() | bench.measure(_pipelines(config, training, bench))
  path = Path(workdir) / "benchmark.json"
  write_json(path, found)
  return f"{table(found)}\nAll of it: {path}"


def cases(config: ConfigDict, **of_data) -> list[Case]:
  """What the configured step is taken apart into, each row with one thing more.

  Args:
    config: the configuration.
    **of_data: what `build.loss_settings` has to be told of the data.

  Returns:
    Cross entropy alone, then what the arm adds: the loss inside boxes, bootstrapping by the network
    itself, and by the decoder that is shown the boxes. The last one is the step as configured.
  """
  settings = build.loss_settings(config, **of_data)
  settings = settings._replace(bootstrap_start=_START, bootstrap_ramp=1)
  plain = settings._replace(
    inside_boxes="label", projection_weight=0.0, bootstrap="none", teacher="self", box_priors=None
  )
  found = [Case("cross entropy", plain, 0)]
  alone = settings._replace(teacher="self")
  if settings.inside_boxes != "label" and settings.box_images:
    found.append(Case("+ loss inside boxes", alone, 0))
  if settings.bootstrap != "none" and settings.box_images:
    found.append(Case("+ bootstrapping", alone, _FULL))
  if settings.teacher == "boxes":
    found.append(Case("+ decoder shown the boxes", settings, _FULL))
  return found


class Bench:
  """The programs of all cases, and their timing."""

  def __init__(self, config: ConfigDict, parallel: Parallel, batch, *, report=print, **of_data):
    """Compiles them, the configured one first.

    Args:
      config: the configuration.
      parallel: the devices.
      batch: numpy arrays of the training contract, this process's part of a global batch.
      report: takes lines of text for the person who waits.
      **of_data: as for `cases`.
    """
    self.config, self.parallel, self._report = config, parallel, report
    self.cases = cases(config, **of_data)
    self._model = build.make_model(config)
    self._optimizer, _ = build.make_optimizer(config)
    self._batch = parallel.put_batch(batch)
    self._states: dict = {}
    self.configured = self._stepper(self.cases[-1])
    self.configured.on_device(self.cases[-1].step)
    # Asked for before any other program has run, since devices tell of the whole process.
    self._peak_bytes = device_peak_bytes(jax.local_devices())

  def _stepper(self, case: Case) -> speed.Stepper:
    config, parallel = self.config, self.parallel
    self._report(f"Compiling: {case.title}")
    step = build.compile_train_step(config, self._model, self._optimizer, case.settings, parallel)
    state = parallel.replicate(self._first_state(case.settings))
    program = speed.compile_step(step, state, self._batch)
    return speed.Stepper(program, state, self._batch, steps=config.benchmark.steps)

  def _first_state(self, settings: LossSettings):
    """On the host: each program has its own copy, and drawing it is compiled once."""
    if settings.teacher not in self._states:
      drawn = build.initial_state(self.config, self._model, self._optimizer, settings)
      self._states[settings.teacher] = jax.device_get(drawn)
    return self._states[settings.teacher]

  def measure(self, pipelines: Mapping[str, Callable[[], float]]) -> dict:
    """Times all cases in turns, and the configured one with batches that are read meanwhile.

    Args:
      pipelines: by name, each gives seconds per step.

    Returns:
      What `benchmark.json` holds but for origin and pipeline: times in seconds, memory in bytes,
      FLOPs and images/s of one device, names of what is left out with the reason.
    """
    config, last = self.config, self.cases[-1]
    steppers = {last.settings: self.configured}
    for case in self.cases:
      if case.settings not in steppers:
        steppers[case.settings] = self._stepper(case)
    timings = {c.title: lambda c=c: steppers[c.settings].on_device(c.step) for c in self.cases}
    self._report(f"Timing {config.benchmark.repeats} x {config.benchmark.steps} steps of each")
    seconds = speed.take_turns(timings | dict(pipelines), config.benchmark.repeats)
    by_pipeline = {name: seconds.pop(name)[0] for name in pipelines}
    program = self.configured.program
    return {
      "model": build.model_options(config) | {"parameters": self._count_parameters()},
      "arm": config.arm,
      "canvas": list(config.data.canvas),
      "batch_size": config.data.batch_size,
      "devices": self.parallel.device_count,
      "trace_seconds": program.trace_seconds,
      "compile_seconds": program.compile_seconds,
      "memory_bytes": {"program": program.memory_bytes, "device_peak": self._peak_bytes},
      "seconds_per_step": {"on the device": seconds[last.title][0], **by_pipeline},
      "slowest_seconds_per_step": seconds[last.title][-1],
      **self._rates(program, seconds[last.title][0]),
      "cases": costs({title: times[0] for title, times in seconds.items()}),
    }

  def _count_parameters(self):
    params = self._first_state(self.cases[-1].settings).params
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    return sum(sizes.values()) - sizes.get("teacher", 0)

  def _rates(self, program, seconds):
    device = self.parallel.devices[0]
    images = self.config.data.batch_size / self.parallel.device_count
    return {
      "images_per_second_per_device": images / seconds,
      **flop_rates(program.flops, seconds, device.device_kind, self.config.model.dtype),
      "xla_flops_per_step": program.xla_flops,
    }


def flop_rates(flops_per_step: int, seconds: float, device_kind: str, dtype: str) -> dict:
  """FLOP/s, and their share of the published peak where there is one.

  Args:
    flops_per_step: of one device.
    seconds: per step.
    device_kind: as `flops.peak` knows it.
    dtype: of the computation.

  Returns:
    "flops_per_step", "flops_per_second", and "peak_flops_per_second" with "utilisation" in [0, 1],
    or "left_out" with the reason why these are missing.
  """
  rates = {"flops_per_step": flops_per_step, "flops_per_second": flops_per_step / seconds}
  peak = flops.peak(device_kind, dtype)
  if peak is None:
    why = f"no published peak is known for {device_kind!r} in {dtype}"
    return rates | {"left_out": {"utilisation": why}}
  utilisation = rates["flops_per_second"] / peak
  return rates | {"peak_flops_per_second": peak, "utilisation": utilisation, "left_out": {}}


def costs(seconds: dict[str, float]) -> list[dict]:
  """What each case costs beyond the first, as a share of the first.

  Args:
    seconds: per step by title, cross entropy first.

  Returns:
    For each {"step", "seconds", "over_cross_entropy"}.
  """
  plain = next(iter(seconds.values()))
  return [
    {"step": title, "seconds": taken, "over_cross_entropy": taken / plain - 1}
    for title, taken in seconds.items()
  ]


def _batches(config, training, parallel, *, count) -> Iterator:
  """The first batches of the training, as many as are asked for, however short it is."""
  own = config.copy_and_resolve_references()
  own.train.num_steps = count
  return training_set.training_batches(training, own, start_step=0, parallel=parallel)


def _pipelines(config, training, bench: Bench) -> dict[str, Callable[[], float]]:
  """The real pipeline: once with images that are decoded, then with those that were kept."""
  count = _WARM_UP + config.benchmark.steps + _BEYOND

  def timing():
    read = _batches(config, training, bench.parallel, count=count)
    return bench.configured.fed(bench.parallel.prefetch(read), _WARM_UP)

  if not config.data.cache:
    return {"pipeline": timing}
  first = timing()  # only once are they not there yet
  return {"pipeline, first epoch": lambda: first, "pipeline, later epochs": timing}


def table(found: dict) -> str:
  """What was measured as Markdown of at most 80 columns.

  Args:
    found: the content of `benchmark.json`.
  """
  height, width = found["canvas"]
  model = found["model"]
  network = " on ".join(model[key] for key in ("name", "encoder") if key in model)
  lines = [
    f"{network}, {model['parameters'] / 1e6:.2f} million parameters, {model['dtype']},",
    f"arm {found['arm']}, {width}x{height}, batches of {found['batch_size']},",
    f"{found['device']}",
    "",
    tables.markdown(["one step", "unit", ""], _lines(found)),
    tables.markdown(["the step with", "", "ms", "over cross entropy"], _case_lines(found)),
  ]
  lines += [f"{name} left out: {why}" for name, why in found["left_out"].items()]
  return "\n".join(lines)


def _lines(found):
  rows = [["images", "1/s a device", f"{found['images_per_second_per_device']:.4g}"]]
  on_device, *fed = found["seconds_per_step"].items()
  rows.append([f"time, batch {on_device[0]}", "ms", f"{1e3 * on_device[1]:.4g}"])
  for name, seconds in fed:
    slower = seconds / on_device[1] - 1
    rows.append([f"time, {name}", "ms", f"{1e3 * seconds:.4g} ({slower:+.1%})"])
  rows.append(
    ["convolutions and products", "GFLOP a device", _scaled(found["flops_per_step"], 1e9)]
  )
  rows.append(["as XLA counts", "GFLOP a device", _scaled(found["xla_flops_per_step"], 1e9)])
  rows.append(["rate", "TFLOP/s a device", _scaled(found["flops_per_second"], 1e12)])
  rows.append(["of the published peak", "", _percent(found.get("utilisation"))])
  rows.append(["tracing", "s", f"{found['trace_seconds']:.4g}"])
  rows.append(["compiling, nothing cached", "s", f"{found['compile_seconds']:.4g}"])
  for name, size in found["memory_bytes"].items():
    rows.append([f"memory, {name.replace('_', ' ')}", "MB a device", _scaled(size, 1e6)])
  return rows


def _scaled(number, unit):
  return "-" if number is None else f"{number / unit:.4g}"


def _percent(share):
  return "-" if share is None else f"{share:.1%}"


def _case_lines(found):
  return [
    [row["step"], "", f"{1e3 * row['seconds']:.4g}", f"{row['over_cross_entropy']:+.1%}"]
    for row in found["cases"]
  ]
