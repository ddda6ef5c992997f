"""Boxes -> masks, in bulk: what annotation tools' users ask for."""

import csv
import io
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from pycocotools import mask as coco_mask

from boxseg_jax.apps.model import Model, load
from boxseg_jax.apps.tables import cell
from boxseg_jax.data import coco, feed, images, labels, load_records, mask_files
from boxseg_jax.data.mask_files import MadeMask
from boxseg_jax.data.records import Record, single_boxes
from boxseg_jax.errors import InputError, PartlyDoneError
from boxseg_jax.evaluation import paint, pictures
from boxseg_jax.files import write_json, write_text
from boxseg_jax.training import saved
from boxseg_jax.training.progress import Count

FORMATS = ("coco_rle", "coco_polygon", "index_png")
_JOURNAL = "masks.jsonl"
_LISTED = 50  # masks in review.md
_COLUMNS = 4  # of review.png
_AHEAD = 8  # images read

Made = dict[str, dict[int, MadeMask]]  # by image and position of the box


def run(config: ConfigDict, workdir, *, to: str = "", report: Callable[[str], None] = print) -> str:
  """Makes a mask of every box of a split that has none.

  Args:
    config: of it, `label` and `data` are used (root, source and what belongs to it); the network
      is that of the workdir.
    workdir: of a run, or a file of `--mode=export`.
    to: folder for the results; "" = `<workdir>/labelled`. The masks of each image are written to
      `masks.jsonl` at once: started again, it goes on.
    report: takes lines of text for the person who waits.

  Returns:
    What was made, and where it is: the set in `label.format`, and `review.csv`, `review.md` and
    `review.png`, the most doubtful masks first.

  Raises:
    InputError: no network or data there, other classes, an unknown format, or images whose
      index PNGs would be one file.
    PartlyDoneError: images that could not be read, or boxes that cover nothing; all others are
      done.
  """
  _require_format(config.label.format)
  model = load(workdir)
  if tuple(config.data.class_names) != model.class_names:
    raise InputError(
      f"config.data.class_names is {tuple(config.data.class_names)}, but the network of {workdir} "
      f"knows {model.class_names}"
    )
  records = load_records(config.data, config.label.split)
  if config.label.format == "index_png":
    labels.require_own_files(config.data.root, [record.image_id for record in records])
  if model.network.refiner is None:
    report("Masks are made by rules; --mode=refine learns better ones from a run's masks.")
  folder = Path(to) if to else saved.beside(workdir, "labelled")
  made, rate, broken = make(config, model, records, folder, report=report)
  where = _write(config, records, made, folder)
  rows = _review(config, records, made, folder)
  broken += [
    f"{row['image']}: box {row['annotation']} covers nothing" for row in rows if row["void"]
  ]
  text = f"{len(rows)} masks ({rate}) -> {where}; to be reviewed in this order: review.csv"
  if broken:
    raise PartlyDoneError(f"{text}\nnot done:\n  " + "\n  ".join(broken))
  return text


def _require_format(name):
  kind, _, exporter = name.partition(":")
  if kind != "datumaro":
    if name not in FORMATS:
      raise InputError(
        f"config.label.format is {name!r}, but must be one of {FORMATS} or 'datumaro:' and a format"
      )
    return
  known = mask_files.exporters()
  if exporter not in known:
    raise InputError(
      f"config.label.format is {name!r}, but datumaro writes none but {', '.join(known)}"
    )


