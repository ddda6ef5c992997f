"""Teaches a run how masks of boxes are to be corrected, by the masks that it learned from."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from boxseg_jax.apps.model import Model
from boxseg_jax.data import load_records, mask_files, split
from boxseg_jax.data.object_masks import ObjectMask, object_mask
from boxseg_jax.data.records import Record, single_boxes
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation.labeller import SHARE, BoxLabeller, BoxMask, SeenBox
from boxseg_jax.training import refining, saved
from boxseg_jax.training.progress import Count
from boxseg_jax.training.run import refuse_other_configuration

# Chosen on `camvid/val` (launch/results/method.md).
_VIEWS = 8  # of each image
_MOST_VIEWS = 1024  # in all: each is seen by the network once
_MOST = 4096  # crops in all, so that they fit the memory
_LEAST = 40  # pixels of an object: smaller ones have hardly a shape
_SHARES = 0.62, 0.9  # of a crop that its box takes
_LIGHT, _COLOUR = (0.6, 1.6), (0.7, 1.3)  # exponent and factor of colours in [0, 1]
_JUDGED_IMAGES, _JUDGED = 32, 1024  # images and boxes that it is compared with the rules on


def run(config: ConfigDict, workdir, *, report: Callable[[str], None] = print) -> str:
  """Learns a refiner of a run's best checkpoint; `label` and `predict` with boxes then use it.

  Args:
    config: of the run; `label.refine_steps` is how long it learns.
    workdir: of the run. Only the images are read whose masks it learned from.
    report: takes lines of text for the person who waits.

  Returns:
    Where it is, and how much better its masks are than those of the rules: mean IoU per box, on
    images of `data.eval_split`.

  Raises:
    InputError: no network there, another configuration, or no mask to learn from.
  """
  workdir = Path(workdir)
  network = saved.load(workdir)
  if not (workdir / "split.json").exists():
    raise InputError(f"{workdir} is no run: only there it is known which masks may be learned from")
  refuse_other_configuration(config, workdir)
  model = Model(network._replace(refiner=None))
  records = _mask_records(config, workdir)
  examples = gather(config, model.labeller, records, seed=config.seed)
  if not examples:
    raise InputError(f"{workdir} learned from no mask of {_LEAST} pixels; a refiner needs some")
  report(f"{len(examples)} views of objects in {len(records)} images with masks.")
  steps = config.label.refine_steps
  count = Count("refine", unit="steps")
  variables = refining.fit(
    examples, num_steps=steps, seed=config.seed, progress=lambda done: count(done, steps)
  )
  count.close()
  network = network._replace(refiner=variables)
  path = saved.save_refiner(network, workdir)
  return f"{path}: masks of boxes are refined by it from now on.\n{_compared(config, network)}"


def _mask_records(config, workdir) -> list[Record]:
  chosen = set(split.read_lists(workdir / "split.json")[0])
  records = load_records(config.data, config.data.train_split)
  return [record for record in records if record.image_id in chosen]


def gather(
  config: ConfigDict, labeller: BoxLabeller, records: Sequence[Record], *, seed: int
) -> list[refining.Example]:
  """Views of the objects of images whose masks may be learned from.

  Args:
    config: of it, `data` is used.
    labeller: without a refiner.
    records: these images alone; no other is read.
    seed: of how views differ.

  Returns:
    Examples of objects of 40 pixels or more: of each image as it is, mirrored, in other colours and
    at other scales; about 4,096 at most.
  """
  annotations = mask_files.document(config.data, config.data.train_split, records).boxes
  rng = np.random.default_rng(seed)
  views = [(record, view) for record in records for view in range(_VIEWS)]
  drawn = sorted(rng.permutation(len(views))[:_MOST_VIEWS].tolist())
  views = [views[index] for index in drawn]
  boxes = sum(np.count_nonzero(~record.box_is_crowd) for record, _ in views)
  found: list[refining.Example] = []
  count = Count("look at masks", unit="views")
  for done, (record, view) in enumerate(views, start=1):
    chosen = _chosen(record, annotations[record.image_id], rng, _MOST / max(boxes, 1))
    if chosen:
      found += _view(labeller, record, chosen, rng, view)
    count(done, len(views))
  count.close()
  return found


def _chosen(record, annotations, rng, share) -> dict[int, ObjectMask]:
  """Objects by position of the box, a share of the image's drawn at random."""
  labels = record.read_labels()
  single = np.flatnonzero(~record.box_is_crowd)
  drawn = single[rng.random(len(single)) < share].tolist()
  found = {i: object_mask(record, annotations.get(i, {}), i, labels) for i in drawn}
  return {i: one for i, one in found.items() if np.sum(one.pixels & one.known) >= _LEAST}


