"""Compares arms, mask fractions and seeds, everything else being equal."""

import itertools
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from boxseg_jax import __version__, data
from boxseg_jax import config as configuration
from boxseg_jax.apps import curves, retrain, tables
from boxseg_jax.data import split
from boxseg_jax.errors import InputError
from boxseg_jax.files import read_json, write_json, write_text
from boxseg_jax.training import loop, origin, snapshots
from boxseg_jax.training.run import refuse_other_configuration

# Keys in which the runs of a study may differ, and those that say which runs it has.
_OF_CELLS = (
  *("arm:", "seed:", "data.mask_fraction:", "data.split_seed:"),
  *("study.arms:", "study.mask_fractions:", "study.seeds:", "study.faults:", "study.known:"),
)


class Cell(NamedTuple):
  """One run of the study.

  Attributes:
    arm: see `config.arm`.
    mask_fraction: share of masks; 1.0 for the arm "full".
    seed: of training and of the split.
    fault: mistake made in the boxes, a key of `config.study.fault_sizes`; "" = none.
  """

  arm: str
  mask_fraction: float
  seed: int
  fault: str = ""

  @property
  def name(self) -> str:
    """Folder of the run in the study's workdir."""
    name = f"{self.arm}-{100 * self.mask_fraction:g}pct-seed{self.seed}"
    return f"{name}-{self.fault}" if self.fault else name


def cells(config: ConfigDict) -> list[Cell]:
  """All runs of a study, each once: seed by seed, so that a stopped study is of use.

  Args:
    config: the configuration with its `study` part.

  Returns:
    Cells in the order in which they are run. "full" knows no fraction; at fraction
    0 there is nothing for "masks_only" to learn from. Faults are those of boxes, where boxes
    are learned from; with one class alone none can be wrong.
  """
  study = config.study
  fractions = study.mask_fractions or (config.data.mask_fraction,)
  seeds = study.seeds or (config.seed,)
  arms = configuration.arms(config)
  is_binary = len(config.data.class_names) == 2
  faults = [fault for fault in study.faults if not (is_binary and fault == "wrong_class")]
  found: dict[Cell, None] = {}
  for seed, fraction, arm in itertools.product(seeds, fractions, study.arms):
    if arm != "masks_only" or fraction > 0:
      cell = Cell(arm, 1.0 if arm == "full" else float(fraction), int(seed))
      found.setdefault(cell)
      if arm in arms and arms[arm].box_images:
        found |= dict.fromkeys(cell._replace(fault=fault) for fault in faults)
  return list(found)


def cell_config(config: ConfigDict, cell: Cell) -> ConfigDict:
  """The configuration of one run; differs from the study's in arm, fraction, seeds and fault only.

  So a study of more seeds or arms takes over the runs of a smaller one, and parts of a
  study can be run side by side. What an arm fixes is written into `loss`: runs that do not
  use the method of `config.loss` stay valid when it is changed.
  """
  own = config.copy_and_resolve_references()
  own.arm = cell.arm
  own.seed = cell.seed
  own.data.split_seed = cell.seed
  own.data.mask_fraction = cell.mask_fraction
  if cell.fault:
    own.data.box_faults[cell.fault] = config.study.fault_sizes[cell.fault]
  arm = configuration.arm(own)
  own.loss.bootstrap, own.loss.teacher = arm.bootstrap, arm.teacher
  return own


def run(config: ConfigDict, workdir, *, report=print) -> str:
  """Trains every cell that is not finished, then writes tables and a plot.

  Args:
    config: the configuration with its `study` part.
    workdir: folder of the study; one folder per cell, `study.json`, `study.md`, `study.png`.
    report: takes lines of text for the person who waits.

  Returns:
    The tables, Markdown, and the paths of the pictures.

  Raises:
    InputError: something in the configuration or the data is wrong.
  """
  workdir = Path(workdir)
  planned = cells(config)
  for cell in planned:
    configuration.check(cell_config(config, cell))
  if config.data.split_file:
    raise InputError("a study draws its own splits: leave config.data.split_file empty")
  known = known_rows(config)
  own = [cell for cell in planned if cell not in known]
  if len(own) < len(planned):
    report(f"{len(planned) - len(own)} of {len(planned)} runs are known from config.study.known.")
  _train_missing(config, own, workdir, report)
  objects = {
    r.image_id: len(r.boxes) for r in data.load_records(config.data, config.data.train_split)
  }
  rows = [known.get(cell) or _row(config, cell, workdir / cell.name, objects) for cell in planned]
  made = made_with(config)
  write_json(workdir / "study.json", {"made_with": made, "cells": rows})
  text = same_for_all(config) + "\n" + tables.tables(rows, tuple(config.data.class_names))
  write_text(workdir / "study.md", text + "\n" + _list_items(made))
  curves.save(workdir / "study.png", [row for row in rows if not row["fault"]])
  pictures = [snapshots.newest(workdir / cell.name) for cell in own]
  paths = [("Plot", workdir / "study.png"), *(("Pictures", path) for path in pictures if path)]
  return text + "\n" + "\n".join(f"{name}: {path}" for name, path in paths)


