"""How the targets inside boxes of training images changed while the run went on."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from boxseg_jax.batch import VOID
from boxseg_jax.data.records import held_pixels
from boxseg_jax.training import snapshots
from boxseg_jax.training.run import Run
from boxseg_jax.training.snapshots import BoxImages

_SHOWN = 12  # boxes
_SMALLEST = 4  # pixels on the canvas: of smaller ones nothing can be seen


class Box(NamedTuple):
  """One box and its history.

  Attributes:
    image: position in `History.images`.
    slot: position among the image's boxes.
    label: its class.
    side: the shorter one, in pixels of the canvas.
    filled: share of the box that is taken for its class, at each step.
    iou: of that part with the true mask inside the box, at each step; NaN where not known.
  """

  image: int
  slot: int
  label: int
  side: float
  filled: list[float]
  iou: list[float]


class History(NamedTuple):
  """Targets by step.

  Attributes:
    images: what they are about.
    targets: by step, the first one first, as of `Snapshots.targets`.
    boxes: of all images, without crowds.
    is_whole: False where the run kept none, and its checkpoints were asked.
  """

  images: BoxImages
  targets: Mapping[int, np.ndarray]
  boxes: list[Box]
  is_whole: bool


def read(run: Run) -> History | str:
  """The history of a run, or why it has none.

  Args:
    run: a run with a checkpoint.
  """
  if run.settings.bootstrap == "none" or not len(run.training.box_indices):
    return f'The arm "{run.config.arm}" learns from nothing that changes inside boxes.'
  if not run.config.eval.pictures or not run.snapshots.follows_boxes:
    return "No box image was followed: eval.pictures is 0, or too few for one."
  kept = snapshots.kept_targets(run.workdir)
  targets = kept or _of_checkpoints(run)
  images = run.snapshots.box_images
  boxes = [
    _follow(images, index, int(slot), list(targets.values()))
    for index, classes in enumerate(images.box_classes)
    for slot in np.flatnonzero((classes > 0) & ~images.box_is_crowd[index])
  ]
  return History(images, targets, [box for box in boxes if box], bool(kept))


def chosen(boxes: list[Box]) -> list[Box]:
  """A few boxes to look at: small and large ones of each class."""
  large = [box for box in boxes if box.side >= _SMALLEST] or boxes
  classes = sorted({box.label for box in large})
  picked = []
  for label in classes:
    ordered = sorted((box for box in large if box.label == label), key=lambda box: box.side)
    count = min(max(_SHOWN // len(classes), 1), len(ordered))
    picked += [ordered[i] for i in np.linspace(0, len(ordered) - 1, count).round().astype(int)]
  return picked[:_SHOWN]


def _of_checkpoints(run):
  """Start, and what the checkpoints say that are left."""
  targets = {0: run.snapshots.targets(run.first_state())}
  with run.open_checkpoints(read_only=True) as checkpoints:
    for step in checkpoints.steps():
      targets[step] = run.snapshots.targets(run.restore(checkpoints, step))
  return targets


def _follow(images, index, slot, targets):
  """A `Box`, None where it holds no pixel's centre."""
  label, box = int(images.box_classes[index, slot]), images.boxes[index, slot]
  height, width = images.image.shape[1:3]
  top, left, bottom, right = held_pixels(box, (height, width))
  inside = (index, slice(top, bottom), slice(left, right))
  true = images.true_labels[inside]
  if not true.size:
    return None
  taken = [_most_likely(target[inside]) == label for target in targets]
  return Box(
    image=index,
    slot=slot,
    label=label,
    side=float(min((box[2] - box[0]) * height, (box[3] - box[1]) * width)),
    filled=[float(part.mean()) for part in taken],
    iou=[_iou(part, true, label) for part in taken],
  )


def _most_likely(target):
  """Class ids of foreground probabilities in 255ths [..., num_classes - 1]."""
  return np.argmax(with_background(target), axis=-1)


def with_background(target: np.ndarray) -> np.ndarray:
  """Probabilities float32 [..., num_classes] of `Snapshots.targets` [..., num_classes - 1]."""
  foreground = target.astype(np.float32) / 255
  background = 1 - foreground.sum(-1, keepdims=True)
  return np.concatenate([background, foreground], axis=-1)


def _iou(taken, true, label):
  known = true != VOID
  either = (taken | (true == label)) & known
  both = taken & (true == label) & known
  return float(both.sum() / either.sum()) if either.any() else float("nan")
