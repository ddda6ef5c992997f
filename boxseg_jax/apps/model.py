"""A trained network in the hands of a person: `load`, `predict`, look."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxseg_jax.data.box_priors import box_priors
from boxseg_jax.data.photos import Photo, as_photos
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import paint, pictures
from boxseg_jax.evaluation.labeller import BoxLabeller
from boxseg_jax.evaluation.predictor import Predictor
from boxseg_jax.losses import uncertainty
from boxseg_jax.training import saved
from boxseg_jax.training.step import make_evidence_fn, make_predict_fn


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
    masks: bool [n, height, width], of each box that was given, each inside its box; None where
      none were given.
    mask_certainty: float32 [n] in [0, 1], the IoU to be expected of each mask; 0 where the box
      covers nothing of the image, and its mask is empty.
  """

  name: str
  class_names: tuple[str, ...]
  logits: np.ndarray
  sigma: np.ndarray
  _photo: Photo
  masks: np.ndarray | None = None
  mask_certainty: np.ndarray | None = None

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
    return paint.overlay(self.image, self.classes, paint.palette(len(self.class_names)))

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
    boxes: Any = None,
    box_classes: Any = None,
  ) -> Result | list[Result]:
    """Predicts images of any size, and makes masks of their boxes.

    Args:
      images: a path, folder or pattern, a PIL image, an array (uint8 [height, width, 3], RGB, or
        [height, width], grey), or a sequence of such. Rather the path than the pixels of a large
        JPEG: it is then decoded at a reduced size as in training and evaluation, where pixels
        are reduced by a smoother filter (a point of IoU either way, launch/results/method.md).
      tiles: "fit" scales the image to the canvas, as in training; "slide" moves a window of the
        canvas's size over it: for objects that are as large in the file as they were on the canvas.
      overlap: least share of a window that the next one sees too, in [0, 1); of "slide".
      mirror: average with the prediction of the mirrored image, at twice the price.
      batch_size: images (or windows) at once.
      boxes: float [n, 4], (xmin, ymin, xmax, ymax) in pixels, all objects of the image: each
        becomes one of `Result.masks` (`evaluation.labeller`). Of several images, a list of such.
      box_classes: their classes, ids (>= 1) or names; may be left out where there is but one class.

    Returns:
      A Result for one image; a list of them for a sequence, folder or pattern.

    Raises:
      InputError: something that is no image or cannot be read, or an option that makes no sense.
    """
    photos, single = as_photos(images)
    predictor = self.predictor(tiles=tiles, overlap=overlap, mirror=mirror, batch_size=batch_size)
    # Found by photo, as they do not come in order.
    found = {id(photo): scores for photo, scores in predictor.scores(photos)}
    results = [self._result(photo, found[id(photo)]) for photo in photos]
    if boxes is not None:
      several = ([boxes], [box_classes]) if single else (boxes, box_classes)
      results = self._with_masks(results, *several)
    return results[0] if single else results

  def predictor(self, **options) -> Predictor:
    """The network bound to options of `evaluation.predictor.Predictor`; kept, as it is compiled."""
    key = tuple(sorted(options.items()))
    if key not in self._predictors:
      self._predictors[key] = Predictor(
        make_predict_fn(self.network.model, self.network.settings),
        self.network.variables,
        canvas=self.canvas,
        **options,
      )
    return self._predictors[key]

  @cached_property
  def labeller(self) -> BoxLabeller:
    """What makes masks of boxes, by the network and what it learned of how objects lie in boxes."""
    settings = self.network.settings
    priors = settings.box_priors or box_priors((), settings.num_classes)
    return BoxLabeller(
      make_evidence_fn(self.network.model, settings),
      self.network.variables,
      canvas=self.canvas,
      mean_masks=priors.mean_masks,
      fill_bands=priors.fill_bands,
      refiner_variables=self.network.refiner,
    )

  def _with_masks(self, results, boxes, box_classes):
    box_classes = [None] * len(results) if box_classes is None else box_classes
    if not len(boxes) == len(box_classes) == len(results):
      raise InputError(
        f"{len(results)} images, but boxes of {len(boxes)} and classes of {len(box_classes)}"
      )
    return [self._one_with_masks(*one) for one in zip(results, boxes, box_classes, strict=True)]

  def _one_with_masks(self, result, boxes, box_classes) -> Result:
    boxes = _corners(result.name, boxes)
    classes = self._class_ids(result.name, box_classes, len(boxes))
    made = self.labeller.masks(result.image, boxes, classes)
    size = result.logits.shape[:2]
    masks = [np.zeros(size, bool) if mask is None else mask.whole(size) for mask in made]
    certainty = [0.0 if mask is None else mask.certainty for mask in made]
    return replace(
      result,
      masks=np.array(masks, bool).reshape(-1, *size),
      mask_certainty=np.array(certainty, np.float32),
    )

  def _class_ids(self, name, given, count):
    objects = self.class_names[1:]
    if given is None and len(objects) == 1:
      return np.ones(count, np.int32)
    if given is None:
      raise InputError(f"{name}: box_classes are wanted, each one of {', '.join(objects)}")
    ids = {known: number for number, known in enumerate(self.class_names)}
    found = [ids.get(one, 0) if isinstance(one, str) else int(one) for one in given]
    for one, number in zip(given, found, strict=True):
      if not 1 <= number < len(self.class_names):
        raise InputError(f"{name}: box class {one!r} is none of {', '.join(objects)} or their ids")
    if len(found) != count:
      raise InputError(f"{name}: {count} boxes, but {len(found)} classes of them")
    return np.array(found, np.int32)

  def _result(self, photo, scores) -> Result:
    return Result(photo.name, self.class_names, scores.logits, scores.sigma, photo)

  def __repr__(self):
    names = ", ".join(self.class_names)
    return f"<boxseg_jax.Model of {names} at {self.canvas[0]}x{self.canvas[1]} pixels>"


def _corners(name, boxes) -> np.ndarray:
  """(ymin, xmin, ymax, xmax) in pixels, float64 [n, 4]."""
  try:
    boxes = np.asarray(boxes, np.float64)
  except (TypeError, ValueError) as error:
    raise InputError(f"{name}: the boxes are no numbers: {error}") from error
  boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
  if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
    raise InputError(f"{name}: boxes of shape {list(boxes.shape)} are not [n, 4] finite numbers")
  return boxes[:, [1, 0, 3, 2]]
