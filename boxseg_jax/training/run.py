"""One run: a configuration, its workdir, and everything opened for the two."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from ml_collections import ConfigDict

from boxseg_jax import config as configuration
from boxseg_jax import files
from boxseg_jax.data import training_set
from boxseg_jax.errors import InputError, WriteError
from boxseg_jax.evaluation import evaluate
from boxseg_jax.files import read_json, write_json
from boxseg_jax.parallel import Parallel
from boxseg_jax.training import build, memory, saved, trace
from boxseg_jax.training.checkpoint import Checkpoints
from boxseg_jax.training.snapshots import Snapshots

# Parts of the configuration that change nothing in what a run becomes.
_OF_NO_RUN = ("study.", "benchmark.", "predict.", "label.", "export.", "train.on_failed_write")
# What was done before there was a key whose default does something else.
_BEFORE_THE_KEY = {"loss.projection_weight": 0.0}


class Run:
  """Data, network and checkpoints of a workdir, for training it and for what comes after.

  Attributes:
    config: the configuration.
    workdir: folder of the run, a Path.
    parallel: the devices.
    training: data.training_set.TrainingSet.
    judged: reader of the evaluation split.
    model: the network.
    optimizer: optax transformation.
    schedule: learning rate by step.
    settings: step.LossSettings.
    report: takes lines of text for the person who waits.
  """

  def __init__(self, config: ConfigDict, workdir, *, report: Callable[[str], None] = print):
    """Opens the workdir and reads and checks the data; nothing is computed yet.

    Args:
      config: complete configuration, see `boxseg_jax.config`.
      workdir: folder of the run, made where it is missing.
      report: takes lines of text for the person who waits.

    Raises:
      InputError: something in the configuration or the data is wrong.
    """
    configuration.check(config)
    self.config, self.workdir, self.report = config, Path(workdir), report
    refuse_other_configuration(config, self.workdir)
    self.parallel = Parallel(config.parallel.kind)
    self.parallel.check_batch_size("eval.batch_size", config.eval.batch_size)
    self.parallel.check_batch_size(
      "data.batch_size", config.data.batch_size, config.optimizer.accumulate
    )
    self.model = build.make_model(config)
    self.optimizer, self.schedule = build.make_optimizer(config)
    self.training = training_set.open_training_set(config, report=report)
    self.judged = training_set.open_evaluation_set(config, self.training, report=report)
    self.settings = build.loss_settings(
      config,
      self.training.class_weights,
      mask_images=self.training.mask_images,
      box_priors=self.training.box_priors,
    )
    self._claim_workdir()

  def _claim_workdir(self):
    """Writes down what the workdir is of, once all of it has been found right."""
    training_set.keep_split(self.training.split, self.notes / "split.json")
    write_json(self.notes / "config.json", _of_one_run(configuration.flatten(self.config)))
    write_json(self.notes / saved.DESCRIPTION, saved.describe(self.config, self.settings))

  @cached_property
  def notes(self) -> Path:
    """Folder for what all processes would write alike: the workdir, if this is the first one.

    For the others a folder that ends with them, so that all of them compute the same.
    """
    if self.parallel.process_index == 0:
      return self.workdir
    self._own_folder = tempfile.TemporaryDirectory(prefix="boxseg-")
    return Path(self._own_folder.name)

  def open_checkpoints(self, *, read_only: bool = False) -> Checkpoints:
    """The checkpoints in the workdir, a context manager that ends what is being written."""
    train = self.config.train
    return Checkpoints(
      self.workdir,
      keep=train.keep_checkpoints,
      best_metric=train.best_metric,
      read_only=read_only,
      report=self.report,
    )

  def locked(self):
    """Context in which no other process may train in the workdir; others may read it."""
    if self.parallel.process_index:
      return contextlib.nullcontext()  # the first one has it for all of them
    return files.locked(self.workdir / ".lock", f"the workdir {self.workdir}", self.report)

  @contextlib.contextmanager
  def forgiving(self, *, at_the_end: bool = False) -> Iterator[None]:
    """Context in which `train.on_failed_write` decides what it means that a file cannot be written.

    Args:
      at_the_end: no later file makes up for this one, so the failure is one in any case.
    """
    try:
      yield
    except WriteError as error:
      # Processes of a job do not learn of each other's disks, and have to go on together.
      alone = self.parallel.process_count == 1
      if at_the_end or not alone or self.config.train.on_failed_write == "stop":
        raise
      self.report(f"Going on without: {error}")

  def save(
    self, checkpoints: Checkpoints, step: int, state, results, *, writer, last: bool
  ) -> None:
    """Saves a checkpoint, and before it the log: a run that goes on from it logs no step again.

    Args:
      checkpoints: where to.
      step: number of steps taken.
      state: TrainState.
      results: of the evaluation at this step, None if there was none.
      writer: MetricWriter of the run.
      last: whether no other checkpoint comes after it.

    Raises:
      WriteError: it could not be saved, and `train.on_failed_write` or `last` makes that an end.
    """
    state = self.parallel.whole(state)
    with self.forgiving():
      checkpoints.settle()  # the one before this one
    with self.forgiving():
      writer.flush_tensorboard()
    with self.forgiving(at_the_end=last):
      writer.flush()
      checkpoints.save(step, state, results)

  def first_state(self):
    """The state of step 0 on all devices."""
    return self.parallel.replicate(
      build.initial_state(self.config, self.model, self.optimizer, self.settings)
    )

  def restore(self, checkpoints: Checkpoints, step: int):
    """The state of a checkpoint on all devices."""
    like = build.state_like(self.config, self.model, self.optimizer, self.settings, self.parallel)
    return checkpoints.restore(step, like)

  def train_step(self):
    """The compiled training step, see `build.compile_train_step`."""
    return build.compile_train_step(
      self.config, self.model, self.optimizer, self.settings, self.parallel
    )

  def traced_train_step(self, start_step: int, steps: tuple[int, ...]):
    """Context of `train_step`; the first process writes a trace of the steps to `profile/`."""
    steps = () if self.parallel.process_index else steps
    folder = self.workdir / "profile"
    return trace.traced(self.train_step(), folder, steps, start_step=start_step)

  def batches(self, start_step: int):
    """Training batches on the devices, from a step on; see `training_set.training_batches`."""
    batches = training_set.training_batches(
      self.training, self.config, start_step=start_step, parallel=self.parallel
    )
    return self.parallel.prefetch(batches)

  @cached_property
  def snapshots(self) -> Snapshots:
    """Pictures of some training images."""
    return Snapshots(self.config, self.model, self.settings, self.training)

  @cached_property
  def _evaluators(self) -> build.Evaluators:
    return build.compile_evaluators(self.model, self.settings, self.parallel)

  def measure(self, state) -> dict[str, float]:
    """All metrics of a state by name, see `evaluation.evaluate.results`."""
    judged = training_set.judged_batches(self.judged, self.config, self.parallel)
    with memory.told(self.config, memory.EVALUATION):
      totals = self._totals(self._evaluators.segmentation, state, judged) | self.box_totals(state)
    return evaluate.results(totals, self.config.data.class_names)

  def box_totals(self, state) -> dict:
    """Sums over box images whose masks are known, see `evaluate.box_sums`; {} without such."""
    known = self.training.known_box_images
    if not known:
      return {}
    boxed = training_set.evaluation_batches(known, self.config, self.parallel)
    return self._totals(self._evaluators.boxes, state, boxed)

  def _totals(self, sums_fn, state, batches):
    return evaluate.evaluate(sums_fn, state, batches, self.parallel.put_batch)


def refuse_other_configuration(config: ConfigDict, workdir: Path) -> None:
  """Compares the configuration with the one that the workdir is of, if it is of any.

  Args:
    config: the configuration.
    workdir: folder of the run.

  Raises:
    InputError: another configuration, the differing keys are named; or a workdir that
      cannot be written or read.
  """
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      return
  except OSError as error:
    raise InputError(f"the workdir {workdir} cannot be used: {error}") from error
  # A key that came with a later version does by default what was done before it, or is listed.
  old = configuration.flatten(configuration.get_config()) | _BEFORE_THE_KEY | read_json(path)
  new = configuration.flatten(config)
  changed = configuration.differences(_of_one_run(old), _of_one_run(new))
  if changed:
    raise InputError(
      f"{workdir} holds a run of another configuration; choose another --workdir or undo:\n  "
      + "\n  ".join(changed)
    )


def _of_one_run(flat):
  """Without what says which runs a study has, how one is watched, and a trained network used."""
  return {key: value for key, value in flat.items() if not key.startswith(_OF_NO_RUN)}
