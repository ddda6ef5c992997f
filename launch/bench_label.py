"""Measures what becomes of boxes: filled, by GrabCut, by a trained network (`--mode=label`).

A run that has been through `--mode=refine` is measured refined, others by the rules alone.

    python launch/bench_label.py configs/nuclei.py=runs/nuclei configs/camvid.py=runs/camvid \
      --to=launch/results/label

For each pair of a config (for the data's place) and a run: mean IoU per box at the photographs' own
size, over the boxes of --split whose object has at least 60 pixels, with the object's own mask in
instances.json (where there is none, with what the label map has of the class in the box). "subset"
is of 24 photographs (a set with more than one class: 16), the first of numpy's
default_rng(0).permutation of all by name, and at most 40 boxes of each, in the order of the file.

All runs on one core (--core). Rows take turns photograph by photograph, so that other work on the
machine slows all of them down alike; reading is not counted, nor is compiling, which is done before
on a few photographs. GrabCut is OpenCV's, around each box, as in the arm "grabcut"; where it leaves
less than a quarter of the box, the filled box is taken.
"""

import argparse
import importlib.metadata
import json
import os
import runpy
import sys
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

LEAST = 60  # pixels of an object
MOST = 40  # boxes of a photograph in the subset


def bench(model, records, annotations, limit=None):
  """Rows of one set: a dict for each box."""
  rows = []
  for record in records:
    image, own = record.read_image(), annotations[record.image_id]
    chosen = _chosen(record, own)[:limit]
    if not chosen:
      continue
    truth = [_truth(record, own[index], index) for index in chosen]
    made = {name: _timed(method, record, image, chosen) for name, method in _methods(model).items()}
    for number, index in enumerate(chosen):
      row = {"image": record.image_id, "box": index, "class": int(record.box_classes[index])}
      for name, (masks, seconds) in made.items():
        mask, certainty = masks[number]
        row[name] = _iou(mask, truth[number])
        row[f"{name} s"] = seconds / len(chosen)
        row |= {} if certainty is None else {"certainty": certainty}
      rows.append(row)
  return rows


def _chosen(record, annotations):
  """Positions of the boxes that are judged."""
  return [
    index
    for index in np.flatnonzero(~record.box_is_crowd).tolist()
    if _truth(record, annotations[index], index)[2].sum() >= LEAST
  ]


def _truth(record, annotation, index):
  """(top, left, bool [rows, columns]) of an object."""
  code = annotation.get("segmentation")
  if code:
    if isinstance(code, list):
      code = coco_mask.merge(coco_mask.frPyObjects(code, *record.size))
    return 0, 0, coco_mask.decode(code).astype(bool)
  top, left, bottom, right = _bound(record, index)
  part = record.read_labels()[top:bottom, left:right]
  return top, left, part == record.box_classes[index]


def _methods(model):
  return {"box": _filled, "grabcut": _grabcut, "ours": lambda *given: _ours(model, *given)}


def _timed(method, record, image, chosen):
  started = time.perf_counter()
  masks = method(record, image, chosen)
  return masks, time.perf_counter() - started


def _bound(record, index):
  """(ymin, xmin, ymax, xmax) of a box in whole pixels, those whose centres it holds."""
  from boxseg_jax.data.records import held_pixels

  ymin, xmin, ymax, xmax = held_pixels(record.boxes[index], record.size).tolist()
  return ymin, xmin, max(ymax, ymin + 1), max(xmax, xmin + 1)


def _filled(record, image, chosen):
  del image
  bounds = [_bound(record, index) for index in chosen]
  return [((t, le, np.ones((b - t, r - le), bool)), None) for t, le, b, r in bounds]


def _grabcut(record, image, chosen):
  from boxseg_jax.data import grabcut

  bounds = [_bound(record, index) for index in chosen]
  return [((*b[:2], grabcut.foreground(image, np.array(b))), None) for b in bounds]


def _ours(model, record, image, chosen):
  from boxseg_jax.data.records import single_boxes

  single, boxes = single_boxes(record)
  wanted = np.searchsorted(single, chosen)
  made = model.labeller.masks(image, boxes, record.box_classes[single], wanted)
  return [((mask.top, mask.left, mask.pixels), mask.certainty) for mask in made]


def _iou(one, other):
  """Of two masks (top, left, pixels)."""
  corners = [(top, left, top + p.shape[0], left + p.shape[1]) for top, left, p in (one, other)]
  top, left = np.max(corners, axis=0)[:2]
  bottom, right = np.min(corners, axis=0)[2:]
  (a, b) = (p[top - t : bottom - t, left - le : right - le] for t, le, p in (one, other))
  common = np.sum(a & b)
  return float(common / (one[2].sum() + other[2].sum() - common))


