"""What the network makes of a few training images, the same ones each time.

As pictures, at each evaluation; and, at some steps of the run, the targets that it learns from
inside their boxes, for the report of the run.
"""

import io
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from boxseg_jax import augment, files
from boxseg_jax.data.box_priors import as_arrays
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import evaluate, paint, pictures
from boxseg_jax.training.step import LossSettings, make_predict_fn, make_target_fn

LOOKS = 8  # at the targets, evenly spread over the run, and one before its first step


class BoxImages(NamedTuple):
  """Training images of which only the boxes are given, numpy arrays on the canvas.

  Attributes:
    names: of the images.
    image: uint8 [images, height, width, 3].
    boxes: float32 [images, max_boxes, 4], (ymin, xmin, ymax, xmax) in [0, 1] of the canvas.
    box_classes: int32 [images, max_boxes], 0 = padding.
    box_is_crowd: bool [images, max_boxes].
    true_labels: int32 [images, height, width], which nothing learns from; 255 where not known.
  """

  names: tuple[str, ...]
  image: np.ndarray
  boxes: np.ndarray
  box_classes: np.ndarray
  box_is_crowd: np.ndarray
  true_labels: np.ndarray


class Snapshots:
  """Draws image, given label, boxes, prediction, sigma and bootstrapped target."""

  def __init__(self, config: ConfigDict, model, settings: LossSettings, training):
    """Chooses the images: a third mask images, the others box images.

    Args:
      config: the configuration.
      model: the network.
      settings: of the loss.
      training: data.training_set.TrainingSet.
    """
    self._class_names = tuple(config.data.class_names)
    # Box images are what changes; some mask images for comparison.
    masks = training.mask_indices[
      : config.eval.pictures // 3 if len(training.box_indices) else None
    ]
    chosen = np.concatenate([masks, training.box_indices])[: config.eval.pictures]
    examples = [training.reader(int(index)) for index in chosen]
    self._batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
    known = [training.reader.evaluation(int(index))["labels"] for index in chosen]
    self._true_labels = np.stack(known)
    self._names = tuple(training.reader.records[int(index)].image_id for index in chosen)
    self._is_box = ~self._batch["has_mask"]
    self._bootstraps = settings.bootstrap != "none"
    self._box_priors = as_arrays(settings.box_priors)
    predict = make_predict_fn(model, settings)

    def look(variables, batch, step, box_priors):
      target = make_target_fn(model, settings._replace(box_priors=box_priors))
      prepared = augment.prepare(batch)
      logits, sigma = predict(variables, prepared)
      predicted = evaluate.most_likely_class(logits)
      learned = jnp.round(255.0 * target(variables, prepared, step)[0][..., 1:]).astype(jnp.uint8)
      return prepared, predicted, sigma, target(variables, prepared)[0], learned

    self._compiled_look = jax.jit(look)

  def _look(self, state):
    return self._compiled_look(state.ema, self._batch, state.step, self._box_priors)

  @property
  def follows_boxes(self) -> bool:
    """Whether there are boxes here whose targets change while training."""
    return self._bootstraps and bool(self._is_box.any())

  @property
  def box_images(self) -> BoxImages:
    """The images that `targets` is about."""
    of_canvas = jax.device_get(augment.prepare(self._batch))["boxes"]
    classes, crowd = self._batch["box_classes"], self._batch["box_is_crowd"]
    arrays = self._batch["image"], of_canvas, classes, crowd, self._true_labels
    names = tuple(name for name, kept in zip(self._names, self._is_box, strict=True) if kept)
    return BoxImages(names, *(array[self._is_box] for array in arrays))

  def targets(self, state) -> np.ndarray:
    """What the next step would learn inside the boxes of `box_images`.

    Args:
      state: TrainState.

    Returns:
      uint8 [images, height, width, num_classes - 1], probability of each foreground class in units
      of 1 / 255; 0 outside of boxes.
    """
    *_, learned = self._look(state)
    return jax.device_get(learned)[self._is_box]

  def draw(self, state) -> np.ndarray:
    """The pictures of one state: uint8 [page_height, page_width, 3]."""
    prepared, predicted, sigma, target, _ = jax.device_get(self._look(state))
    views = pictures.Views(
      image=self._batch["image"],
      given_labels=self._batch["labels"],
      boxes=prepared["boxes"],
      box_classes=prepared["box_classes"],
      predicted=predicted,
      sigma=sigma,
      target=target,
      true_labels=self._true_labels,
      visible=prepared["visible"],
      box_is_crowd=prepared["box_is_crowd"],
    )
    return pictures.panel(views, self._class_names)


def save(workdir, step: int, picture: np.ndarray) -> Path:
  """Writes `<workdir>/pictures/<step>.png` and returns its path."""
  path = Path(workdir) / "pictures" / f"{step:07d}.png"
  paint.save(path, picture)
  return path


def newest(workdir) -> Path | None:
  """Path of the last picture that `save` wrote, None if there is none."""
  return max((Path(workdir) / "pictures").glob("*.png"), default=None)


def is_due(step: int, num_steps: int) -> bool:
  """Whether the targets are kept at a step: before the first, after the last, and some between."""
  return step in {round(num_steps * look / LOOKS) for look in range(LOOKS + 1)}


def keep_targets(workdir, step: int, targets: np.ndarray) -> None:
  """Writes what `Snapshots.targets` gave to `<workdir>/snapshots/<step>.npz`."""
  content = io.BytesIO()
  np.savez_compressed(content, targets=targets)
  files.write_bytes(Path(workdir) / "snapshots" / f"{step:07d}.npz", content.getvalue())


def kept_targets(workdir) -> dict[int, np.ndarray]:
  """What `keep_targets` wrote, by step, the first one first.

  Raises:
    InputError: a file that is damaged, or of something else.
  """
  kept = {}
  for path in sorted((Path(workdir) / "snapshots").glob("*.npz")):
    try:
      with np.load(path, allow_pickle=False) as content:
        kept[int(path.stem)] = content["targets"]
    except Exception as error:  # archives raise whatever a broken file makes them raise
      raise InputError(f"{path}: cannot be read ({error})") from error
  return kept
