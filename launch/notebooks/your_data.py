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
# # Your own boxes: check, train, label, export
#
# You have photographs, and what an annotation tool exported as COCO json: boxes around all objects, masks
# of a few. This notebook looks for mistakes in them, trains a network, gives every box a mask, and writes
# the network into one file.
#
# Two lines name your files, `IMAGES` and `ANNOTATIONS`. As long as they are empty, the notebook writes a
# small example set itself: no download, some minutes on two CPU cores. The outputs below are of that one.
#
# On Colab (Runtime -> Change runtime type -> GPU or TPU), put your files on Google Drive, run
# `from google.colab import drive; drive.mount("/content/drive")` and name them as
# `/content/drive/MyDrive/...`; a `WORKDIR` there outlives the session, too.

# %% tags=["parameters"]
IMAGES = ""  # the folder of your photographs
ANNOTATIONS = ""  # the file that your annotation tool exported, COCO instances

LONGER_SIDE = 256 if ANNOTATIONS else 96  # pixels that photographs are scaled to for training
STEPS = 4000 if ANNOTATIONS else 300
WORKDIR = "runs/notebook-your-data" if ANNOTATIONS else "runs/notebook-example"
EXAMPLE_IMAGES = 300
REPOSITORY = ""  # on Colab: the address of this repository, to clone and install it

# %%
import importlib.util
import subprocess
import sys

# Restart the session when pip asks for it, and run the notebook again.
if importlib.util.find_spec("boxseg_jax") is None:
  subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "boxseg_jax_source"], check=True)
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./boxseg_jax_source"], check=True)

import io
import json
import textwrap
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import logging
from IPython import display
from matplotlib.patches import Patch
from PIL import Image

import boxseg_jax
from boxseg_jax import config as configuration
from boxseg_jax import data
from boxseg_jax.apps import check_data, export, label
from boxseg_jax.data import coco, mask_files, records, shapes
from boxseg_jax.evaluation import paint, pictures
from boxseg_jax.training import loop, snapshots

logging.set_verbosity(logging.ERROR)  # of the checkpoint library
print(jax.devices())


def brief(entry):
  """An entry of a json file; polygons are long."""
  return textwrap.shorten(json.dumps(entry), 200, placeholder=" ...")


# %% [markdown]
# ## What your files should look like
#
# `images` names each photograph and its size, `categories` the classes, and `annotations` has one entry for
# each object: `bbox` is [x, y, width, height] in pixels, `segmentation` its mask, as polygons or run lengths.
# Where there is none (absent, or `[]`), the object has a box only. A photograph may be learned from by
# mask if all of its objects have one; all others are learned from by their boxes.
#
# - **Boxes must be complete**: what lies outside of every box is taught as background. So photographs that
#   nobody has looked at yet do not belong into the file.
# - Masks should be drawn. A tool that writes the four corners of a box as its `segmentation` has them taken
#   for a mask: delete those.
#
# The next cell writes the example in that form: a tenth of its photographs has masks.

# %%
if not ANNOTATIONS:
  example = Path(WORKDIR) / "example"
  (example / "images").mkdir(parents=True, exist_ok=True)
  objects = ("star", "crescent", "triangle")
  written = {"images": [], "annotations": [], "categories": []}
  for number, name in enumerate(objects, start=1):
    written["categories"].append({"id": number, "name": name})
  for number, record in enumerate(shapes.load("mine", EXAMPLE_IMAGES, 0, ("background", *objects))):
    file_name = f"{record.image_id}.png"
    Image.fromarray(record.read_image()).save(example / "images" / file_name)
    height, width = record.size
    about = {"id": number, "file_name": file_name, "width": width, "height": height}
    written["images"].append(about)
    masks = shapes.read_objects(0, "mine", number, objects)
    corners = np.round(record.boxes * np.tile(record.size, 2)).astype(int).tolist()
    for (top, left, bottom, right), category, mask in zip(
      corners, record.box_classes.tolist(), masks, strict=True
    ):
      annotation = {
        "id": len(written["annotations"]),
        "image_id": number,
        "category_id": category,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": [],
        "iscrowd": 0,
      }
      if number % 10 == 0:
        annotation["segmentation"] = mask_files.polygons(mask_files.encode(mask.shape, 0, 0, mask))
      written["annotations"].append(annotation)
  IMAGES, ANNOTATIONS = str(example / "images"), str(example / "instances.json")
  Path(ANNOTATIONS).write_text(json.dumps(written))

