"""What a run reads: the training set split into masks and boxes, and the set it is judged on."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from boxseg_jax import config as configuration
from boxseg_jax import data
from boxseg_jax.data import check, feed, findings, grabcut, order, pseudo_masks, split, survey
from boxseg_jax.data.box_priors import BoxPriors, box_priors
from boxseg_jax.data.examples import ExampleReader
from boxseg_jax.data.faults import BoxFaults, with_faults
from boxseg_jax.data.records import Record, max_boxes
from boxseg_jax.errors import InputError


class TrainingSet(NamedTuple):
  """A training split with the decision which of its masks may be learned from.

  Attributes:
    reader: of all records; labels of box images are hidden.
    split: whose masks may be learned from.
    mask_indices: int64 [masks], records in the stream of mask images, those among them whose
      masks the arm "retrained" was given.
    box_indices: int64 [boxes], records in the stream of box images, may be empty.
    mask_images: mask images per batch.
    class_weights: one per class.
    box_priors: how objects lie in their boxes, None where nothing asks for it.
    facts: what was seen of all images of the split, by `data.check`.
    known_box_images: reader of box images whose masks are known: boxes are judged by
      them, nothing is learned from them. None if there are none.
  """

  reader: ExampleReader
  split: split.Split
  mask_indices: np.ndarray
  box_indices: np.ndarray
  mask_images: int
  class_weights: tuple[float, ...]
  box_priors: BoxPriors | None
  facts: list[survey.Facts]
  known_box_images: ExampleReader | None


class Reading(NamedTuple):
  """A split that has been read once.

  Attributes:
    split: its name.
    records: all of its records.
    facts: what was seen of each.
  """

  split: str
  records: list[Record]
  facts: list[survey.Facts]

  @property
  def usable(self) -> list[Record]:
    """The records without problems."""
    return check.usable(self.records, self.facts)


def read_split(config: ConfigDict, split_name: str, *, progress: Callable | None = None) -> Reading:
  """Reads every image and mask of a split once.

  Args:
    config: the configuration.
    split_name: as in `config.data.train_split`.
    progress: (images done, images in all) -> None, called after each.

  Raises:
    InputError: what the source finds wrong with the set as a whole.
  """
  records = data.load_records(config.data, split_name)
  facts = check.look_at(
    records,
    num_classes=len(config.data.class_names),
    workers=config.data.workers,
    progress=lambda done: progress and progress(done, len(records)),
  )
  return Reading(split_name, records, facts)


def summarize(config: ConfigDict, reading: Reading) -> survey.Summary:
  """What a split adds up to on the configured canvas."""
  return survey.summarize(reading.facts, tuple(config.data.canvas))


def judge(config: ConfigDict, split_name: str, summary: survey.Summary) -> list[findings.Finding]:
  """All that is wrong with a split, errors first.

  Args:
    config: the configuration.
    split_name: of the split.
    summary: of the split.
  """
  arm = configuration.arm(config)
  is_learned = split_name == config.data.train_split
  use = findings.Use(
    is_learned=is_learned,
    boxes_are_learned=is_learned and arm.box_images,
    # A file says whose masks are used; without one, only a share of 1 hides none.
    masks_are_hidden=bool(config.data.split_file) or config.data.mask_fraction < 1,
  )
  found = findings.unusable(
    summary,
    on_bad_image=config.data.on_bad_image,
    max_bad_fraction=config.data.max_bad_fraction,
  )
  found += findings.judge(summary, tuple(config.data.class_names), use)
  return sorted(found, key=lambda one: not one.is_error)


def open_training_set(config: ConfigDict, *, report) -> TrainingSet:
  """Reads, checks and splits `config.data.train_split`.

  Args:
    config: the configuration.
    report: takes lines of text.

  Returns:
    TrainingSet of the configured arm.

  Raises:
    InputError: something in the configuration or the data is wrong.
  """
  training = make_training_set(config, _checked(config, config.data.train_split, report))
  made = len(training.mask_indices) - len(training.split.mask_ids)
  report(
    f"{len(training.reader)} training images: {len(training.split.mask_ids)} with masks, "
    + (f"{made} with masks made of their boxes, " if made else "")
    + f"{len(training.box_indices)} with boxes only; each batch of {config.data.batch_size} has "
    f"{training.mask_images} with masks."
  )
  return training


def make_training_set(config: ConfigDict, reading: Reading) -> TrainingSet:
  """Splits what has been read and judged; see `open_training_set`."""
  records = reading.usable
  arm = configuration.arm(config)
  chosen = _choose_masks(config, records, arm)
  is_mask = np.isin([r.image_id for r in records], list(chosen.mask_ids))
  # Masks that are read are drawn like true ones: a stream of their own would show each of them
  # less often than each of those.
  learned_as_mask = is_mask | (arm.pseudo_masks == "files")
  mask_indices = np.flatnonzero(learned_as_mask)
  box_indices = np.flatnonzero(~learned_as_mask) if arm.box_images else np.array([], np.int64)
  if not len(mask_indices) + len(box_indices):
    raise InputError(f"no mask image is left to learn from with config.arm={config.arm!r}")
  records = _with_faults(config, records, is_mask)
  reader = ExampleReader(
    records,
    tuple(config.data.canvas),
    max_boxes(records, config.data.max_boxes),
    hide_labels=~is_mask,
    cache=config.data.cache,
    pseudo_labels=_pseudo_labels(config, arm, [records[i] for i in np.flatnonzero(~is_mask)]),
  )
  mask_images = order.mask_images_per_batch(
    config.data.mask_images_per_batch,
    num_masks=len(mask_indices),
    num_boxes=len(box_indices),
    batch_size=config.data.batch_size,
  )
  return TrainingSet(
    reader,
    chosen,
    mask_indices,
    box_indices,
    mask_images,
    class_weights(config.loss.class_weights, records, len(config.data.class_names)),
    # Of no use without box images, and all masks are many to read again.
    box_priors([records[i] for i in mask_indices], len(config.data.class_names))
    if arm.bootstrap == "posterior" and len(box_indices)
    else None,
    reading.facts,
    # Sigma and bootstrapped targets mean nothing in the other arms.
    _known_box_images(config, [records[i] for i in box_indices]) if arm.learns_sigma else None,
  )


def _pseudo_labels(config, arm, box_records):
  """What makes or reads masks of box images, record -> label map; None in most arms."""
  if arm.pseudo_masks == "grabcut":
    return grabcut.labeller(config.data.canvas)
  if arm.pseudo_masks == "files":
    num_classes = len(config.data.class_names)
    return pseudo_masks.reader(config.data.pseudo_masks, box_records, num_classes)
  return None


def keep_split(chosen: split.Split, path: Path) -> None:
  """Writes the split beside the run, or compares it with the one that the run began with.

  Args:
    chosen: the split.
    path: `split.json` in the workdir.

  Raises:
    InputError: the run began with another one: the data have changed since.
  """
  if not path.exists():
    split.write_split(path, chosen)
    return
  old = split.Split(*map(tuple, split.read_lists(path)))
  if old != chosen:
    changed = set(old.mask_ids) ^ set(chosen.mask_ids) or set(old.box_ids) ^ set(chosen.box_ids)
    raise InputError(
      f"{path}: the run began with other images or another choice of masks, e.g. "
      f"{min(changed)}; choose another --workdir"
    )


def open_evaluation_set(config: ConfigDict, training: TrainingSet, *, report) -> ExampleReader:
  """Reads and checks `config.data.eval_split`.

  Args:
    config: the configuration.
    training: the training set, which should have none of these images.
    report: takes lines of text.

  Returns:
    Its reader.

  Raises:
    InputError: something is wrong, or an image to be judged has no mask.
  """
  reading = _checked(config, config.data.eval_split, report)
  pairs = survey.shared_images(training.facts, reading.facts)
  leaks = findings.leaks(pairs, config.data.train_split)
  findings.refuse_or_report(leaks, split=reading.split, report=report)
  return make_evaluation_set(config, reading)


def make_evaluation_set(config: ConfigDict, reading: Reading) -> ExampleReader:
  """The reader of what has been read and judged; see `open_evaluation_set`."""
  records = reading.usable
  for record in records:
    if record.read_labels is None:
      raise InputError(f"{record.source}: image {record.image_id} has no mask to be judged by")
  return _plain_reader(config, records, cache=config.data.cache)


def training_batches(
  training: TrainingSet, config: ConfigDict, *, start_step: int, parallel
) -> Iterator[dict[str, np.ndarray]]:
  """Gives this process's share of the batches of steps start_step, start_step + 1, ...

  Args:
    training: of `open_training_set`.
    config: the configuration.
    start_step: first step, 0-based; any step is reached at once.
    parallel: boxseg_jax.parallel.Parallel.

  Returns:
    Batches until `config.train.num_steps`.
  """
  batch_at = partial(
    order.batch_indices,
    seed=config.seed,
    mask_indices=training.mask_indices,
    box_indices=training.box_indices,
    batch_size=config.data.batch_size,
    mask_images=training.mask_images,
  )
  return feed.training_batches(
    training.reader,
    batch_at,
    start_step=start_step,
    num_steps=config.train.num_steps - start_step,
    process_index=parallel.process_index,
    process_count=parallel.process_count,
    workers=config.data.workers,
    pipeline=config.data.pipeline,
  )


def evaluation_batches(reader: ExampleReader, config: ConfigDict, parallel):
  """Gives this process's share of the evaluation batches of a reader, every image once."""
  return feed.evaluation_batches(
    reader,
    batch_size=config.eval.batch_size,
    process_index=parallel.process_index,
    process_count=parallel.process_count,
  )