def make(
  config: ConfigDict, model: Model, records: Sequence[Record], folder: Path, *, report
) -> tuple[Made, str, list[str]]:
  """Masks of the boxes of all images that have none.

  Args:
    config: of it, `data.workers` is used.
    model: the network.
    records: of the images.
    folder: for `masks.jsonl`, in which each image's are kept at once; what is there is not made
      again.
    report: takes lines of text.

  Returns:
    The masks, boxes per second in words, and messages of images that cannot be read.

  Raises:
    InputError: `masks.jsonl` is damaged.
  """
  path = folder / _JOURNAL
  network = saved.fingerprint(model.network)
  keys = {record.image_id: _key(network, record) for record in records}
  made = _read_journal(path, keys)
  if made:
    report(f"{len(made)} images were labelled earlier.")
  waiting = [r for r in records if r.image_id not in made and mask_files.wanted(r)]
  total, done, broken = sum(len(mask_files.wanted(r)) for r in waiting), 0, []
  count, started = Count("label", unit="boxes"), time.monotonic()
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as journal:
    for record, image, error in feed.ahead(_read, waiting, config.data.workers, _AHEAD):
      if error is not None:
        broken.append(str(error))
        continue
      made[record.image_id] = own = label_image(model, record, image)
      line = [record.image_id, keys[record.image_id], list(own.items())]
      journal.write(json.dumps(line) + "\n")
      journal.flush()
      done += len(mask_files.wanted(record))
      count(done, total)
  count.close()
  rate = f"{done} of them now, {done / max(time.monotonic() - started, 1e-9):.0f} boxes/s"
  return made, rate, broken


def _read(record: Record):
  """(record, image, None), or (record, None, what is wrong)."""
  try:
    return record, record.read_image(), None
  except InputError as error:
    return record, None, error


def label_image(model: Model, record: Record, image: np.ndarray) -> dict[int, MadeMask]:
  """Masks of the boxes of an image that have none.

  Args:
    model: the network.
    record: of the image.
    image: uint8 [height, width, 3].

  Returns:
    By position of the box; certainty 0 and no pixel for a box that covers nothing of the image.
  """
  single, boxes = single_boxes(record)
  wanted = mask_files.wanted(record)
  masks = model.labeller.masks(
    image, boxes, record.box_classes[single], np.searchsorted(single, wanted).tolist()
  )
  nothing = MadeMask(mask_files.encode(record.size, 0, 0, np.zeros((1, 1), bool)), 0.0)
  return {
    index: nothing
    if mask is None
    else MadeMask(mask_files.encode(record.size, *mask[:3]), round(mask.certainty, 4))
    for index, mask in zip(wanted, masks, strict=True)
  }


def _key(network: str, record) -> str:
  """Changes with the network, and with the boxes and what masks are known of them."""
  state = zlib.crc32(repr((network, record.size, mask_files.wanted(record))).encode())
  for array in (record.boxes, record.box_classes):
    state = zlib.crc32(np.ascontiguousarray(array), state)
  return f"{state:08x}"


def _read_journal(path: Path, keys: Mapping[str, str]) -> Made:
  """What an earlier call made of the same boxes with the same network."""
  made: Made = {}
  if not path.exists():
    return made
  whole = path.read_text(encoding="utf-8")
  whole = whole[: whole.rfind("\n") + 1]  # a line that was being written when it was stopped
  path.write_text(whole, encoding="utf-8")
  for number, line in enumerate(whole.splitlines(), start=1):
    try:
      image, key, masks = json.loads(line)
      if keys.get(image) == key:
        made[image] = {int(index): _made_mask(path, *mask) for index, mask in masks}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      raise InputError(f"{path}: line {number} is damaged ({error}); remove the file") from error
  return made


def _made_mask(path, code, certainty) -> MadeMask:
  size = tuple(code["size"])
  images.require_possible_size(f"{path}: a mask", size)
  counts = coco.checked_code(f"{path}: a mask", size, code)["counts"]
  return MadeMask({"size": list(size), "counts": counts.decode()}, float(certainty))


def _write(config, records, made: Made, folder: Path) -> str:
  """Writes the set with its masks; where it is."""
  kind, _, exporter = config.label.format.partition(":")
  if kind == "index_png":
    return write_index_images(records, made, folder / "labels", len(config.data.class_names))
  document = mask_files.document(config.data, config.label.split, records)
  polygons = kind == "coco_polygon"
  for image, own in made.items():
    mask_files.put_masks(document.boxes[image], _not_void(own), polygons)
  if kind == "datumaro":
    mask_files.export(document.content, records, folder / exporter, exporter)
    return str(folder / exporter)
  write_json(folder / "instances.json", document.content)
  return str(folder / "instances.json")


