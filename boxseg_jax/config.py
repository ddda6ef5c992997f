"""The complete default configuration: every key, with what it means.

The defaults are the embedded data set `shapes`. A config file edits them:

    from boxseg_jax import config as defaults

    def get_config(variant=""):
      config = defaults.get_config()
      config.data.source = "coco"
      return config

Every key can be set on the command line: `--config.train.num_steps=1000`.
"""

import json
from typing import NamedTuple

from ml_collections import ConfigDict

from boxseg_jax.errors import InputError


def get_config() -> ConfigDict:
  """The default configuration, locked: a key that is not listed here is refused."""
  return ConfigDict(
    {
      # What is trained on: "uncertainty" (the method as `loss` below describes it), or, to
      # compare with it under otherwise equal conditions, "full" (all masks), "masks_only"
      # (box images unused), "boxes_as_masks" (boxes filled with their class), "grabcut"
      # (boxes made into masks by GrabCut), "projection" (the loss of BoxInst), "retrained"
      # (masks that a first run made of the boxes, data.pseudo_masks; see --mode=retrain),
      # "uncertainty_none", "_hard", "_soft", "_boxes" (kinds of bootstrapping; the last is
      # "predicted" with the teacher "boxes").
      "arm": "uncertainty",
      # Draws the initial parameters, the order of the data and the augmentation.
      "seed": 0,
      "data": _data(),
      "augment": _augment(),
      "model": _model(),
      "loss": _loss(),
      "optimizer": _optimizer(),
      "train": _train(),
      "eval": _eval(),
      "parallel": {
        # "pmap" or "jit" (jit of shard_map on a mesh): the same numbers.
        "kind": "pmap",
      },
      "study": _study(),
      **_use(),
    }
  ).lock()


def _data():
  return {
    # "shapes" (embedded), "coco" (instances json), "labels" (index or colour PNGs and a
    # boxes json), "tfds", "cityscapes" (the official folders), "datumaro" (most else).
    "source": "shapes",
    # Folder of the data set, with one folder per split (coco, labels), or with leftImg8bit
    # and gtFine (cityscapes), or as its format has it (datumaro; splits are its subsets);
    # data_dir of TensorFlow Datasets (tfds), empty = its default.
    "root": "",
    # Format of the set (datumaro): a name of that library, "yolo_segment", "yolo_obb" (where
    # all rows have four corners), "supervisely", or "auto".
    "format": "auto",
    # Name of the set in TensorFlow Datasets: oxford_iiit_pet, cityscapes, coco/2017_panoptic;
    # coco and voc of a year ("voc/2012") have boxes only.
    "tfds_name": "oxford_iiit_pet",
    "train_split": "train",
    "eval_split": "test",
    # Names of the classes, background first: class id = position. Of cityscapes, official
    # names; they choose the task.
    "class_names": ("background", "star", "crescent", "triangle"),
    # What labels of a set stand for that are none of these names (datumaro, tfds): pairs of a label
    # and a class or "void"; "*" = all other labels. (("van", "car"), ("*", "background")).
    "label_names": (),
    # What the values of masks stand for (labels); empty = they are class ids, 255 void.
    # ((0, "background"), (255, "cat")). Values that are not listed are refused.
    "label_values": (),
    # The same for masks in colours, RGB: (((0, 0, 0), "background"), ((128, 0, 0), "cat")).
    "label_colors": (),
    # (height, width) that images are fitted to, in pixels.
    "canvas": (96, 96),
    # Box slots per image; 0 = as many as the fullest image needs.
    "max_boxes": 0,
    # Share of the images whose masks may be learned from.
    "mask_fraction": 0.03,
    # Draws which images those are.
    "split_seed": 0,
    # Read that choice from a file written by an earlier run instead.
    "split_file": "",
    # Masks that something has made of the boxes of box images, which the arm "retrained" learns
    # from: a folder of PNGs of class ids, <name of the image>.png; --mode=retrain sets it.
    "pseudo_masks": "",
    # Global batch, over all devices.
    "batch_size": 8,
    # Mask images in each batch; -1 = by the cube root of their share of the data (18 %
    # masks: 5 of 8; 2 %: 2 of 8), at least one. More suits many masks, fewer suits few.
    "mask_images_per_batch": -1,
    # "tf" (tf.data), "numpy" (threads, no TensorFlow), "auto" = tf where installed.
    # Both give the same batches.
    "pipeline": "auto",
    # Threads that read and decode.
    "workers": 4,
    # Keep decoded images in memory (canvas size, 8 bits).
    "cache": True,
    # What a broken image or annotation does: "stop", or "skip" (counted and listed).
    "on_bad_image": "stop",
    # Skipping stops above this share of broken images.
    "max_bad_fraction": 0.01,
    # Mistakes made on purpose in the boxes of box images, to see what a method bears: largest
    # move of a side as a share of the box, share of boxes left out, share of another class.
    "box_faults": {"resize": 0.0, "missing": 0.0, "wrong_class": 0.0},
    # The embedded data set.
    "shapes": {"num_train": 400, "num_eval": 100, "seed": 0},
  }


