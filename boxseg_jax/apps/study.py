"""Compares arms, mask fractions and seeds, everything else being equal."""

import itertools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from boxseg_jax import __version__
from boxseg_jax import config as configuration
from boxseg_jax.errors import InputError
from boxseg_jax.training import loop, snapshots
from boxseg_jax.training.run import refuse_other_configuration, write_json


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

  Its own `study` part is emptied, so that a study of more seeds or arms takes over
  the runs of a smaller one, and parts of a study can be run side by side.
  """
  own = config.copy_and_resolve_references()
  with own.unlocked():
    own.study = configuration.get_config().study
    own.arm = cell.arm
    own.seed = cell.seed
    own.data.split_seed = cell.seed
    own.data.mask_fraction = cell.mask_fraction
  return own


def run(config: ConfigDict, workdir, *, report=print) -> str:
  """Trains every cell that is not finished, then writes the table.

  Args:
    config: the configuration with its `study` part.
    workdir: folder of the study; one folder per cell, `study.json`, `study.md`.
    report: takes lines of text for the person who waits.

  Returns:
    The table, Markdown, and the paths of the pictures.

  Raises:
    InputError: something in the configuration or the data is wrong.
  """
  workdir = Path(workdir)
  planned = cells(config)
  for cell in planned:
    configuration.check(cell_config(config, cell))
  if config.data.split_file:
    raise InputError("a study draws its own splits: leave config.data.split_file empty")
  rows = []
  for number, cell in enumerate(planned, start=1):
    result = workdir / cell.name / "result.json"
    if result.exists():
      refuse_other_configuration(cell_config(config, cell), workdir / cell.name)
      report(f"[{number}/{len(planned)}] {cell.name}: finished earlier")
    else:
      report(f"[{number}/{len(planned)}] {cell.name}")
      started = time.monotonic()
      loop.train(cell_config(config, cell), workdir / cell.name, report=report)
      report(f"[{number}/{len(planned)}] took {time.monotonic() - started:.0f} s")
    rows.append({**cell._asdict(), "metrics": json.loads(result.read_text())})
  origin = made_with(config)
  write_json(workdir / "study.json", {"made_with": origin, "cells": rows})
  text = table(rows, tuple(config.data.class_names))
  (workdir / "study.md").write_text(text + "\n" + _list_items(origin))
  pictures = [snapshots.newest(workdir / cell.name) for cell in planned]
  return text + "\n" + "\n".join(f"Pictures: {path}" for path in pictures if path)


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


def table(rows: Iterable[dict], class_names) -> str:
  """A line per arm and mask fraction: means over seeds, IoU in percent.

  Args:
    rows: dicts with "arm", "mask_fraction", "seed", "metrics".
    class_names: background first.

  Returns:
    Markdown. "% of full" and "gap closed" = (arm - masks_only) / (full - masks_only)
    are there where those arms were run; the spread is the standard deviation over seeds.
  """
  groups = {}
  for row in rows:
    groups.setdefault((row["arm"], row["mask_fraction"]), []).append(row["metrics"])
  several = len(class_names) > 2
  head = ["arm", "masks", "seeds", *(class_names[1:] if several else ()), "foreground IoU"]
  head += ["% of full", "gap closed"]
  lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
  full = _mean(groups.get(("full", 1.0)), "foreground_iou")
  for (arm, fraction), metrics in sorted(groups.items(), key=lambda g: (g[0][1], g[0][0])):
    iou = _mean(metrics, "foreground_iou")
    masks_only = _mean(groups.get(("masks_only", fraction)), "foreground_iou")
    spread = np.std([m["foreground_iou"] for m in metrics])
    per_class = [f"{100 * _mean(metrics, f'iou/{name}'):.1f}" for name in class_names[1:]]
    gap = _ratio(iou - masks_only, full - masks_only) if arm != "full" else np.nan
    lines.append(
      [
        arm,
        f"{100 * fraction:g} %",
        str(len(metrics)),
        *(per_class if several else ()),
        f"{100 * iou:.1f}" + (f" ± {100 * spread:.1f}" if len(metrics) > 1 else ""),
        _percent(_ratio(iou, full)),
        _percent(gap),
      ]
    )
  widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
  padded = (
    " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    for line in lines
  )
  return "".join(f"| {line} |\n" for line in padded)


def _mean(metrics, name):
  return float(np.mean([m[name] for m in metrics])) if metrics else np.nan


def _ratio(part, whole):
  return part / whole if whole else np.nan


def _percent(share):
  return "-" if np.isnan(share) else f"{100 * share:.1f} %"
