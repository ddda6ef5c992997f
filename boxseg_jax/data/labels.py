"""Source `labels`: masks from index images, boxes from `instances.json`.

Layout: `<root>/<split>/instances.json`, `<root>/<split>/images/` and
`<root>/<split>/labels/<stem of the image>.png`. An image without a label map is
a box image.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from boxseg_jax.data import images, instances
from boxseg_jax.data.records import Record


def load(root: str, split: str, class_names: Sequence[str]) -> list[Record]:
  """Loads the records of a split; no pixels are read.

  Args:
    root: folder of the data set.
    split: name of the split, a folder in `root`.
    class_names: class names by class id, which are the values in the label maps;
      the first is the background.

  Returns:
    Records in the order of the file.

  Raises:
    InputError: see `instances.read_instances`.
  """
  folder = Path(root) / split
  return [_record(folder, image) for image in instances.read_instances(folder, class_names)]


def _record(folder: Path, image: instances.AnnotatedImage) -> Record:
  path = folder / "labels" / Path(image.name).with_suffix(".png")
  return Record(
    image_id=image.name,
    source=str(folder / "instances.json"),
    size=image.size,
    read_image=partial(images.read_image, image.path, image.size),
    read_labels=partial(images.read_index_image, str(path), image.size) if path.exists() else None,
    read_reduced=partial(images.read_reduced, image.path, image.size),
    labels_source=str(path),
    **instances.box_fields(image),
  )