content = json.loads(Path(ANNOTATIONS).read_text())
with_mask = [one for one in content["annotations"] if one.get("segmentation")]
without = [one for one in content["annotations"] if not one.get("segmentation")]
print(f"{len(content['images'])} photographs, {len(with_mask)} objects with a mask,", end=" ")
print(f"{len(without)} with a box only; an entry of each list:")
for one in (content["images"][:1], content["categories"][:1], with_mask[:1], without[:1]):
  print(*map(brief, one))

# %% [markdown]
# ## A set of them
#
# The program reads `<root>/<split>/instances.json` and `<root>/<split>/images/`. Here one split holds
# everything, so that all of it is labelled in the end, and parts of it are trained on and judged:
# `"all[:10]"` are its first ten photographs. A third of those with masks come first and are set aside to
# judge by; the more you can spare, the more the numbers mean. (Whoever has a split of their own writes
# two such folders and names them.)

# %%
# Names by class id, background first, in the order of the file.
used = {one["category_id"] for one in content["annotations"]}
class_names = ("background", *(one["name"] for one in content["categories"] if one["id"] in used))
boxes_only = {one["image_id"] for one in without}
annotated = {one["image_id"] for one in content["annotations"]}
masked = sorted(annotated - boxes_only)
judged = masked[::3]
assert judged, "one photograph, better ten, should have masks of all its objects, to judge by"
content["images"].sort(key=lambda image: image["id"] not in judged)

root = Path(WORKDIR) / "data"


def link_images(split):
  """Makes `<root>/<split>/images` another name of the folder of photographs."""
  folder = root / split / "images"
  folder.parent.mkdir(parents=True, exist_ok=True)
  folder.unlink(missing_ok=True)
  folder.symlink_to(Path(IMAGES).resolve())


link_images("all")
(root / "all" / "instances.json").write_text(json.dumps(content))

# The shape that most photographs have, in steps of 8 pixels.
sides = np.median([(image["height"], image["width"]) for image in content["images"]], axis=0)
canvas = tuple(8 * round(LONGER_SIDE * side / sides.max() / 8) for side in sides)