def _not_void(own):
  return {index: mask for index, mask in own.items() if coco_mask.area(mask.code)}


def write_index_images(
  records: Sequence[Record], made: Made, folder: Path, num_classes: int
) -> str:
  """Writes a PNG of class ids for each image, `<name of the image>.png`.

  Args:
    records: of the images; one whose mask is known keeps it.
    made: the masks.
    folder: for the PNGs.
    num_classes: with the background.

  Returns:
    The folder.
  """
  for record in records:
    path = folder / labels.file_name(record.image_id)
    if record.labels_source and record.read_labels is not None:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(Path(record.labels_source).read_bytes())
      continue
    label_map = mask_files.label_map(record, _not_void(made.get(record.image_id, {})))
    paint.save_index(path, label_map, paint.palette(num_classes))
  return str(folder)


def _review(config, records: Sequence[Record], made: Made, folder: Path) -> list[dict]:
  """Writes what a person has to look at; a row for each mask, the most doubtful first."""
  document = mask_files.document(config.data, config.label.split, records)
  rows = [
    row
    for record in records
    for row in _rows(config, record, made, document.boxes[record.image_id])
  ]
  rows.sort(key=lambda row: row["certainty"])
  write_text(folder / "review.csv", _as_csv(rows))
  write_text(folder / "review.md", _as_markdown(rows))
  if rows and config.label.pictures:
    tiles = list(_tiles(config, records, made, rows[: config.label.pictures]))
    if tiles:
      paint.save(folder / "review.png", pictures.sheet(tiles, _COLUMNS, config.data.class_names))
  return rows


_FIELDS = ("certainty", "image", "annotation", "class", "x", "y", "width", "height", "filled")


def _rows(config, record, made, annotations) -> Iterator[dict]:
  for index, mask in made.get(record.image_id, {}).items():
    ymin, xmin, ymax, xmax = record.boxes[index].astype(np.float64) * np.tile(record.size, 2)
    area = int(coco_mask.area(mask.code))
    yield {
      "certainty": mask.certainty,
      "image": record.image_id,
      "annotation": annotations[index].get("id", index),
      "class": config.data.class_names[record.box_classes[index]],
      "x": round(xmin, 1),
      "y": round(ymin, 1),
      "width": round(xmax - xmin, 1),
      "height": round(ymax - ymin, 1),
      "filled": round(area / max((xmax - xmin) * (ymax - ymin), 1.0), 3),
      "index": index,
      "void": area == 0,
    }


def _as_csv(rows):
  text = io.StringIO()
  writer = csv.DictWriter(text, _FIELDS, extrasaction="ignore", lineterminator="\n")
  writer.writeheader()
  writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
  return text.getvalue()


def _no_formula(value):
  """A text that spreadsheets take for text: the names are a stranger's, and formulas do things."""
  is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
  return f"'{value}" if is_formula else value


def _as_markdown(rows):
  lines = [
    f"{len(rows)} masks, the most doubtful first. Certainty is the IoU to be expected; `filled` "
    "the share of the box.",
    "",
    "| " + " | ".join(_FIELDS) + " |",
    "|---:|---|---:|---|---:|---:|---:|---:|---:|",
  ]
  lines += ["| " + " | ".join(cell(row[name]) for name in _FIELDS) + " |" for row in rows[:_LISTED]]
  lines += ["", f"{len(rows) - _LISTED} more are in review.csv."] if len(rows) > _LISTED else []
  return "\n".join(lines) + "\n"


def _tiles(config, records, made, rows) -> Iterator[np.ndarray]:
  by_name = {record.image_id: record for record in records}
  for row in rows:
    record = by_name[row["image"]]
    mask = made[row["image"]][row["index"]]
    yield pictures.labelled_box(
      record.read_image(),
      record.boxes[row["index"]],
      coco_mask.decode(dict(mask.code)).astype(bool),
      label=int(record.box_classes[row["index"]]),
      num_classes=len(config.data.class_names),
      text=f"{row['certainty']:.2f}  {row['annotation']}",
    )
