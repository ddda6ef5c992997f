"""The embedded data set: textured scenes made by the program itself.

    python -m boxseg_jax.main --mode=study --config=configs/shapes.py --workdir=runs/shapes

trains four arms that differ in nothing but the labels they use, in about 6
minutes on two cores, and ends with their IoU per class; without `--mode=study`
it trains the arm "uncertainty" alone. `configs/shapes.py:smoke` takes a few
steps of each.
"""

from boxseg_jax import config as defaults

VARIANTS = ("", "smoke")


def get_config(variant=""):
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is no variant of this config, only {VARIANTS}")
  config = defaults.get_config()  # the defaults are this data set
  if variant == "smoke":
    config.data.shapes.num_train = 16
    config.data.shapes.num_eval = 4
    config.data.canvas = (48, 48)
    config.model.width = 4
    config.train.num_steps = 4
    config.eval.box_images = 4
  return config
