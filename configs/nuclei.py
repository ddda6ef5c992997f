"""Nuclei in microscope photographs (Data Science Bowl 2018): a binary task, from scratch.

    python -m boxseg_jax.main --config=configs/nuclei.py --workdir=runs/nuclei

A set in COCO's format, `<root>/{train,test}/{instances.json,images/}`; about 5
minutes on two cores. `:study` compares arms at no, 2 and 18 % masks over three seeds
(--mode=study; tables in `launch/results/`), `:smoke` takes a few steps.
"""

from boxseg_jax import config as defaults

VARIANTS = ("", "study", "smoke")


def get_config(variant=""):
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is no variant of this config, only {VARIANTS}")
  config = defaults.get_config()
  config.data.source = "coco"
  config.data.root = "../shared/data/nuclei"
  config.data.class_names = ("background", "nucleus")
  config.data.canvas = (128, 128)
  config.data.mask_fraction = 0.18
  config.augment.scale = (0.5, 2.0)
  config.train.num_steps = 600
  config.train.checkpoint_every = 200
  if variant == "study":
    config.study.arms = ("masks_only", "uncertainty", "full")
    config.study.mask_fractions = (0.02, 0.18, 0.0)
    config.study.seeds = (0, 1, 2)
  if variant == "smoke":
    config.data.canvas = (32, 32)
    config.model.width = 4
    config.train.num_steps = 4
    config.eval.box_images = 4
  return config