def judged_batches(reader: ExampleReader, config: ConfigDict, parallel):
  """`evaluation_batches`, or with `config.eval.tiles` = "slide" windows at the images' own size."""
  if config.eval.tiles == "fit":
    return evaluation_batches(reader, config, parallel)
  return feed.tile_batches(
    reader,
    overlap=config.eval.overlap,
    batch_size=config.eval.batch_size,
    process_index=parallel.process_index,
    process_count=parallel.process_count,
  )


def class_weights(given, records: Sequence[Record], num_classes: int) -> tuple[float, ...]:
  """Weights of the classes in the loss.

  Args:
    given: () = all 1, ("auto",), or one number per class.
    records: of the training set.
    num_classes: with the background.

  Returns:
    One weight per class. "auto" is the inverse square root of each class's share of the
    area of boxes and of what they leave over, scaled to 1 for the background, none
    above 10: boxes, unlike masks, are there in every arm of a comparison.

  Raises:
    InputError: another number of weights, or one that is not above 0.
  """
  if not given:
    return (1.0,) * num_classes
  if tuple(given) == ("auto",):
    areas = _box_areas(records, num_classes)
    return tuple(float(w) for w in np.minimum(np.sqrt(areas[0] / np.maximum(areas, 1e-9)), 10.0))
  numbers = [w for w in given if isinstance(w, int | float) and w > 0]
  if len(numbers) != num_classes or len(given) != num_classes:
    raise InputError(
      f"config.loss.class_weights is {tuple(given)}, but must be (), ('auto',) or {num_classes} "
      "numbers above 0"
    )
  return tuple(float(weight) for weight in given)