config = configuration.get_config()
config.data.source = "coco"
config.data.root = str(root)
config.data.class_names = class_names
config.data.canvas = canvas
config.data.train_split = f"all[{len(judged)}:]"
config.data.eval_split = f"all[:{len(judged)}]"
# All of the masks that are left; none will do, too.
config.data.mask_fraction = 1.0 if len(masked) > len(judged) else 0.0
config.train.num_steps = STEPS
config.train.log_every = max(STEPS // 6, 1)
print(class_names, canvas, f"{len(judged)} photographs are set aside")

# %% [markdown]
# ## Check
#
# Everything is read once, and what is wrong is told with its file, image and value: what would stop a
# training or silently teach something else is an error and ends this cell, what may be meant is a warning.
# The same as a page with pictures is `data.html` in the workdir, and on a command line
# `python -m boxseg_jax.main --mode=check_data`.

# %%
print(check_data.run(config, WORKDIR))

# %% [markdown]
# Look at some, too: no program knows which objects you left out. A mask is tinted; if tinted areas are
# rectangles, they are no drawn masks.

# %%
colours = paint.palette(len(class_names))


def show(tiles, titles, columns=4):
  """Pictures in rows, with the colours of the classes."""
  rows = -(-len(tiles) // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(2 * columns, 2.2 * rows), layout="constrained", squeeze=False
  )
  for axis in axes.flat:
    axis.axis("off")
  for axis, tile, title in zip(axes.flat, tiles, titles, strict=False):
    axis.imshow(tile)
    axis.set_title(title, fontsize=9)
  marks = [
    Patch(color=colour / 255, label=name)
    for name, colour in zip(class_names[1:], colours[1:], strict=True)
  ]
  figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
  plt.show()


def drawn(record, labels):
  """A photograph with its boxes, and class ids of its pixels where they are given."""
  return pictures.annotated(
    record.read_image(),
    labels,
    record.boxes,
    record.box_classes,
    record.box_is_crowd,
    len(class_names),
  )


training = data.load_records(config.data, config.data.train_split)
some = [one for one in training if one.read_labels][:4]
some += [one for one in training if not one.read_labels and len(one.boxes)][: 8 - len(some)]
show(
  [drawn(one, one.read_labels() if one.read_labels else None) for one in some],
  [one.image_id for one in some],
)

# %% [markdown]
# ## Train
#
# A run that was stopped goes on when this cell is run again; after a change of the data, choose another
# `WORKDIR`. `foreground_iou` is of the photographs that were set aside, and of the network alone, which is
# not shown their boxes. (Two idle cores take about two minutes for 300 steps; the outputs below are of a
# machine that was busy with something else.)

# %%
results = loop.train(config, WORKDIR)
for name, value in results.items():
  print(f"{name:32} {100 * value:5.1f} %")

# %% [markdown]
# ## What became of the boxes
#
# Training photographs: what the network was given, what it says, how far it believes the box's label
# (sigma: bright where it does not), and the target that it has made of the box to learn from. The last
# column is hatched where you drew no mask.

# %%
page = Image.open(snapshots.newest(WORKDIR))


def as_jpeg(page):
  """A page of pictures, as PNGs of noisy photographs would make a notebook heavy."""
  content = io.BytesIO()
  page.convert("RGB").save(content, "jpeg", quality=85)
  return display.Image(content.getvalue())


as_jpeg(page.reduce(max(1, round(page.width / 600))))

# %% [markdown]
# ## Label
#
# Every box that has no mask gets one, of which no pixel lies outside of the box, with a certainty as
# `score`. The file is yours with that added: ids, masks that you drew and all other keys stay as they are
# (photographs are in the order of above), so that the annotation tool takes it back. Here as polygons, which
# most tools can edit; `"coco_rle"` keeps holes, and there are PNGs and the formats of other tools
# (`label.format`).

# %%
config.label.split = "all"
config.label.format = "coco_polygon"
print(label.run(config, WORKDIR, to=str(root / "labelled")))

labelled = json.loads((root / "labelled" / "instances.json").read_text())
by_id = {one["id"]: one for one in labelled["annotations"]}
still = sum(not one.get("segmentation") for one in by_id.values())
print(f"{len(without)} objects had no mask, now {still} of {len(by_id)} have none.")
for one in without[:1]:
  print(brief(one), "->", brief(by_id[one["id"]]), sep="\n")

# %%
link_images("labelled")  # now it is a split like any other
made = data.load_records(config.data, "labelled")
names = {one.image_id for one in training if not one.read_labels and len(one.boxes)}
some = [one for one in made if one.image_id in names][:8]
show([drawn(one, one.read_labels()) for one in some], [one.image_id for one in some])

# %% [markdown]
# ### The most doubtful ones
#
# Certainty is the IoU that the network would expect. `review.csv` has all new masks, the most doubtful
# first: whoever looks through it from its head finds most mistakes soonest.

# %%
review = (root / "labelled" / "review.md").read_text().splitlines()
display.Markdown("\n".join(review[:9]))

# %%
page = Image.open(root / "labelled" / "review.png")
as_jpeg(page.crop((0, 0, page.width, min(page.height, 3 * 166))))

# %% [markdown]
# ### How good are they?
#
# Of the photographs set aside, the masks are known and were not learned from. Here they are made of their
# boxes, too, by the call for one photograph: `boxes` are (xmin, ymin, xmax, ymax) in pixels. What was
# expected is the mean of the certainties, which are meant for the order more than for the number.

# %%
model = boxseg_jax.load(WORKDIR)
tiles, titles, agreement = [], [], []


def iou(one, other):
  """Of two masks."""
  return np.count_nonzero(one & other) / np.count_nonzero(one | other)


for record in data.load_records(config.data, config.data.eval_split):
  corners = record.boxes[:, [1, 0, 3, 2]] * np.tile(record.size[::-1], 2)
  result = model.predict(record.read_image(), boxes=corners, box_classes=record.box_classes)
  own = np.zeros(record.size, np.uint8)
  for index in np.flatnonzero(~record.box_is_crowd):
    region, mask = record.regions[index], result.masks[index]
    true = coco.read_labels(record.source, record.image_id, record.size, [region]) > 0
    filled = np.zeros(record.size, bool)
    top, left, bottom, right = records.held_pixels(record.boxes[index], record.size)
    filled[top:bottom, left:right] = True
    agreement.append((iou(filled, true), iou(mask, true), result.mask_certainty[index]))
    own[mask] = record.box_classes[index]
  tiles += [drawn(record, None), drawn(record, own), drawn(record, record.read_labels())]
  titles += [record.image_id, "made of the boxes", "drawn"]

box, mask, expected = np.mean(agreement, axis=0)
print(f"{len(agreement)} boxes of {len(judged)} photographs, mean IoU with the drawn masks:")
print(f"boxes filled {box:.3f}, masks made of them {mask:.3f} (expected: {expected:.3f})")
show(tiles[:6], titles[:6], columns=3)

# %% [markdown]
# ## Export
#
# The network in one file, read back in a fresh process and kept only if that gives the same numbers. To
# predict it needs no boxes any more, and no data; without boxes it also takes for objects what nobody drew
# a box around.

# %%
print(export.run(config, WORKDIR, to="safetensors"))

# %%
model = boxseg_jax.load(f"{WORKDIR}/model.safetensors")
photo = data.load_records(config.data, config.data.eval_split)[0].read_image()
result = model.predict(photo)
print(model, result.classes.shape, result.probability.shape)
as_jpeg(result.plot())

# %% [markdown]
# Without this package, in a program that needs JAX alone and runs on CPU, CUDA and TPU: StableHLO, for images
# of the canvas's size. (TensorFlow's SavedModel, ONNX and a folder for the Hugging Face hub are written the
# same way.)

# %%
print(export.run(config, WORKDIR, to="stablehlo"))

# %%
import jax.export

program = jax.export.deserialize(bytearray(Path(f"{WORKDIR}/model.stablehlo").read_bytes()))
image = np.asarray(Image.fromarray(photo).resize(canvas[::-1]))
outputs = program.call(image[None])
print({name: value.shape for name, value in outputs.items()})

# %% [markdown]
# ## What next
#
# 1. Look through `review.csv`, put the worst masks right in the annotation tool, and export again. A
#    photograph all of whose masks you vouch for is one more to learn from: of the others, remove the
#    `segmentation` (those that were made have a `score`), and train again with another `WORKDIR`.
# 2. `python -m boxseg_jax.main --mode=report` makes one page of a run, with its curves, best and worst
#    photographs; `--mode=predict --images='photos/**/*.jpg'` predicts folders.
# 3. Whether more masks would pay: `--mode=study` trains with fewer and compares (README, "How many masks to
#    pay for"). Objects that are small on the canvas need a larger `LONGER_SIDE`.
#
# `method.ipynb` shows what happens inside a box.
