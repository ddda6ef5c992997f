"""Sources -> records -> examples -> batches; one schema for every data set.

| file | what it does |
|---|---|
| `shapes`, `coco`, `labels`, `tfds`, `cityscapes`, `datumaro` | the sources: files -> records |
| `instances`, `images`, `formats` | read the files of sources |
| `records` | the record schema |
| `check` | reads everything once, before training starts |
| `survey` | what that reading saw of each image, and what a split adds up to |
| `findings` | judges it: errors, and warnings |
| `split` | which images give their mask, which only their boxes |
| `box_priors` | how objects lie in their boxes, as the masks show it |
| `faults`, `grabcut` | for comparisons: mistakes in boxes, boxes made into masks |
| `order` | which images make up the batch of a step |
| `examples` | record -> example on the canvas |
| `mask_files`, `pseudo_masks` | masks that were made of boxes -> files, and files -> training |
| `windows` | parts of an image that is judged at its own size |
| `feed` | examples -> batches, by tf.data or by threads |
| `training_set` | all of it together: what a run reads |
"""

import re
from collections.abc import Callable

from ml_collections import ConfigDict

from boxseg_jax.data.records import Record, require_inside
from boxseg_jax.errors import InputError


def load_records(config_data: ConfigDict, split: str) -> list[Record]:
  """Loads the records of a split of the configured source.

  Args:
    config_data: `config.data`.
    split: name of the split, as in `data.train_split`; "train[:400]" and "train[400:]" are
      parts of it by position, to set some images aside for tuning.

  Returns:
    The records; no image has been read yet (tfds, cityscapes, datumaro: masks have, for their
    boxes).

  Raises:
    InputError: unknown source, an image whose name leads out of a folder, or what the source
      finds wrong.
  """
  if config_data.source not in _SOURCES:
    raise InputError(
      f"data.source is {config_data.source!r}, but must be one of {', '.join(_SOURCES)}"
    )
  load = _SOURCES[config_data.source]
  sliced = re.fullmatch(r"(.+)\[(\d*):(\d*)\]", split)
  if sliced is None or config_data.source == "tfds":  # which slices by itself
    return _checked(load(config_data, split))
  name, start, stop = sliced.groups()
  records = _checked(load(config_data, name))[int(start or 0) : int(stop) if stop else None]
  if not records:
    raise InputError(f"data: the split {split!r} holds no image")
  return records


def _checked(records: list[Record]) -> list[Record]:
  """Whatever the source: results are named like the images, and stay in the folder for them."""
  for record in records:
    require_inside(record.source, record.image_id)
  return records


# Each imports its own module: a set of PNGs needs neither pycocotools nor TensorFlow Datasets.


def _load_shapes(config_data: ConfigDict, split: str) -> list[Record]:
  from boxseg_jax.data import shapes

  is_train = split == config_data.train_split.partition("[")[0]
  count = config_data.shapes.num_train if is_train else config_data.shapes.num_eval
  return shapes.load(split, count, config_data.shapes.seed, config_data.class_names)


def _load_coco(config_data: ConfigDict, split: str) -> list[Record]:
  from boxseg_jax.data import coco

  return coco.load(config_data.root, split, config_data.class_names)


def _load_labels(config_data: ConfigDict, split: str) -> list[Record]:
  from boxseg_jax.data import labels

  return labels.load(
    config_data.root,
    split,
    config_data.class_names,
    label_values=config_data.label_values,
    label_colors=config_data.label_colors,
  )


def _load_tfds(config_data: ConfigDict, split: str) -> list[Record]:
  from boxseg_jax.data import tfds

  return tfds.load(
    config_data.tfds_name,
    split,
    config_data.class_names,
    data_dir=config_data.root or None,
    label_names=config_data.label_names,
  )


def _load_cityscapes(config_data: ConfigDict, split: str) -> list[Record]:
  from boxseg_jax.data import cityscapes

  return cityscapes.load(
    config_data.root, split, config_data.class_names, workers=config_data.workers
  )


def _load_datumaro(config_data: ConfigDict, split: str) -> list[Record]:
  from boxseg_jax.data import datumaro

  return datumaro.load(
    config_data.root,
    split,
    config_data.class_names,
    dataset_format=config_data.format,
    label_names=config_data.label_names,
  )


_SOURCES: dict[str, Callable[[ConfigDict, str], list[Record]]] = {
  "shapes": _load_shapes,
  "coco": _load_coco,
  "labels": _load_labels,
  "tfds": _load_tfds,
  "cityscapes": _load_cityscapes,
  "datumaro": _load_datumaro,
}
