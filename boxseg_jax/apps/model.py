"""A trained network in the hands of a person: `load`, `predict`, look."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxseg_jax.data.photos import Photo, as_photos
from boxseg_jax.evaluation import pictures
from boxseg_jax.evaluation.predictor import Predictor
from boxseg_jax.losses import uncertainty
from boxseg_jax.training import saved
from boxseg_jax.training.step import make_predict_fn


def load(path: str | Path, *, step: int | None = None) -> "Model":
  """Opens a trained network. Neither its data nor TensorFlow is needed.

  Args:
    path: the workdir of a run, a `.safetensors` file or a hub folder of `--mode=export`, or
      "hf://owner/repository".
    step: which checkpoint of a run; the best one by default.

  Returns:
    The model, ready to predict.

  Raises:
    InputError: no trained network there, or it cannot be read.
  """
  return Model(saved.load(path, step=step))


@dataclass(frozen=True, eq=False)
class Result:
  """What a network says of one image, at the image's own size.

  Attributes:
    name: path of the image, or its number.
    class_names: by class id, background first.
    logits: float32 [height, width, num_classes].
    sigma: float32 [height, width], >= 0, scale of the doubt in a box's label.
  """

  name: str
  class_names: tuple[str, ...]
  logits: np.ndarray
  sigma: np.ndarray
  _photo: Photo

  @cached_property
  def image(self) -> np.ndarray:
    """uint8 [height, width, 3], RGB; read again from its file."""
    return self._photo.read()

  @cached_property
  def classes(self) -> np.ndarray:
    """The most likely class of each pixel, uint8 [height, width]."""
    return np.argmax(self.logits, axis=-1).astype(np.uint8)

  @cached_property
  def probability(self) -> np.ndarray:
    """Of each class, float32 [height, width, num_classes] that sums to 1."""
    odds = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)

  @cached_property
  def certainty(self) -> np.ndarray:
    """How far a box's label would be believed here, float32 [height, width] in (0, 1]."""
    return np.asarray(uncertainty.certainty(self.sigma))

  def overlay(self) -> np.ndarray:
    """The classes' colours over the image, uint8 [height, width, 3]."""
    return pictures.overlay(self.image, self.classes, pictures.palette(len(self.class_names)))

  def plot(self) -> Image.Image:
    """Image, classes and certainty side by side, with a legend: a PIL image, shown in notebooks."""
    page = pictures.predicted(self.image, self.classes, self.certainty, self.class_names)
    return Image.fromarray(page)


class Model:
  """A trained network.

  Attributes:
    class_names: by class id, background first.
    canvas: (height, width) in pixels that images were fitted to in training.
    network: training.saved.Network, all that was read.
  """

  def __init__(self, network: saved.Network):
    """Binds the network; each shape is compiled when it is first met."""
    self.network = network
    self.class_names, self.canvas = network.class_names, network.canvas
    self._predictors: dict[Any, Predictor] = {}

  def predict(
    self,
    images: Any,
    *,
    tiles: str = "fit",
    overlap: float = 0.25,
    mirror: bool = False,
    batch_size: int = 8,
  ) -> Result | list[Result]:
    """Predicts images of any size.

    Args:
      images: a path, folder or pattern, a PIL image, an array (uint8 [height, width, 3], RGB, or
        [height, width], grey), or a sequence of such.
      tiles: "fit" scales the image to the canvas, as in training; "slide" moves a window of the
        canvas's size over it: for objects that are as large in the file as they were on the canvas.
      overlap: least share of a window that the next one sees too, in [0, 1); of "slide".
      mirror: average with the prediction of the mirrored image, at twice the price.
      batch_size: images (or windows) at once.

    Returns:
      A Result for one image; a list of them for a sequence, folder or pattern.

    Raises:
      InputError: something that is no image or cannot be read, or an option that makes no sense.
    """
    photos, single = as_photos(images)
    predictor = self.predictor(tiles=tiles, overlap=overlap, mirror=mirror, batch_size=batch_size)
    results = list(self._results(predictor, photos))
    return results[0] if single else results

  def predictor(self, **options) -> Predictor:
    """The network bound to options of `evaluation.predictor.Predictor`; kept, as it is compiled."""
    key = tuple(sorted(options.items()))
    if key not in self._predictors:
      self._predictors[key] = Predictor(
        make_predict_fn(self.network.model),
        self.network.variables,
        canvas=self.canvas,
        **options,
      )
    return self._predictors[key]

  def _results(self, predictor, photos) -> Iterator[Result]:
    for photo, scores in predictor.scores(photos):
      yield Result(photo.name, self.class_names, scores.logits, scores.sigma, photo)

  def __repr__(self):
    names = ", ".join(self.class_names)
    return f"<boxseg_jax.Model of {names} at {self.canvas[0]}x{self.canvas[1]} pixels>"
