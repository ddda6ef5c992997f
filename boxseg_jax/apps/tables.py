"""What a study found, as Markdown tables that fit a terminal."""

import html
from collections.abc import Iterable, Sequence

import numpy as np


def tables(rows: Iterable[dict], class_names: Sequence[str]) -> str:
  """Tables with a line per arm and mask fraction: means over seeds.

  Args:
    rows: dicts with "arm", "mask_fraction", "seed", "fault" ("" = none) and "metrics" (see
      `evaluation.evaluate.results`).
    class_names: background first.

  Returns:
    Markdown. First the foreground IoU in percent with its standard deviation over seeds, "% of
    full", and "gap closed" = (arm - masks_only) / (full - masks_only), where those arms were run;
    then the IoU by class, if there are several; then what the method made of the boxes of training
    images: IoU of the masks inside boxes, AUROC and calibration error of sigma; then the foreground
    IoU under each fault of the boxes, and the points that it cost.
  """
  rows = list(rows)
  faulty = [row for row in rows if row["fault"]]
  groups = grouped(row for row in rows if not row["fault"])
  parts = [_overall(groups)]
  if len(class_names) > 2:
    names = [f"iou/{name}" for name in class_names[1:]]
    parts.append(_measured(groups, dict(zip(class_names[1:], names, strict=True))))
  inside = {
    "masks in boxes": "boxes/mask_iou",
    "AUROC of sigma": "boxes/sigma_auroc",
    "calibration error": "boxes/sigma_calibration_error",
  }
  learned = {cell: runs for cell, runs in groups.items() if "boxes/mask_iou" in runs[0]}
  if learned:
    parts.append(_measured(learned, inside))
  if faulty:
    parts.append(_robustness(groups, faulty))
  return "\n".join(parts)


def _robustness(groups, faulty):
  """IoU with faulty boxes beside that with right ones; columns: a pair for each fault."""
  faults = dict.fromkeys(row["fault"] for row in faulty)
  spoilt = {fault: grouped(r for r in faulty if r["fault"] == fault) for fault in faults}
  lines = []
  for cell in dict.fromkeys(cell for fault in faults for cell in spoilt[fault]):
    right = _mean(groups.get(cell), "foreground_iou")
    ious = [_mean(spoilt[fault].get(cell), "foreground_iou") for fault in faults]
    told = [f"{_number(iou)} ({100 * (iou - right):+.1f})" for iou in ious]
    lines.append([*_labels(*cell), _number(right), *told])
  return markdown(["arm", "masks", "right boxes", *faults], lines)


def grouped(rows: Iterable[dict]) -> dict[tuple[str, float], list[dict]]:
  """Metrics of the seeds by (arm, mask fraction), fewest masks first."""
  groups: dict[tuple[str, float], list[dict]] = {}
  for row in sorted(rows, key=lambda row: row["mask_fraction"]):
    groups.setdefault((row["arm"], row["mask_fraction"]), []).append(row["metrics"])
  return groups


def _overall(groups):
  head = ["arm", "masks", "seeds", "IoU", "% of full", "gap closed"]
  full = _mean(groups.get(("full", 1.0)), "foreground_iou")
  lines = []
  for (arm, fraction), runs in groups.items():
    iou = _mean(runs, "foreground_iou")
    masks_only = _mean(groups.get(("masks_only", fraction)), "foreground_iou")
    gap = _ratio(iou - masks_only, full - masks_only) if arm != "full" else np.nan
    spread = np.std([metrics["foreground_iou"] for metrics in runs])
    lines.append(
      [
        *_labels(arm, fraction),
        str(len(runs)),
        f"{100 * iou:.1f}" + (f" ± {100 * spread:.1f}" if len(runs) > 1 else ""),
        _percent(_ratio(iou, full)),
        _percent(gap),
      ]
    )
  return markdown(head, lines)


def _measured(groups, columns):
  """A table of metrics in percent; columns: title -> metric."""
  lines = [
    [*_labels(*cell), *(_number(_mean(runs, name)) for name in columns.values())]
    for cell, runs in groups.items()
  ]
  return markdown(["arm", "masks", *columns], lines)


def _labels(arm, fraction):
  return arm, f"{100 * fraction:g} %"


def cell(value) -> str:
  """A value as it stands in a cell of Markdown: what would end the cell or be HTML is escaped."""
  text = " ".join(html.escape(str(value), quote=False).split())
  return text.replace("\\", "\\\\").replace("|", "\\|")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """A Markdown table: two columns to the left, numbers to the right, padded for a terminal."""
  rule = ["---"] * 2 + ["---:"] * (len(head) - 2)
  table = [[cell(one) for one in line] for line in (head, rule, *lines)]
  widths = [max(len(line[i]) for line in table) for i in range(len(head))]
  padded = (
    " | ".join(
      text.ljust(width) if column < 2 else text.rjust(width)
      for column, (text, width) in enumerate(zip(line, widths, strict=True))
    )
    for line in table
  )
  return "".join(f"| {line} |\n" for line in padded)


def _mean(runs, name):
  return float(np.mean([metrics.get(name, np.nan) for metrics in runs])) if runs else np.nan


def _ratio(part, whole):
  return part / whole if whole else np.nan


def _percent(share):
  return "-" if np.isnan(share) else f"{100 * share:.1f} %"


def _number(share):
  return "-" if np.isnan(share) else f"{100 * share:.1f}"