def _augment():
  return {
    # Random scale, log-uniform in this range; 1 = the image fits the canvas.
    "scale": (0.7, 1.5),
    # (height, width) of the part of the scaled canvas that a training step sees, in pixels: a
    # large canvas at about the cost of a small one. () = as large as the canvas. Everything but
    # training is of the whole canvas.
    "crop": (),
    # Largest rotation to either side, degrees.
    "rotation_degrees": 5.0,
    # Probability of a horizontal flip.
    "flip": 0.5,
    # Largest change of brightness (added, image in [0, 1]), of contrast and
    # saturation (relative), of hue (turns).
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.02,
  }


def _model():
  return {
    # "unet", "erfnet" or "deeplabv3plus".
    "name": "unet",
    "encoder": {
      # unet: "conv", "resnet18", "resnet34", "resnet50", "efficientnet_lite0";
      # deeplabv3plus: "resnet50", "resnet101"; erfnet has its own.
      "name": "conv",
      # Pretrained encoder: a safetensors file under torchvision's or timm's names, or
      # hf://owner/repository/file; empty = from scratch.
      "weights": "",
    },
    # Channels of the first level (encoder "conv").
    "width": 16,
    # Stride of the deepest features (deeplabv3plus): 16 or 8.
    "output_stride": 16,
    # "batch" (synchronised over devices) or "group".
    "norm": "batch",
    # Compute: "float32" or "bfloat16". Parameters, logits and loss are float32.
    "dtype": "float32",
  }


def _loss():
  return {
    # Boxes -> masks while training (arm "uncertainty"): "posterior" takes the teacher's
    # prediction together with how objects lie in their boxes, learned from the mask images; the
    # paper's: "soft" mixes the box's class and the prediction by certainty, "predicted" takes the
    # prediction as it is, "hard" its most likely class, "none" the box's class.
    "bootstrap": "posterior",
    # Whose prediction it takes: "self", the network's own; "boxes", that of a second decoder,
    # used while training alone, which is shown the boxes and learns from the mask images
    # ("posterior": the mean of both). Without mask images it is "self" (and "predicted" is "soft").
    "teacher": "boxes",
    # Where bootstrapping starts, and how long it takes to come in fully; shares of
    # train.num_steps.
    "bootstrap_start": 0.1,
    "bootstrap_ramp": 0.2,
    # Weight of BoxInst's terms beside a posterior's cross entropy, by the pixels inside boxes: an
    # object touches each side of its box, and neighbours of like colour are of one class.
    "projection_weight": 0.3,
    # One weight per class; () = all 1; ("auto",) = by the inverse square root of
    # the classes' frequency. What is predicted, and what boxes become, is without them.
    "class_weights": (),
  }


def _optimizer():
  return {
    # "adamw" or "sgd".
    "name": "adamw",
    "learning_rate": 4e-3,
    # The encoder's share of the learning rate (for pretrained encoders).
    "encoder_rate": 1.0,
    # Decoupled weight decay of kernels (biases and norms have none).
    "weight_decay": 1e-4,
    # Momentum (sgd).
    "momentum": 0.9,
    # "cosine" or "poly" (power 0.9) to 0 after a linear warm-up.
    "schedule": "cosine",
    # Share of train.num_steps.
    "warmup": 0.05,
    # Largest norm of the gradient; 0 = no clipping.
    "clip_norm": 1.0,
    # Micro-batches per step, to fit a large batch into little memory. Batch
    # statistics are those of a micro-batch.
    "accumulate": 1,
  }


