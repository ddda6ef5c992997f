"""Compares arms, mask fractions and seeds, everything else being equal."""

import itertools
import json
import os
import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from boxseg_jax import __version__, data
from boxseg_jax import config as configuration
from boxseg_jax.apps import curves, tables
from boxseg_jax.errors import InputError
from boxseg_jax.training import loop, snapshots
from boxseg_jax.training.run import refuse_other_configuration, write_json, write_text


class Cell(NamedTuple):
  """One run of the study.

  Attributes:
    arm: see `config.arm`.
    mask_fraction: share of masks; 1.0 for the arm "full".
    seed: of training and of the split.
  """

  arm: str
  mask_fraction: float
  seed: int

  @property
  def name(self) -> str:
    """Folder of the run in the study's workdir."""
    return f"{self.arm}-{100 * self.mask_fraction:g}pct-seed{self.seed}"


def cells(config: ConfigDict) -> list[Cell]:
  """All runs of a study, each once: seed by seed, so that a stopped study is of use.

  Args:
    config: the configuration with its `study` part.

  Returns:
    Cells in the order in which they are run. "full" knows no fraction; at fraction
    0 there is nothing for "masks_only" to learn from.
  """
  fractions = config.study.mask_fractions or (config.data.mask_fraction,)
  seeds = config.study.seeds or (config.seed,)
  found = {}
  for seed, fraction, arm in itertools.product(seeds, fractions, config.study.arms):
    if arm != "masks_only" or fraction > 0:
      found.setdefault(Cell(arm, 1.0 if arm == "full" else float(fraction), int(seed)))
  return list(found)


def cell_config(config: ConfigDict, cell: Cell) -> ConfigDict:
  """The configuration of one run; differs from the study's in arm, fraction and seeds only.

  So a study of more seeds or arms takes over the runs of a smaller one, and parts of a
  study can be run side by side. What an arm fixes is written into `loss`: runs that do not
  use the method of `config.loss` stay valid when it is changed.
  """
  own = config.copy_and_resolve_references()
  own.arm = cell.arm
  own.seed = cell.seed
  own.data.split_seed = cell.seed
  own.data.mask_fraction = cell.mask_fraction
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
  _train_missing(config, planned, workdir, report)
  objects = {
    r.image_id: len(r.boxes) for r in data.load_records(config.data, config.data.train_split)
  }
  rows = [_row(config, cell, workdir / cell.name, objects) for cell in planned]
  origin = made_with(config)
  write_json(workdir / "study.json", {"made_with": origin, "cells": rows})
  text = tables.tables(rows, tuple(config.data.class_names))
  write_text(workdir / "study.md", text + "\n" + _list_items(origin))
  curves.save(workdir / "study.png", rows)
  pictures = [snapshots.newest(workdir / cell.name) for cell in planned]
  paths = [("Plot", workdir / "study.png"), *(("Pictures", path) for path in pictures if path)]
  return text + "\n" + "\n".join(f"{name}: {path}" for name, path in paths)


def _train_missing(config, planned, workdir, report):
  """Trains cell by cell and tells how long the rest will take, going by those before."""
  took = []
  for number, cell in enumerate(planned, start=1):
    own, place = cell_config(config, cell), f"[{number}/{len(planned)}]"
    if _result(workdir / cell.name).exists():
      refuse_other_configuration(own, workdir / cell.name)
      report(f"{place} {cell.name}: finished earlier")
      continue
    report(f"{place} {cell.name}")
    started = time.monotonic()
    loop.train(own, workdir / cell.name, report=report)
    took.append(time.monotonic() - started)
    missing = sum(not _result(workdir / later.name).exists() for later in planned[number:])
    left = f", about {missing * sum(took) / len(took) / 60:.0f} min left" if missing else ""
    report(f"{place} took {took[-1]:.0f} s{left}")


def _result(folder):
  return folder / "result.json"


def _row(config, cell, folder, objects):
  """A cell's metrics, and what its annotation would have cost."""
  split = json.loads((folder / "split.json").read_text())
  masks = sum(objects[image_id] for image_id in split["mask_ids"])
  boxes = sum(objects[image_id] for image_id in split["box_ids"])
  if not configuration.arm(cell_config(config, cell)).box_images:
    boxes = 0
  seconds = masks * config.study.seconds_per_mask + boxes * config.study.seconds_per_box
  return {
    **cell._asdict(),
    "annotation_hours": seconds / 3600,
    "metrics": json.loads(_result(folder).read_text()),
  }


def made_with(config: ConfigDict) -> dict:
  """What a reader needs to judge or repeat the figures.

  Args:
    config: the configuration of the study.

  Returns:
    Device, versions, and the configuration as differences from the default.
  """
  default = configuration.flatten(configuration.get_config())
  return {
    "command": " ".join(["python -m boxseg_jax.main", *map(_quoted, sys.argv[1:])]),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "host cores": os.cpu_count(),
    "python": platform.python_version(),
    "boxseg_jax": __version__,
    **{name: metadata.version(name) for name in ("jax", "flax", "optax")},
    "config": configuration.differences(default, configuration.flatten(config)),
  }


def _quoted(argument):
  """For a shell; tuples of strings stay readable, where shlex would quote every quote."""
  return shlex.quote(argument) if "'" not in argument else f'"{argument}"'


def _list_items(origin):
  """Markdown of `made_with`."""
  changed = "".join(f"  - `{line}`\n" for line in origin["config"])
  plain = "".join(f"- {name}: {value}\n" for name, value in origin.items() if name != "config")
  return f"{plain}- differences from the default configuration:\n{changed}"