def summary(rows):
  """What the rows of a set add up to."""
  photos = len({row["image"] for row in rows})
  found = {"photos": photos, "boxes": len(rows)}
  for name in ("box", "grabcut", "ours"):
    seconds = sum(row[f"{name} s"] for row in rows)
    found[name] = {"iou": float(np.mean([row[name] for row in rows]))}
    if name != "box":
      found[name] |= {"boxes_per_second": len(rows) / seconds, "per_photo": seconds / photos}
  order = sorted(rows, key=lambda row: row["certainty"])
  fifth = max(len(rows) // 5, 1)
  found["ours"]["iou_most_doubtful_fifth"] = float(np.mean([row["ours"] for row in order[:fifth]]))
  found["ours"]["iou_others"] = float(np.mean([row["ours"] for row in order[fifth:]]))
  found["ours"]["by_class"] = {
    str(label): float(np.mean([row["ours"] for row in rows if row["class"] == label]))
    for label in sorted({row["class"] for row in rows})
  }
  return found


def _subset(records, several_classes):
  by_name = sorted(records, key=lambda record: record.image_id)
  order = np.random.default_rng(0).permutation(len(by_name))
  return [by_name[index] for index in order[: 16 if several_classes else 24]]


def measure(config_path, workdir, split, root, photos):
  """The summaries of one pair, and how the network was trained."""
  import boxseg_jax
  from boxseg_jax.data import load_records, mask_files

  config = runpy.run_path(str(config_path))["get_config"]()
  config.data.root = root or config.data.root
  model = boxseg_jax.load(workdir)
  config.data.class_names = model.class_names
  records = load_records(config.data, split)
  annotations = mask_files.document(config.data, split, records).boxes
  records = records[:photos]
  _compile(model, records)
  subset = _subset(records, len(model.class_names) > 2)
  rows = {
    "whole": bench(model, records, annotations),
    "subset": bench(model, subset, annotations, MOST),
  }
  found = {"config": str(config_path), "run": str(workdir), "split": split}
  found |= {"canvas": list(model.canvas), "step": model.network.description.get("step")}
  found["refined"] = model.network.refiner is not None
  trained = Path(workdir) / "config.json"
  if trained.exists():
    found["mask_fraction"] = json.loads(trained.read_text())["data.mask_fraction"]
  return found | {name: summary(own) for name, own in rows.items()}


def _compile(model, records):
  """One photograph for each number of box slots, and both numbers of crops."""
  met = {}
  for record in records:
    if len(record.boxes):
      met.setdefault((len(record.boxes) - 1).bit_length(), record)
  for record in met.values():
    _ours(model, record, record.read_image(), np.flatnonzero(~record.box_is_crowd).tolist())
    _ours(model, record, record.read_image(), np.flatnonzero(~record.box_is_crowd)[:1].tolist())


def table(sets):
  """Markdown of all pairs."""
  lines = [
    "| set | photos | boxes | filled box | GrabCut | ours | GrabCut, boxes/s | ours, boxes/s "
    "| ours, s a photo | doubtful fifth / others |",
    "|---|" + "---:|" * 9,
  ]
  for one in sets:
    for name in ("whole", "subset"):
      own, row = one[name], f"{Path(one['config']).stem} {one['split']}"
      speeds = [own[kind]["boxes_per_second"] for kind in ("grabcut", "ours")]
      doubt = [own["ours"][key] for key in ("iou_most_doubtful_fifth", "iou_others")]
      lines.append(
        f"| {row}{', subset' if name == 'subset' else ''} | {own['photos']} | {own['boxes']} "
        f"| {own['box']['iou']:.3f} | {own['grabcut']['iou']:.3f} | **{own['ours']['iou']:.3f}** "
        f"| {speeds[0]:.0f} | {speeds[1]:.0f} | {own['ours']['per_photo']:.2f} "
        f"| {doubt[0]:.3f} / {doubt[1]:.3f} |"
      )
  return "\n".join(lines)


def _about(core, load):
  from boxseg_jax.training import origin

  names = ("pillow", "opencv-python-headless", "pycocotools")
  versions = {name: importlib.metadata.version(name) for name in names}
  return origin.here() | {"core": core, "load_before": round(load, 1), **versions}


def main():
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  parser.add_argument("pairs", nargs="+", help="CONFIG=RUN")
  parser.add_argument("--split", default="test")
  parser.add_argument("--root", default="", help="of the data; the config's by default")
  parser.add_argument("--photos", type=int, help="only the first ones")
  parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
  parser.add_argument("--to", help="write TO.json and TO.md")
  given = parser.parse_args()
  os.sched_setaffinity(0, {given.core})  # before any library starts its threads
  load = os.getloadavg()[0]
  from boxseg_jax.errors import InputError

  try:
    sets = [
      measure(*pair.split("=", 1), given.split, given.root, given.photos) for pair in given.pairs
    ]
  except InputError as error:
    sys.exit(f"error: {error}")
  print(table(sets))
  if given.to:
    about = _about(given.core, load)
    Path(given.to + ".json").write_text(json.dumps(about | {"sets": sets}, indent=2) + "\n")
    Path(given.to + ".md").write_text(_page(about, sets))


def _page(about, sets):
  runs = "; ".join(
    f"{Path(one['config']).stem}: {one.get('mask_fraction', 0):.0%} masks, canvas "
    f"{one['canvas'][1]}x{one['canvas'][0]}{', refined' if one['refined'] else ''}"
    for one in sets
  )
  made_with = ", ".join(f"{name} {value}" for name, value in about.items() if name != "command")
  return (
    f"# Boxes -> masks\n\nMean IoU per box at the photographs' own size, objects of {LEAST} pixels "
    f"or more. Networks: {runs}.\n\n{table(sets)}\n\n"
    f"    {about['command']}\n\n{made_with}\n"
  )


if __name__ == "__main__":
  main()