def _train():
  return {
    "num_steps": 300,
    # Moving average of the parameters: the teacher of bootstrapping, and what is
    # evaluated and saved for use. The decay at step t is min(ema_decay, (1 + t) / (10 + t)).
    "ema_decay": 0.99,
    # Steps between lines of the log, evaluations and checkpoints. Each 0 = at the end alone.
    "log_every": 25,
    "eval_every": 0,
    "checkpoint_every": 100,
    # Checkpoints kept: the newest, and the best one by `best_metric`.
    "keep_checkpoints": 2,
    "best_metric": "foreground_iou",
    # What a file that cannot be written (a full disk) does: "stop", or "go_on" without it to the
    # next checkpoint; the last one has to succeed. Runs of several processes always stop.
    "on_failed_write": "stop",
  }


def _eval():
  return {
    # Global batch of the evaluation.
    "batch_size": 8,
    # How images larger than the canvas are judged: "fit" scales them to it and the logits
    # back, as in training; "slide" moves a window of the canvas's size over the image, so
    # that any size is judged at its own resolution in bounded memory. Objects are then as
    # large as in the file: fit for a network that was trained at about that scale.
    "tiles": "fit",
    # Least share of a window that the next one sees too ("slide"); half of it is context.
    "overlap": 0.25,
    # Also measure the bootstrapped masks of this many box images whose masks
    # are known (they are never learned from); 0 = skip, -1 = all.
    "box_images": 64,
    # Number of images in the picture that each evaluation writes.
    "pictures": 6,
  }


def _study():
  return {
    # --mode=study trains every arm below, once for each mask fraction (arms whose
    # result depends on it) and seed.
    "arms": ("masks_only", "boxes_as_masks", "uncertainty", "full"),
    # Mask fractions; empty = data.mask_fraction alone.
    "mask_fractions": (),
    # Seeds (config.seed and data.split_seed); empty = config.seed alone.
    "seeds": (),
    # Mistakes in boxes: each run of an arm that learns from boxes is done again with each
    # of these, of the size below (see data.box_faults): "resize", "missing", "wrong_class".
    "faults": (),
    "fault_sizes": {"resize": 0.2, "missing": 0.1, "wrong_class": 0.05},
    # The `study.json` of other studies of this configuration: runs that they have are taken from
    # there and not trained again, so that several machines can share a study.
    "known": (),
    # What annotation costs, per object: for the plot over annotation time. 79 s is COCO's
    # mean (Lin et al. 2014), 7 s that of extreme clicking (Papadopoulos et al. 2017).
    "seconds_per_mask": 79.0,
    "seconds_per_box": 7.0,
  }


def _use():
  # What a trained network is used for, and how a training is measured.
  return {
    # --mode=predict; windows as in `eval`.
    "predict": {
      # Average with the prediction of the mirrored image, at twice the price.
      "mirror": False,
      # Also write each image with the classes' colours over it.
      "overlays": True,
    },
    # --mode=label and --mode=refine; boxes and images as in `data`.
    "label": {
      # Split whose boxes become masks.
      "split": "train",
      # "coco_rle" or "coco_polygon" (instances.json with a segmentation and score for each
      # box), "index_png" (one map of class ids for each image), or "datumaro:" and a format
      # which that library writes.
      "format": "coco_rle",
      # The most doubtful masks that are drawn for review, in review.png.
      "pictures": 40,
      # How long --mode=refine learns, in batches of 32 boxes.
      "refine_steps": 1000,
    },
    # --mode=export.
    "export": {
      # Licences as the Hugging Face hub names them ("apache-2.0", "cc-by-4.0"), for the model
      # card: of the network's parameters, and of the data that it was trained on. Empty =
      # unknown, and the card says so.
      "license": "",
      "data_license": "",
      # --to=hub also pushes to this repository, "owner/name", if the environment has HF_TOKEN.
      # Empty = never. One that does not exist yet is made private.
      "repository": "",
    },
    # --mode=benchmark: steps that are timed at once, and how often; the best time counts.
    "benchmark": {"steps": 20, "repeats": 3},
  }


