"""From the configuration to the parts that the loop and the applications put to work."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from boxseg_jax import augment, models
from boxseg_jax import config as configuration
from boxseg_jax.data.box_priors import as_arrays
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import evaluate
from boxseg_jax.models import pretrained
from boxseg_jax.parallel import AXIS, Parallel
from boxseg_jax.training import optimizer as optimizers
from boxseg_jax.training.state import TrainState, create_state
from boxseg_jax.training.step import LossSettings, make_predict_fn, make_target_fn, make_train_step


def model_options(config: ConfigDict) -> dict:
  """What `models.build` has to be told beside the classes, as JSON can hold it."""
  options = {"name": config.model.name, "norm": config.model.norm, "dtype": config.model.dtype}
  if config.model.name == "unet" and config.model.encoder.name == "conv":
    options["width"] = config.model.width
  if config.model.name == "deeplabv3plus":
    options["output_stride"] = config.model.output_stride
  if config.model.name != "erfnet":
    options["encoder"] = config.model.encoder.name
  weights = config.model.encoder.weights
  if weights and "encoder" not in options:
    raise InputError(
      f"config.model.encoder.weights is {weights!r}, but {config.model.name} has no encoder "
      "that could be pretrained; set it to ''"
    )
  if weights:
    options |= pretrained.read_metadata(weights)
  return options


def make_model(config: ConfigDict):
  """The network of `config.model`, with batch statistics synchronised over `AXIS`."""
  num_classes = len(config.data.class_names)
  return models.build(num_classes=num_classes, axis_name=AXIS, **model_options(config))


def loss_settings(
  config: ConfigDict, class_weights, *, mask_images: int, box_priors=None
) -> LossSettings:
  """The loss of the configured arm.

  Args:
    config: the configuration.
    class_weights: one per class.
    mask_images: mask images in each batch.
    box_priors: see `LossSettings`.

  Returns:
    LossSettings, shares of the training turned into steps. Without mask images to learn from
    there is no teacher but the network itself, which must not take its prediction alone.
  """
  arm = configuration.arm(config)
  steps = config.train.num_steps
  if arm.teacher == "boxes" and mask_images == 0:
    arm = arm._replace(teacher="self")
    if arm.bootstrap == "predicted":
      arm = arm._replace(bootstrap="soft")
  taught = arm.bootstrap != "none" and mask_images < config.data.batch_size
  return LossSettings(
    num_classes=len(config.data.class_names),
    inside_boxes=arm.inside_boxes,
    bootstrap=arm.bootstrap,
    teacher=arm.teacher if taught else "self",
    mask_images=mask_images,
    box_images=config.data.batch_size - mask_images,
    bootstrap_start=round(config.loss.bootstrap_start * steps),
    bootstrap_ramp=round(config.loss.bootstrap_ramp * steps),
    class_weights=tuple(class_weights),
    box_priors=box_priors,
    projection_weight=arm.projection_weight,
  )


def make_optimizer(config: ConfigDict):
  """(optax transformation, learning rate by step) of `config.optimizer`."""
  steps = config.train.num_steps
  schedule = optimizers.make_schedule(
    config.optimizer.schedule,
    learning_rate=config.optimizer.learning_rate,
    num_steps=steps,
    warmup_steps=round(config.optimizer.warmup * steps),
  )
  transformation = optimizers.make_optimizer(
    config.optimizer.name,
    schedule=schedule,
    weight_decay=config.optimizer.weight_decay,
    momentum=config.optimizer.momentum,
    clip_norm=config.optimizer.clip_norm,
    encoder_rate=config.optimizer.encoder_rate,
  )
  return transformation, schedule


def make_augment(config: ConfigDict) -> Callable:
  """`(batch, keys) -> augmented batch` of `config.augment`."""
  settings = config.augment
  geometry = augment.Geometry(
    scale=tuple(settings.scale),
    rotation_degrees=settings.rotation_degrees,
    flip=settings.flip,
  )
  photometry = augment.Photometry(
    brightness=settings.brightness,
    contrast=settings.contrast,
    saturation=settings.saturation,
    hue=settings.hue,
  )
  crop = tuple(settings.crop) or None
  return partial(augment.augment, geometry=geometry, photometry=photometry, crop=crop)


def init(model, canvas: tuple[int, int], settings: LossSettings, key):
  """Variables of the model, with a teacher where there is one.

  Args:
    model: the network.
    canvas: (height, width) in pixels.
    settings: of the loss.
    key: draws the parameters.

  Returns:
    {"params", "batch_stats"}, without the latter where nothing has statistics.
  """
  image = jnp.zeros((1, *canvas, 3))
  if settings.teacher == "self":
    return model.init(key, image, train=False)
  maps = jnp.zeros((1, *canvas, 2 * (settings.num_classes - 1)))
  return model.init(key, image, maps, train=False, method="with_teacher")


def initial_state(config: ConfigDict, model, optimizer, settings: LossSettings) -> TrainState:
  """Parameters drawn from `config.seed`, the encoder's read from its file if there is one.

  Args:
    config: the configuration.
    model: the network.
    optimizer: optax transformation.
    settings: of the loss.

  Returns:
    TrainState at step 0, on the default device.
  """
  # This generator compiles in a fifth of the default's time; its draws are the same on
  # every run of one kind of device, which is all that a start from scratch needs.
  key = jax.random.key(config.seed, impl="rbg")
  variables = jax.jit(partial(init, model, tuple(config.data.canvas), settings))(key)
  if config.model.encoder.weights:
    variables = pretrained.load_encoder(
      variables, config.model.encoder.weights, encoder=config.model.encoder.name
    )
  return jax.jit(partial(create_state, optimizer=optimizer))(variables)


def state_like(config: ConfigDict, model, optimizer, settings: LossSettings, parallel: Parallel):
  """Shapes and shardings of the state, without computing it: the target of a restore."""

  def make(key):
    return create_state(init(model, tuple(config.data.canvas), settings, key), optimizer=optimizer)

  shapes = jax.eval_shape(make, jax.random.key(0))
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=parallel.replicated), shapes
  )


def compile_train_step(config: ConfigDict, model, optimizer, settings, parallel: Parallel):
  """The training step over all devices; the state is donated.

  Seeds of one configuration share its program: what is drawn and learned for each, the key and
  the box priors, are arguments. Automatic class weights, which differ by the split, are not.
  """

  def step(state, batch, key_data, box_priors):
    train_step = make_train_step(
      model,
      optimizer,
      make_augment(config),
      settings._replace(box_priors=box_priors),
      ema_decay=config.train.ema_decay,
      key=jax.random.wrap_key_data(key_data),
      accumulate=config.optimizer.accumulate,
      axis_name=AXIS,
    )
    return train_step(state, batch)

  # Its data, since keys as such cannot be put on the devices of other processes.
  key_data = jax.device_get(jax.random.key_data(jax.random.key(config.seed)))
  constants = key_data, as_arrays(settings.box_priors)
  return parallel.compile(step, constants=constants, donate_state=True)


class Evaluators(NamedTuple):
  """Compiled evaluations `(state, batch) -> sums`, see evaluation.evaluate.

  Attributes:
    segmentation: predictions against labels at the labels' resolution.
    boxes: what boxes become against the true masks.
  """

  segmentation: Callable
  boxes: Callable


def compile_evaluators(model, settings: LossSettings, parallel: Parallel) -> Evaluators:
  """Both evaluations over all devices."""
  fixed: dict[str, Any] = {"num_classes": settings.num_classes, "axis_name": AXIS}

  def segmentation(state, batch):
    predict_fn = make_predict_fn(model, settings)
    return evaluate.segmentation_sums(
      state.ema, augment.prepare(batch), predict_fn=predict_fn, **fixed
    )

  def boxes(state, batch, box_priors):
    target_fn = make_target_fn(model, settings._replace(box_priors=box_priors))
    return evaluate.box_sums(state.ema, augment.prepare(batch), target_fn=target_fn, **fixed)

  return Evaluators(
    segmentation=parallel.compile(segmentation),
    boxes=parallel.compile(boxes, constants=(as_arrays(settings.box_priors),)),
  )