def _view(labeller, record, objects, rng, view) -> Iterator[refining.Example]:
  """What is learned from each object; the first view is the image as it is."""
  image = record.read_image()
  single, boxes = single_boxes(record)
  mirrored = bool(view % 2)
  if mirrored:
    image, boxes = image[:, ::-1], boxes[:, [0, 3, 2, 1]]
    boxes[:, [1, 3]] = record.size[1] - boxes[:, [1, 3]]
  if view > 1:
    image = _recoloured(image, rng)
  share = rng.uniform(*_SHARES) if view else SHARE
  wanted = np.searchsorted(single, list(objects))
  seen = labeller.seen_boxes(image, boxes, record.box_classes[single], wanted, share)
  for one, own in zip(seen, objects.values(), strict=True):
    yield _example(one, own, mirrored)


def _recoloured(image, rng) -> np.ndarray:
  light, colour = rng.uniform(*_LIGHT), rng.uniform(*_COLOUR, 3)
  return (255 * np.clip((image / 255.0) ** light * colour, 0, 1)).astype(np.uint8)


def _example(seen: SeenBox, own: ObjectMask, mirrored: bool) -> refining.Example:
  pixels, known = (x[:, ::-1] if mirrored else x for x in own)
  outcome = seen.outcome
  counted = outcome.inside & (seen.sample(known) > 0.5)
  given = outcome.probability, outcome.evidence, outcome.features, seen.sample(pixels), counted
  return refining.Example(*(np.asarray(array, np.float16) for array in given))


def judge(
  config: ConfigDict, split_name: str, labellers: Sequence[BoxLabeller], *, seed: int
) -> np.ndarray:
  """Compares the masks of some labellers with those of a split.

  Args:
    config: of it, `data` is used.
    split_name: of images that nothing was learned from.
    labellers: the methods.
    seed: of which images and boxes are drawn.

  Returns:
    float64 [boxes, labellers], IoU of each box's mask with the object's own, where that is known:
    objects of 40 pixels or more, about 1,024 at most, of 32 images with masks at most.

  Raises:
    InputError: an image or mask that cannot be read.
  """
  records = [r for r in load_records(config.data, split_name) if r.read_labels is not None]
  rng = np.random.default_rng(seed)
  records = [records[index] for index in rng.permutation(len(records))[:_JUDGED_IMAGES]]
  annotations = mask_files.document(config.data, split_name, records).boxes
  share = _JUDGED / max(sum(len(record.boxes) for record in records), 1)
  ious: list[list[float]] = []
  count = Count("compare", unit="images")
  for done, record in enumerate(records, start=1):
    chosen = _chosen(record, annotations[record.image_id], rng, share)
    if chosen:
      single, boxes = single_boxes(record)
      given = record.read_image(), boxes, record.box_classes[single]
      made = [
        one.masks(*given, np.searchsorted(single, list(chosen)).tolist()) for one in labellers
      ]
      for own, *masks in zip(chosen.values(), *made, strict=True):
        ious.append([_iou(mask, own) for mask in masks])
    count(done, len(records))
  count.close()
  return np.reshape(ious, (-1, len(labellers)))


def _iou(mask: BoxMask | None, own: ObjectMask) -> float:
  if mask is None:
    return 0.0
  pixels = mask.whole(own.pixels.shape)
  common, either = pixels & own.pixels, pixels | own.pixels
  return float(np.sum(common & own.known) / np.sum(either & own.known))


def _compared(config, network) -> str:
  """Whether it was worth it, in words."""
  split_name = config.data.eval_split
  if split_name == config.data.train_split:
    return "Whether they are better was not measured: there is no split for it."
  models = Model(network._replace(refiner=None)), Model(network)
  try:
    ious = judge(config, split_name, [model.labeller for model in models], seed=config.seed)
  except InputError as error:  # what was learned is kept all the same
    return f"Whether they are better was not measured: {error}"
  if not len(ious):
    return f"Whether they are better was not measured: {split_name} has no masks for it."
  rules, refined = ious.mean(0)
  text = (
    f"{len(ious)} boxes of {split_name}: mean IoU {refined:.3f}, of the rules alone {rules:.3f}."
  )
  return text if refined > rules else f"{text} Remove the file, and the rules are used again."
