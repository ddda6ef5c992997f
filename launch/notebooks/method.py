# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The method on one image
#
# A box says "in here is a star", not which pixels are. This notebook makes visible, on one image of
# the embedded data set, what `boxseg_jax` makes of that: the loss with its `sigma`, and the four steps
# that turn a box into a mask while the network trains. Formulas and sources are in the README and in
# `boxseg_jax/losses/`; nothing here is a copy of them, every cell calls the real functions.

# %% tags=["parameters"]
STEPS = 300  # of training; the outputs below are of 300, about two minutes on two CPU cores
WORKDIR = "runs/notebook-method"

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import logging

from boxseg_jax import augment
from boxseg_jax import config as configuration
from boxseg_jax.evaluation import paint, pictures
from boxseg_jax.losses import bootstrap, crf, objective, uncertainty
from boxseg_jax.training import loop
from boxseg_jax.training.run import Run
from boxseg_jax.training.step import make_target_fn

logging.set_verbosity(logging.ERROR)  # of the checkpoint library

# %% [markdown]
# ## A label that may be wrong
#
# The network gives two numbers per pixel and class: a logit `mu`, and one `sigma >= 0`. A box's label is
# read as a noisy view of the logit, `N(mu, sigma^2)`, whose expected probability has a closed form
# (MacKay 1992; Neven et al. 2021): the logit is shrunk by `kappa`, and `1 / kappa` is the certainty.

# %%
sigma = jnp.linspace(0, 8, 200)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for mu in (-4.0, -2.0, 0.0, 2.0):
  left.plot(sigma, jax.nn.sigmoid(mu / uncertainty.kappa(sigma)), label=f"mu = {mu:g}")
left.set(xlabel="sigma", ylabel="expected probability of the object", ylim=(0, 1))
left.legend()


def box_loss(mu, sigma):
  """Cross entropy of mu / kappa with the box's class "object", two classes."""
  logits = uncertainty.class_logits(jnp.asarray([mu]))
  shrunk = uncertainty.expected_logits(logits, sigma)
  return uncertainty.cross_entropy(shrunk, jnp.array([0.0, 1.0]))


for mu in (-4.0, -2.0, 0.0, 2.0):
  right.plot(sigma, jax.vmap(partial(box_loss, mu))(sigma), label=f"mu = {mu:g}")
right.set(xlabel="sigma", ylabel="loss with the box's class")
plt.show()

# %% [markdown]
# Right: where the network says "background" (`mu = -4`) and the box says "object", the loss falls by
# *raising* `sigma`; where they agree (`mu = 2`), by keeping it at 0. So `sigma` learns where boxes are
# wrong. (`mu` takes no part in this term, or lowering it would be the cheaper way.)
#
# ## One image and its boxes

# %%
config = configuration.get_config()
config.train.num_steps = STEPS
config.train.log_every = max(STEPS // 4, 1)
run = Run(config, WORKDIR)
index = int(run.training.box_indices[0])
example = run.training.reader(index)
truth = run.training.reader.evaluation(index)["labels"]
batch = augment.prepare({name: np.asarray(value)[None] for name, value in example.items()})
boxes = objective.read_boxes(batch, run.settings.num_classes)
names, colours = run.settings.num_classes, paint.palette(run.settings.num_classes)


def show(**panels):
  """Panels side by side: photographs, class maps (integers) or maps of one number."""
  figure, axes = plt.subplots(
    1, len(panels), figsize=(3.1 * len(panels), 3.3), layout="constrained"
  )
  for axis, (title, picture) in zip(np.atleast_1d(axes), panels.items(), strict=True):
    picture = np.asarray(picture)
    if picture.ndim == 2 and np.issubdtype(picture.dtype, np.integer):
      picture = paint.overlay(example["image"], picture, colours)
    scale = {"cmap": "viridis", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}
    axis.imshow(picture, **scale)
    axis.set_title(title.replace("_", " "), fontsize=10)
    axis.axis("off")
  plt.show()


given = pictures.annotated(
  example["image"], None, example["boxes"], example["box_classes"], example["box_is_crowd"], names
)
show(what_training_sees=given, the_true_mask_which_it_does_not=truth.astype(int))

# %% [markdown]
# ## Before training: the place in the box
#
# From the few images that do have masks it is known how often each part of a box is object, by class.
# That is the target at the start.

# %%
priors = run.settings.box_priors
figure, axes = plt.subplots(1, names - 1, figsize=(8, 2.4), layout="constrained")
for axis, name, mean in zip(axes, config.data.class_names[1:], priors.mean_masks[1:], strict=True):
  axis.imshow(mean, cmap="viridis", vmin=0, vmax=1)
  axis.set_title(name, fontsize=10)
  axis.axis("off")
plt.show()
prior = objective.read_object_priors(batch, priors.mean_masks)
show(place_in_the_box=prior[0])

# %% [markdown]
# ## Training
#
# The same call as `python -m boxseg_jax.main`; a run that is there goes on, or is only measured.

# %%
results = loop.train(config, WORKDIR)
print({name: round(value, 3) for name, value in results.items() if "iou" in name})

# %% [markdown]
# ## After training: four steps from a box to a mask
#
# What is seen, by the network and by the decoder that is shown the boxes; times the place in the box;
# neighbours of like colour agree; filled as usual.

# %%
run = Run(config, WORKDIR, report=lambda line: None)
with run.open_checkpoints(read_only=True) as checkpoints:
  average = run.restore(checkpoints, checkpoints.latest_step()).ema
average = jax.device_get(average)
outputs, taught = run.model.apply(
  average, batch["image"], objective.read_box_maps(batch, boxes), train=False, method="with_teacher"
)
seen = bootstrap.of_some_object((outputs.logits + taught) / 2, boxes.allowed)
placed = bootstrap.with_prior(seen, prior)
smooth = crf.mean_field(placed, batch["image"])
filled = objective.fill_boxes(jax.nn.softmax(smooth), batch, priors.fill_bands)


def of_object(logits):
  """Probability of any object, inside boxes."""
  return jnp.where(boxes.inside, 1 - jax.nn.softmax(logits)[..., 0], 0)[0]


show(
  seen=of_object(seen),
  and_placed=of_object(placed),
  and_of_like_colour=of_object(smooth),
  and_filled=jnp.where(boxes.inside, 1 - filled[..., 0], 0)[0],
)

# %%
# The same in one call, as training makes it.
target, sigma, inside, _ = make_target_fn(run.model, run.settings)(average, batch)
np.testing.assert_allclose(
  jnp.where(inside[..., None], target, 0), jnp.where(inside[..., None], filled, 0), atol=1e-4
)
show(
  box_turned_into_a_mask=jnp.argmax(target, -1)[0].astype(int),
  the_true_mask=truth.astype(int),
  certainty_of_the_box=jnp.where(inside, uncertainty.certainty(sigma), 1)[0],
)

# %% [markdown]
# Dark in the last picture: pixels of which the network learned that the box is wrong about them. They
# are the corners that the mask leaves out.