_AT_LEAST_ONE = (
  "benchmark.steps",
  "benchmark.repeats",
  "data.batch_size",
  "data.workers",
  "eval.batch_size",
  "label.refine_steps",
  "optimizer.accumulate",
  "train.num_steps",
  "train.keep_checkpoints",
)
_SHARES = (
  "data.box_faults.resize",
  "data.box_faults.missing",
  "data.box_faults.wrong_class",
  "data.mask_fraction",
  "data.max_bad_fraction",
  "loss.bootstrap_start",
  "loss.bootstrap_ramp",
  "optimizer.warmup",
  "study.fault_sizes.resize",
  "study.fault_sizes.missing",
  "study.fault_sizes.wrong_class",
  "train.ema_decay",
)
_NOT_NEGATIVE = (
  "loss.projection_weight",
  "optimizer.learning_rate",
  "optimizer.clip_norm",
  "optimizer.weight_decay",
  "study.seconds_per_mask",
  "study.seconds_per_box",
  "label.pictures",
)
_CHOICES = {
  "eval.tiles": ("fit", "slide"),
  "loss.bootstrap": ("none", "posterior", "soft", "predicted", "hard"),
  "loss.teacher": ("boxes", "self"),
  "train.on_failed_write": ("stop", "go_on"),
}
MAX_CLASSES = 255  # label 255 is void


def check(config: ConfigDict) -> None:
  """Refuses values that no run can work with, before anything is read.

  Args:
    config: the configuration.

  Raises:
    InputError: names the key and its value.
  """
  arm(config)
  flat = flatten(config)
  for key, known in _CHOICES.items():
    _require(flat[key] in known, key, flat[key], f"one of {known}")
  for key in _AT_LEAST_ONE:
    _require(flat[key] >= 1, key, flat[key], "at least 1")
  for key in _SHARES:
    _require(0 <= flat[key] <= 1, key, flat[key], "in [0, 1]")
  for key in _NOT_NEGATIVE:
    _require(flat[key] >= 0, key, flat[key], "at least 0")
  for key in ("seed", "data.split_seed"):
    _require(0 <= flat[key] < 2**32, key, flat[key], "in [0, 2^32)")
  for fault in flat["study.faults"]:
    known = tuple(config.study.fault_sizes)
    _require(fault in known, "study.faults", fault, f"some of {known}")
  canvas, crop = flat["data.canvas"], flat["augment.crop"]
  _require(_is_size(canvas), "data.canvas", canvas, "(height, width) in whole pixels")
  no_crop = len(crop) == 0
  _require(no_crop or _is_size(crop), "augment.crop", crop, "() or (height, width) in whole pixels")
  names = flat["data.class_names"]
  distinct = len(set(names)) == len(names) and 2 <= len(names) <= MAX_CLASSES
  _require(distinct, "data.class_names", names, "2 to 255 different names, background first")
  _check_label_maps(flat)
  _require(0 <= flat["eval.overlap"] < 1, "eval.overlap", flat["eval.overlap"], "in [0, 1)")
  _require(flat["eval.pictures"] >= 0, "eval.pictures", flat["eval.pictures"], "at least 0")
  metrics = ["foreground_iou", "miou", "pixel_accuracy", *(f"iou/{name}" for name in names)]
  best = flat["train.best_metric"]
  _require(best in metrics, "train.best_metric", best, f"one of {', '.join(metrics)}")


