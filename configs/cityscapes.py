"""CityScapes, vehicles and persons: the paper's own setting (arXiv 2110.05926, section 4).

    python -m boxseg_jax.main --config=configs/cityscapes.py --workdir=runs/cityscapes
    python -m boxseg_jax.main --config=configs/cityscapes.py:car --workdir=runs/cityscapes-car

18 % of the 2,975 training photographs with masks, 82 % with boxes, ERFNet at full
resolution; the paper reports 77.5 mIoU against 79.8 with all masks. `data.root` holds
the official folders `leftImg8bit` and `gtFine`; one accelerator with 40 GB or several.

`:car` and `:person` are binary tasks. `:19` is the task of the official benchmark with
all masks: eleven of its classes have no boxes. Its `foreground_iou` is the official mean;
class 0 is there because every task has one, and no pixel is of it. `:smoke` takes two steps.
"""

from boxseg_jax import config as defaults

WITH_BOXES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
WITHOUT_BOXES = (
  *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
  *("vegetation", "terrain", "sky"),
)

VARIANTS = ("", "car", "person", "19", "smoke")


def get_config(variant=""):
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is no variant of this config, only {VARIANTS}")
  config = defaults.get_config()
  config.data.source = "cityscapes"
  config.data.root = "data/cityscapes"
  config.data.eval_split = "val"
  config.data.class_names = ("background", *WITH_BOXES)
  config.data.canvas = (1024, 2048)
  config.data.mask_fraction = 0.18
  config.data.batch_size = 16
  config.data.mask_images_per_batch = 4
  config.data.cache = False
  config.data.workers = 16
  config.augment.scale = (0.5, 2.0)
  config.augment.rotation_degrees = 2.0
  config.model.name = "erfnet"
  config.model.dtype = "bfloat16"
  config.loss.class_weights = ("auto",)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "poly"
  config.train.num_steps = 40000
  config.train.ema_decay = 0.999
  config.train.log_every = 100
  config.train.eval_every = 4000
  config.train.checkpoint_every = 1000
  if variant in ("car", "person"):
    config.data.class_names = ("background", variant)
  if variant == "19":
    config.arm = "full"
    config.data.class_names = ("background", *WITHOUT_BOXES, *WITH_BOXES)
    config.loss.class_weights = ()  # "auto" goes by boxes
  if variant == "smoke":
    config.data.canvas = (64, 128)
    config.train.num_steps = 2
    config.data.batch_size = 2
    config.data.mask_images_per_batch = 1
  return config
