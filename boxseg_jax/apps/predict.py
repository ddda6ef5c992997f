"""Photos -> index PNGs, overlays and certainty maps, in bulk."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from boxseg_jax.apps.model import load
from boxseg_jax.data import feed
from boxseg_jax.data import photos as photo_files
from boxseg_jax.errors import InputError, PartlyDoneError
from boxseg_jax.evaluation import paint
from boxseg_jax.files import read_json, write_json, write_text
from boxseg_jax.training import saved
from boxseg_jax.training.progress import Count

FOLDERS = ("labels", "certainty", "overlays")
BROKEN = "broken.txt"
_SPELT_OUT = 10  # broken images that the message names; the file names all


def run(config: ConfigDict, workdir, *, images: Sequence[str], to: str = "", report=print) -> str:
  """Predicts every image that is not predicted yet.

  Args:
    config: of it, `predict`, the windows and the batch of `eval`, and `data.workers` are used;
      the network is that of the workdir.
    workdir: of a run, or a file of `--mode=export`.
    images: files, folders and patterns.
    to: folder for the results; "" = `<workdir>/predictions`.
    report: takes lines of text for the person who waits.

  Returns:
    Where the results are: under `to`, named like the images, `labels/*.png` (class ids, with a
    palette for viewers), `certainty/*.png` (255 = certain) and `overlays/*.jpg`. `broken.txt` has
    a line for each image that could not be read.

  Raises:
    InputError: no network or no images there, or a folder with other predictions.
    PartlyDoneError: some images could not be read; all others are done.
  """
  if not images:
    raise InputError("--mode=predict needs --images=FILE, FOLDER or PATTERN (may be repeated)")
  model = load(workdir)
  folder = Path(to) if to else saved.beside(workdir, "predictions")
  names = _names(photo_files.find(images))
  _refuse_other_predictions(config, model, folder)
  missing = {path: name for path, name in names.items() if not _label_path(folder, name).exists()}
  if len(missing) < len(names):
    report(f"{len(names) - len(missing)} images were predicted earlier.")
  broken = predict_files(config, model, missing, folder)
  _keep_list(folder / BROKEN, broken)
  if broken:
    raise PartlyDoneError(
      f"{len(broken)} of {len(names)} images could not be read, the others are in {folder}:\n  "
      + "\n  ".join(_listed(broken, folder / BROKEN))
    )
  return f"{len(names)} images -> " + ", ".join(str(folder / name) for name in FOLDERS)


def _keep_list(path, broken):
  """Writes what could not be read in this run, one message a line; no file where all could."""
  if broken:
    write_text(path, "".join(f"{message}\n" for message in broken))
  else:
    path.unlink(missing_ok=True)


def _listed(broken, path):
  """Lines of a message that still fits a terminal."""
  if len(broken) <= _SPELT_OUT:
    return broken
  return [*broken[:_SPELT_OUT], f"and {len(broken) - _SPELT_OUT} more: all are in {path}"]


def _refuse_other_predictions(config, model, folder):
  """What is in the folder is taken for done, so it has to be of the same network and options."""
  made_by = {
    "network": saved.fingerprint(model.network),
    "tiles": config.eval.tiles,
    "overlap": config.eval.overlap,
    "mirror": config.predict.mirror,
  }
  path = folder / "made_by.json"
  if path.exists() and read_json(path) != made_by:
    raise InputError(
      f"{folder} holds predictions of another network or with other options ({path.name}); choose "
      "another --to, or remove it"
    )
  write_json(path, made_by)


def predict_files(config, model, names, folder) -> list[str]:
  """Predicts some image files and writes what comes of them.

  Args:
    config: see `run`.
    model: apps.model.Model.
    names: name of the results by path of the image.
    folder: for the results.

  Returns:
    Messages of the images that cannot be read.
  """
  broken = []
  predictor = model.predictor(
    tiles=config.eval.tiles,
    overlap=config.eval.overlap,
    mirror=config.predict.mirror,
    batch_size=config.eval.batch_size,
    workers=config.data.workers,
  )
  write = partial(_write, folder, names, len(model.class_names), config.predict.overlays)
  waiting = map(photo_files.of_file, names)
  decisions = predictor.decisions(waiting, lambda photo, error: broken.append(str(error)))
  count = Count("predict")
  for done, _ in enumerate(feed.ahead(write, decisions, config.data.workers, 32), start=1):
    count(done, len(names) - len(broken))
  count.close()
  return broken


def _write(folder, names, num_classes, overlays, decided):
  photo, decision = decided
  name, colours = names[Path(photo.name)], paint.palette(num_classes)
  if overlays:
    shown = paint.overlay(photo.read(), decision.classes, colours)
    paint.save(folder / "overlays" / name.with_suffix(".jpg"), shown)
  paint.save(folder / "certainty" / name.with_suffix(".png"), decision.certainty)
  # Last: where there is a label, the image is done.
  paint.save_index(_label_path(folder, name), decision.classes, colours)


def _label_path(folder, name):
  return folder / "labels" / name.with_suffix(".png")


def _names(paths):
  """Each file's name below the folder that all share, different ones for different files."""
  resolved = [path.resolve() for path in paths]
  root = Path(os.path.commonpath([path.parent for path in resolved]))
  names = {}
  taken = set()
  for path, whole in zip(paths, resolved, strict=True):
    name = whole.relative_to(root)
    # photo.jpg and photo.png side by side: the second keeps its suffix.
    name = name if name.with_suffix("") not in taken else name.with_name(name.name + ".png")
    taken.add(name.with_suffix(""))
    names[path] = name
  return names