def _check_label_maps(flat):
  """Refuses maps of labels to classes that are no such maps."""
  fits_key = {
    "data.label_names": lambda key: isinstance(key, str),
    "data.label_values": _is_byte,
    "data.label_colors": lambda key: (
      isinstance(key, list | tuple) and len(key) == 3 and all(map(_is_byte, key))
    ),
  }
  targets = (*flat["data.class_names"], "void")
  for key, fits in fits_key.items():
    pairs = flat[key]
    for pair in pairs:
      is_pair = isinstance(pair, list | tuple) and len(pair) == 2
      good = is_pair and fits(pair[0]) and pair[1] in targets
      _require(good, key, pair, f"of pairs (label, name), the name one of {', '.join(targets)}")
    distinct = len({str(pair[0]) for pair in pairs}) == len(pairs)
    _require(distinct, key, pairs, "without a label listed twice")
  both = flat["data.label_values"] and flat["data.label_colors"]
  _require(not both, "data.label_values", flat["data.label_values"], "empty with label_colors")


def _is_size(sides):
  return len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)


def _is_byte(value):
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _require(fits, key, value, wanted):
  if not fits:
    raise InputError(f"config.{key} is {value!r}, but must be {wanted}")


class Arm(NamedTuple):
  """What an arm of a comparison fixes; everything else stays as configured.

  Attributes:
    all_masks: every mask may be learned from, whatever data.mask_fraction says.
    box_images: whether images without a mask are used at all.
    pseudo_masks: what has made masks of boxes, from which box images are learned: "grabcut" or
      "files" (`data.pseudo_masks`); "" = nothing.
    inside_boxes: the loss inside boxes, see `losses.objective`.
    projection_weight: of the terms of BoxInst there.
    bootstrap: the kind of bootstrapping.
    teacher: whose prediction it takes.
  """

  all_masks: bool = False
  box_images: bool = True
  pseudo_masks: str = ""
  inside_boxes: str = "label"
  projection_weight: float = 0.0
  bootstrap: str = "none"
  teacher: str = "self"

  @property
  def learns_sigma(self) -> bool:
    """Whether sigma and bootstrapped targets mean anything."""
    return self.inside_boxes in ("separate", "uncertainty")


def arms(config: ConfigDict) -> dict[str, Arm]:
  """Every arm by name; "uncertainty" is the method as `config.loss` describes it."""
  uncertainty = Arm(inside_boxes="uncertainty")
  posterior = Arm(inside_boxes="separate", projection_weight=config.loss.projection_weight)
  default = posterior if config.loss.bootstrap == "posterior" else uncertainty
  return {
    "full": Arm(all_masks=True, box_images=False),
    "masks_only": Arm(box_images=False),
    "boxes_as_masks": Arm(),
    "grabcut": Arm(pseudo_masks="grabcut"),
    "retrained": Arm(pseudo_masks="files"),
    "projection": Arm(inside_boxes="none", projection_weight=1.0),
    "uncertainty_none": uncertainty,
    "uncertainty_hard": uncertainty._replace(bootstrap="hard"),
    "uncertainty_soft": uncertainty._replace(bootstrap="soft"),
    "uncertainty_boxes": uncertainty._replace(bootstrap="predicted", teacher="boxes"),
    "uncertainty": default._replace(bootstrap=config.loss.bootstrap, teacher=config.loss.teacher),
  }


def arm(config: ConfigDict) -> Arm:
  """Resolves `config.arm`.

  Raises:
    InputError: unknown arm.
  """
  known = arms(config)
  if config.arm not in known:
    raise InputError(f"config.arm is {config.arm!r}, but must be one of {sorted(known)}")
  return known[config.arm]


def flatten(config: ConfigDict) -> dict:
  """Dotted key -> value, with tuples as lists: what is written beside a checkpoint."""
  flat: dict[str, object] = {}
  for key, value in json.loads(config.to_json_best_effort()).items():
    _flatten_into(flat, key, value)
  return flat


def _flatten_into(flat, key, value):
  if isinstance(value, dict):
    for name, inner in value.items():
      _flatten_into(flat, f"{key}.{name}", inner)
  else:
    flat[key] = value


def differences(old: dict, new: dict) -> list[str]:
  """Lines "key: old -> new" for each key in which two flat configs differ."""
  absent = "(absent)"
  keys = sorted(old.keys() | new.keys())
  return [
    f"{key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
    for key in keys
    if old.get(key, absent) != new.get(key, absent)
  ]
