"""Pictures of what the network makes of a few training images, the same ones each time."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from boxseg_jax import augment
from boxseg_jax.evaluation import evaluate, pictures
from boxseg_jax.training.step import LossSettings, make_predict_fn, make_target_fn


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
    predict, target = make_predict_fn(model), make_target_fn(model, settings)

    def look(variables, batch):
      prepared = augment.prepare(batch)
      logits, sigma = predict(variables, prepared)
      predicted = evaluate.most_likely_class(logits)
      return prepared, predicted, sigma, target(variables, prepared)[0]

    self._look = jax.jit(look)

  def draw(self, state) -> np.ndarray:
    """The pictures of one state: uint8 [page_height, page_width, 3]."""
    prepared, predicted, sigma, target = jax.device_get(self._look(state.ema, self._batch))
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
  pictures.save(path, picture)
  return path


def newest(workdir) -> Path | None:
  """Path of the last picture that `save` wrote, None if there is none."""
  return max((Path(workdir) / "pictures").glob("*.png"), default=None)
