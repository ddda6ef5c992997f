"""Small records and annotation files that the tests of data/ share."""

import json
from functools import partial

import numpy as np
from PIL import Image

from boxseg_jax.data.records import Record

CLASSES = ("background", "car", "person")


def make_image(size, seed):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def make_labels(size, seed):
  return np.random.default_rng(seed).integers(0, 3, size).astype(np.uint8)


def refuse(*_):
  raise AssertionError("opened")


def make_record(number, *, size=(20, 30), classes=(1,), mask=True, boxes=None, name=None):
  boxes = [(0.25, 0.1, 0.75, 0.5)] * len(classes) if boxes is None else boxes
  return Record(
    image_id=name or f"image{number:03}.png",
    source="made/instances.json",
    size=size,
    boxes=np.array(boxes, np.float32).reshape(-1, 4),
    box_classes=np.array(classes, np.int32),
    box_is_crowd=np.zeros(len(classes), bool),
    classes=frozenset(classes),
    read_image=partial(make_image, size, number),
    read_labels=partial(make_labels, size, 1000 + number) if mask else None,
  )


def make_records(count, **options):
  return [make_record(number, **options) for number in range(count)]


def write_set(folder, annotations, *, images=None, categories=None, size=(20, 30)):
  """Writes a split's folder: instances.json and its images. Returns the folder."""
  names = ["a.png", "b.png"] if images is None else images
  (folder / "images").mkdir(parents=True, exist_ok=True)
  entries = []
  for number, name in enumerate(names, start=1):
    Image.fromarray(make_image(size, number)).save(folder / "images" / name)
    entries.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
  categories = categories or [{"id": 7, "name": "person"}, {"id": 3, "name": "car"}]
  write_json(folder, {"images": entries, "annotations": annotations, "categories": categories})
  return folder


def write_json(folder, content):
  (folder / "instances.json").write_text(json.dumps(content))


def read_json(folder):
  return json.loads((folder / "instances.json").read_text())


def annotation(number, image=1, category=3, box=(2, 3, 10, 5), **more):
  return {
    "id": number,
    "image_id": image,
    "category_id": category,
    "bbox": list(box),
    **more,
  }


def rectangle(x, y, w, h):
  return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def write_cityscapes(root, split, instances, city="ulm"):
  """Writes photographs and annotations in the official layout.

  Args:
    root: the folder to hold leftImg8bit and gtFine.
    split: name of the split.
    instances: maps as in *_instanceIds.png, one per photograph.
    city: the folder of the city.
  """
  photos, annotations = (root / kind / split / city for kind in ("leftImg8bit", "gtFine"))
  for folder in (photos, annotations):
    folder.mkdir(parents=True, exist_ok=True)
  for number, values in enumerate(instances):
    values = np.asarray(values)
    labels = np.where(values < 1000, values, values // 1000)
    name = f"{city}_{number:06}_000019"
    image = Image.fromarray(make_image(values.shape, number))
    image.save(photos / f"{name}_leftImg8bit.png")
    stem = annotations / f"{name}_gtFine"
    Image.fromarray(values.astype(np.uint16)).save(f"{stem}_instanceIds.png")
    Image.fromarray(labels.astype(np.uint8)).save(f"{stem}_labelIds.png")