def known_rows(config: ConfigDict) -> dict[Cell, dict]:
  """What other studies have measured.

  Args:
    config: the configuration, with the paths `study.known`.

  Returns:
    Rows of their `study.json` by cell, of the first one that has it; "made_with" says what made
    the row (command, device, versions), which need not be what makes this study.

  Raises:
    InputError: a file that is no `study.json`, or that of another version or configuration.
  """
  found: dict[Cell, dict] = {}
  ours = _shared(made_with(config)["config"])
  for path in config.study.known:
    content = read_json(path)
    try:
      origin_of_all = dict(content["made_with"])
      theirs, version = _shared(origin_of_all.pop("config")), origin_of_all["boxseg_jax"]
      rows = {
        Cell(*(row[field] for field in Cell._fields)): {"made_with": origin_of_all} | row
        for row in content["cells"]
      }
      complete = all(row["annotation_hours"] >= 0 and row["metrics"] for row in rows.values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise InputError(f"{path}: is damaged: it is no study.json ({error!r})") from error
    if not complete:
      raise InputError(f"{path}: is damaged: a run without metrics")
    if version != __version__:  # only what differs from a version's defaults is written down
      raise InputError(
        f"{path} is a study by boxseg_jax {version}, whose defaults need not be those of "
        f"{__version__}"
      )
    if ours != theirs:
      raise InputError(
        f"{path} is a study of another configuration; where one of the two differs from the "
        "default and the other does not:\n  " + "\n  ".join(sorted(ours ^ theirs))
      )
    found = rows | found
  return found


def _shared(differences):
  """Of a configuration's differences from the default those that all runs of a study share."""
  return {line for line in differences if not line.startswith(_OF_CELLS)}


def _train_missing(config, planned, workdir, report):
  """Trains cell by cell and tells how long the rest will take, going by those before."""
  took = []
  for number, cell in enumerate(planned, start=1):
    own, place = cell_config(config, cell), f"[{number}/{len(planned)}]"
    if cell.arm == "retrained":
      own = retrain.second_config(own, workdir / _first(cell).name)
    if _result(workdir / cell.name).exists():
      refuse_other_configuration(own, workdir / cell.name)
      report(f"{place} {cell.name}: finished earlier")
      continue
    report(f"{place} {cell.name}")
    started = time.monotonic()
    if cell.arm == "retrained":
      _make_masks(config, cell, workdir, report)
    loop.train(own, workdir / cell.name, report=report)
    took.append(time.monotonic() - started)
    missing = sum(not _result(workdir / later.name).exists() for later in planned[number:])
    left = f", about {missing * sum(took) / len(took) / 60:.0f} min left" if missing else ""
    report(f"{place} took {took[-1]:.0f} s{left}")


def _first(cell: Cell) -> Cell:
  """The run whose masks a cell of "retrained" learns from."""
  return cell._replace(arm="uncertainty")


def _make_masks(config, cell, workdir, report):
  first = _first(cell)
  own = cell_config(config, first)
  if not _result(workdir / first.name).exists():
    report(f"First {first.name}, whose masks it learns from")
    loop.train(own, workdir / first.name, report=report)
  retrain.make_masks(own, workdir / first.name, report=report)


def _result(folder):
  return folder / "result.json"


def _row(config, cell, folder, objects):
  """A cell's metrics, and what its annotation would have cost."""
  mask_ids, box_ids = split.read_lists(folder / "split.json")
  masks, boxes = (sum(objects[image_id] for image_id in ids) for ids in (mask_ids, box_ids))
  if not configuration.arm(cell_config(config, cell)).box_images:
    boxes = 0
  seconds = masks * config.study.seconds_per_mask + boxes * config.study.seconds_per_box
  return {
    **cell._asdict(),
    "annotation_hours": seconds / 3600,
    "metrics": read_json(_result(folder)),
  }


def same_for_all(config: ConfigDict) -> str:
  """What the arms have in common, as lines of at most 80 columns."""
  data, model, augment, optimizer = config.data, config.model, config.augment, config.optimizer
  encoder = "" if model.name == "erfnet" else f" on {model.encoder.name}"
  pretrained = ", pretrained" if model.encoder.weights else ""
  crop = augment.crop
  seen = f"crops of {crop[1]}x{crop[0]} pixels" if crop else "images"
  text = (
    f"Every arm: {model.name}{encoder}{pretrained}, {data.canvas[1]}x{data.canvas[0]} pixels, "
    f"{config.train.num_steps} steps of {data.batch_size} {seen}, {optimizer.name} at "
    f"{optimizer.learning_rate:g} ({optimizer.schedule}); scaled by {augment.scale[0]:g} to "
    f"{augment.scale[1]:g}, turned by up to {augment.rotation_degrees:g} degrees, mirrored with "
    f"probability {augment.flip:g}, colours changed."
  )
  return textwrap.fill(text, 80) + "\n"


def made_with(config: ConfigDict) -> dict:
  """What a reader needs to judge or repeat the figures.

  Args:
    config: the configuration of the study.

  Returns:
    Device, versions, and the configuration as differences from the default.
  """
  default = configuration.flatten(configuration.get_config())
  return {
    **origin.here(),
    "config": configuration.differences(default, configuration.flatten(config)),
  }


def _list_items(made):
  """Markdown of `made_with`."""
  changed = "".join(f"  - `{line}`\n" for line in made["config"])
  plain = "".join(f"- {name}: {value}\n" for name, value in made.items() if name != "config")
  return f"{plain}- differences from the default configuration:\n{changed}"
