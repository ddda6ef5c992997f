r"""CamVid, vehicles and persons: the small stand-in for the paper's CityScapes task.

    python -m boxseg_jax.main --config=configs/camvid.py --workdir=runs/camvid
    python -m boxseg_jax.main --config=configs/camvid.py:gpu --workdir=runs/camvid-gpu

Index PNGs and a boxes json, `<root>/{train,val,test}/{images/,labels/,instances.json}`.
The default is for two CPU cores (U-Net on EfficientNet-Lite0 at 240x180), `:gpu` is
DeepLabV3+ on ResNet-50 at 480x360 (`launch/results/camvid-gpu.md`), `:study` compares arms
at 5 % masks and with boxes alone at 160x120 (--mode=study, about 10 minutes a run on one
core); `:smoke` takes a few steps.
`launch/results/camvid.md` holds the table (one seed, about 20 minutes a run on two cores,
three arms, mask_images_per_batch 6, of an earlier form of the method) of

    python -m boxseg_jax.main --mode=study --config=configs/camvid.py --workdir=runs/camvid \
      --config.study.arms="('masks_only', 'boxes_as_masks', 'uncertainty')"
"""

from boxseg_jax import config as defaults

VARIANTS = ("", "gpu", "study", "smoke")


def get_config(variant=""):
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is no variant of this config, only {VARIANTS}")
  config = defaults.get_config()
  config.data.source = "labels"
  config.data.root = "../shared/data/camvid"
  config.data.class_names = ("background", "car", "pedestrian", "bicyclist")
  config.data.canvas = (180, 240)
  config.data.mask_fraction = 0.18
  config.model.encoder.name = "efficientnet_lite0"
  config.model.encoder.weights = "../shared/weights/efficientnet_lite0_imagenet.safetensors"
  config.loss.class_weights = (1.0, 1.0, 4.0, 4.0)
  config.augment.scale = (0.8, 2.0)
  config.optimizer.learning_rate = 2e-3
  config.optimizer.encoder_rate = 0.3
  config.train.num_steps = 1000
  if variant == "gpu":
    config.data.canvas = (360, 480)
    config.eval.batch_size = 16
    config.model.name = "deeplabv3plus"
    config.model.encoder.name = "resnet50"
    config.model.encoder.weights = "../shared/weights/resnet50_v1_imagenet.safetensors"
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-3
    config.train.num_steps = 2000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 500
  if variant == "study":
    config.data.canvas = (120, 160)
    config.train.num_steps = 800
    config.study.arms = ("masks_only", "uncertainty", "full")
    config.study.mask_fractions = (0.05, 0.0)
  if variant == "smoke":
    config.data.canvas = (36, 48)
    config.train.num_steps = 2
    config.eval.box_images = 4
  return config
