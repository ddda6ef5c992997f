# ---
# jupyter:
#   accelerator: GPU
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many boxes, few masks: the first network
#
# Trains a segmentation network on the Oxford-IIIT pets, of whose 3680 training photographs only 3 % show
# their mask; of the others it is told a box around the animal. For Colab with a GPU or TPU (Runtime ->
# Change runtime type), or any machine with Python 3.11 to 3.13.
#
# `DATASET = "shapes"` is a small set that the program makes itself: no download, two minutes on two CPU
# cores. The outputs below are of that one.

# %% tags=["parameters"]
import sys

DATASET = "pets" if "google.colab" in sys.modules else "shapes"
STEPS = 4000 if DATASET == "pets" else 300
WORKDIR = f"runs/notebook-{DATASET}"
REPOSITORY = ""  # on Colab: the address of this repository, to clone and install it

# %% [markdown]
# ## Installation
#
# Colab has JAX, but neither TensorFlow (which reads the pets) nor this package. Restart the session when
# pip asks for it, and run the notebook again from here.

# %%
import importlib.util
import subprocess

if importlib.util.find_spec("boxseg_jax") is None:
  subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "boxseg_jax_source"], check=True)
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./boxseg_jax_source"], check=True)

import jax
from absl import logging

logging.set_verbosity(logging.ERROR)  # of the checkpoint library
print(jax.devices())

# %% [markdown]
# ## Configuration
#
# Everything is in one commented default configuration (`boxseg_jax/config.py`); a few keys make it this
# data set. An unknown key is an error.

# %%
from boxseg_jax import config as configuration

config = configuration.get_config()
config.train.num_steps = STEPS
config.train.log_every = max(STEPS // 6, 1)
if DATASET == "pets":
  config.data.source = "tfds"
  config.data.tfds_name = "oxford_iiit_pet"
  config.data.class_names = ("background", "pet")
  config.data.canvas = (160, 160)
  config.data.batch_size = 32
  config.data.mask_fraction = 0.03
  config.model.width = 32

# %% [markdown]
# ## Training
#
# A run that was stopped goes on when this cell is run again. `foreground_iou` is of the test photographs at
# their own size; `boxes/mask_iou` says how good the masks are that the method made of boxes.

# %%
from boxseg_jax.training import loop

results = loop.train(config, WORKDIR)
for name, value in results.items():
  print(f"{name:32} {100 * value:5.1f} %")

# %% [markdown]
# ## What became of the boxes
#
# Training images: what the network was given, what it says, how far it believes the box's label, the mask
# that the box has become, and the true one, which it has never seen.

# %%
from PIL import Image

from boxseg_jax.training import snapshots

Image.open(snapshots.newest(WORKDIR)).reduce(2)

# %% [markdown]
# ## Use it
#
# A trained network needs its workdir and nothing else: no data, no TensorFlow. Images of any size, as files,
# arrays or PIL images.

# %%
import boxseg_jax
from boxseg_jax import data

model = boxseg_jax.load(WORKDIR)
photo = data.load_records(config.data, config.data.eval_split)[0].read_image()
result = model.predict(photo)
print(model, result.classes.shape, result.probability.shape)
result.plot()

# %% [markdown]
# Next: `your_data.ipynb` (your own boxes: check, train, label, export) and `method.ipynb` (what happens inside
# a box).