def _box_areas(records, num_classes):
  """Area of objects' boxes by class in images, and of what they leave over."""
  areas = np.zeros(num_classes)
  for record in records:
    objects = ~record.box_is_crowd  # a crowd is void wherever boxes are learned from
    size = (record.boxes[:, 2:] - record.boxes[:, :2])[objects]
    np.add.at(areas, record.box_classes[objects], size.prod(axis=1))
  areas[0] = max(len(records) - areas.sum(), 1.0)
  return areas


def _with_faults(config, records, is_mask):
  """The records, with the configured mistakes in the boxes of box images."""
  faults = BoxFaults(**config.data.box_faults)
  if faults == BoxFaults():
    return records
  num_classes = len(config.data.class_names)
  return [
    record
    if known
    else with_faults(record, faults, num_classes=num_classes, seed=config.data.split_seed)
    for record, known in zip(records, is_mask, strict=True)
  ]


def _known_box_images(config, box_records):
  known = [record for record in box_records if record.read_labels is not None]
  limit = config.eval.box_images
  known = known if limit < 0 else known[:limit]
  return _plain_reader(config, known, cache=False) if known else None


def _plain_reader(config, records, *, cache):
  """A reader that hides nothing."""
  return ExampleReader(
    records,
    tuple(config.data.canvas),
    max_boxes(records),
    hide_labels=np.zeros(len(records), bool),
    cache=cache,
  )


def _checked(config, split_name, report):
  reading = read_split(config, split_name)
  found = judge(config, split_name, summarize(config, reading))
  findings.refuse_or_report(found, split=split_name, report=report)
  return reading


def _choose_masks(config, records, arm):
  """The split: drawn, read from a file, or all masks there are."""
  if arm.all_masks:
    return split.split_masks(records, 1.0, config.data.split_seed)
  if config.data.split_file:
    return split.read_split(config.data.split_file, records)
  return split.split_masks(records, config.data.mask_fraction, config.data.split_seed)
