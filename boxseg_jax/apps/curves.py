"""What a study found, as a plot: IoU over the share of masks and over annotation time."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Told apart by people who see few colours (Okabe and Ito 2008), and by their marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = "osD^vPX*<>"


def save(path: Path, rows: Iterable[dict]) -> None:
  """Draws IoU over mask fraction and over annotation hours, one line per arm.

  Args:
    path: of the PNG.
    rows: dicts with "arm", "mask_fraction", "seed", "metrics" and "annotation_hours". Points are
      means over seeds, bars one standard deviation to each side.
  """
  arms: dict[str, dict[float, list[dict]]] = {}
  for row in rows:
    arms.setdefault(row["arm"], {}).setdefault(row["mask_fraction"], []).append(row)
  figure = Figure(figsize=(10, 4.2), layout="constrained")
  by_masks, by_hours = figure.subplots(1, 2, sharey=True)
  for number, (arm, fractions) in enumerate(arms.items()):
    style = {
      "color": COLOURS[number % len(COLOURS)],
      "marker": MARKS[number % len(MARKS)],
      "markersize": 5,
      "capsize": 3,
      "label": arm,
    }
    cells = [fractions[fraction] for fraction in sorted(fractions)]
    iou = [[100 * row["metrics"]["foreground_iou"] for row in cell] for cell in cells]
    heights, spread = [np.mean(v) for v in iou], [np.std(v) for v in iou]
    hours = [np.mean([row["annotation_hours"] for row in cell]) for cell in cells]
    if arm == "full":  # one value, the mark to reach
      by_masks.axhline(heights[0], color=style["color"], linestyle="--", linewidth=1)
    else:
      percent = [100 * fraction for fraction in sorted(fractions)]
      by_masks.errorbar(percent, heights, spread, **style)
    by_hours.errorbar(hours, heights, spread, **style)
  _label(by_masks, by_hours, arms)
  figure.savefig(path, dpi=120)


def _label(by_masks, by_hours, arms):
  percents = sorted({100 * f for fractions in arms.values() for f in fractions if f < 1})
  by_masks.set_xscale("symlog", linthresh=1)
  by_masks.margins(x=0.1)
  by_masks.set_xticks(percents, [f"{p:g}" for p in percents])
  by_masks.minorticks_off()
  by_masks.set_xlabel("images with masks, % (all others have boxes)")
  by_masks.set_ylabel("foreground IoU, %")
  by_hours.set_xscale("log")
  by_hours.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  by_hours.xaxis.set_major_formatter("{x:g}")
  by_hours.xaxis.set_minor_formatter(NullFormatter())
  by_hours.set_xlabel("annotation time, hours")
  for axes in (by_masks, by_hours):
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
  by_hours.legend(frameon=False, fontsize=8)
