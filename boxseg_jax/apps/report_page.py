"""The sections of a run's report, as HTML."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from boxseg_jax import config as defaults
from boxseg_jax.apps import box_history, svg
from boxseg_jax.apps.page import document, image, legend, safe, table
from boxseg_jax.apps.svg import Series
from boxseg_jax.evaluation import metrics, pictures

_TILE, _CROP = 320, 96  # pixels
_QUALITY = 84  # of JPEGs
_GREY = 40  # lines of single boxes
_STYLE = """
nav { margin: 0.8em 0 1.4em; } nav a { margin-right: 1.1em; display: inline-block; }
.numbers { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 1.2em 0; }
.numbers div { color: var(--dim); font-size: 13px; }
.numbers b { display: block; font-size: 1.9rem; font-weight: 600; color: var(--ink);
             font-variant-numeric: tabular-nums; line-height: 1.2; }
h3 { font-size: 1em; margin: 1.4em 0 0.4em; }
.card { margin: 0 0 16px; } .card > p { margin: 0 0 4px; font-size: 13px; overflow-wrap: anywhere; }
.tiles { display: grid; gap: 8px; grid-template-columns: repeat(4, minmax(0, 1fr)); }
.tiles img { height: auto; } .history { display: flex; flex-wrap: wrap; gap: 6px; }
.history figure { width: 76px; } .history img { height: auto; }
.history figcaption { text-align: center; font-size: 12px; }
.confusion td, .confusion th { padding: 6px 10px; border: 1px solid var(--paper); }
.confusion td, .confusion thead th + th { text-align: right; }
.confusion thead th { vertical-align: bottom; }
.confusion .deep { color: #fff; } .changed td { font-weight: 600; }
.changed td:first-child { box-shadow: inset 3px 0 var(--bar); }
.config td:first-child { padding-left: 8px; }
.config td { overflow-wrap: anywhere; min-width: 90px; }
summary { cursor: pointer; color: var(--link); }
code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
@media (max-width: 620px) { .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""
_LOSSES = {
  "loss": "all",
  "loss_mask": "masks",
  "loss_outside": "outside boxes",
  "loss_box": "inside boxes",
  "loss_sigma": "sigma",
  "loss_projection": "projection",
  "loss_teacher": "teacher",
}


def page(
  config: ConfigDict,
  workdir: Path,
  step: int,
  named: Mapping[str, float],
  sections: Mapping[str, str],
) -> str:
  """The whole page.

  Args:
    config: the configuration.
    workdir: of the run.
    step: of the checkpoint that was evaluated.
    named: metrics in [0, 1] by name.
    sections: HTML by title, in their order.
  """
  name = f"Run {workdir.resolve().name}"
  links = " ".join(f"<a href='#{_anchor(title)}'>{safe(title)}</a>" for title in sections)
  root = f", {config.data.root}" if config.data.root else ""
  sub = (
    f"Arm {config.arm}, source {config.data.source}{root}; the checkpoint of step {step:,} of "
    f"{config.train.num_steps:,}, judged by {config.data.eval_split}"
  )
  body = [
    f"<h1>{safe(name)}</h1><p class='sub'>{safe(sub)}</p>",
    _headline(named),
    f"<nav>{links}</nav>",
    *(
      f"<section id='{_anchor(title)}'><h2>{safe(title)}</h2>\n{content}</section>"
      for title, content in sections.items()
    ),
  ]
  return document(name, body, svg.STYLE + _STYLE)


def _anchor(title):
  return title.lower().replace(" ", "-")


def _note(text):
  return f"<p class='note'>{safe(text)}</p>"


def _percent(share):
  return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _headline(named):
  shown = {
    "foreground_iou": "foreground IoU",
    "miou": "mean IoU with background",
    "pixel_accuracy": "pixels right",
    "boxes/mask_iou": "IoU of masks made in boxes",
    "boxes/sigma_auroc": "AUROC of sigma",
  }
  items = (
    f"<div><b>{_percent(named[name])}</b>{safe(title)}</div>"
    for name, title in shown.items()
    if name in named
  )
  return f"<div class='numbers'>{''.join(items)}</div>"


def curves(log: Mapping[str, Sequence[tuple[int, float]]]) -> str:
  """Loss, IoU, learning rate, speed and memory over steps.

  Args:
    log: (step, value) by name, as in `metrics.jsonl`.
  """

  def of(name, factor=1.0):
    return [(step, factor * value) for step, value in log.get(name, ())]

  overlap = [
    Series("batches, as augmented", of("train/mask_iou", 100)),
    Series("evaluation", of("eval/foreground_iou", 100)),
    Series("masks made in boxes", of("eval/boxes/mask_iou", 100)),
  ]
  charts = [
    svg.lines("Loss", [Series(told, of(f"train/{name}")) for name, told in _LOSSES.items()]),
    svg.lines("IoU of the foreground, %", overlap, unit=" %", top=100),
    svg.lines(
      "Mean certainty inside boxes", [Series("1 / kappa", of("train/certainty_box"))], top=1
    ),
    svg.lines("Norm of the gradient", [Series("before clipping", of("train/grad_norm"))]),
    svg.lines("Learning rate", [Series("learning rate", of("train/learning_rate"))]),
    svg.lines("Images per second", [Series("images/s", of("train/images_per_second"))]),
    svg.lines(
      "Time spent waiting for input, %",
      [Series("of all time", of("train/input_wait_share", 100))],
      unit=" %",
    ),
    svg.lines(
      "Memory, GiB",
      [
        Series("host", of("train/host_memory_gib")),
        Series("fullest device, peak", of("train/device_memory_gib")),
      ],
    ),
  ]
  drawn = "".join(charts)
  return f"<div class='charts'>{drawn}</div>" if drawn else _note("metrics.jsonl holds no numbers.")


def classes(named: Mapping[str, float], counts: np.ndarray, names: Sequence[str]) -> str:
  """IoU by class.

  Args:
    named: metrics in [0, 1] by name.
    counts: confusion matrix, rows = label.
    names: of the classes.
  """
  in_boxes = [_percent(named.get(f"boxes/mask_iou/{name}", math.nan)) for name in names]
  shares = map(_percent, counts.sum(1) / max(counts.sum(), 1))
  ious = [_percent(named[f"iou/{name}"]) for name in names]
  columns = {"class": names, "share of pixels": shares}
  if "boxes/mask_iou" in named:
    columns["IoU of masks made in boxes"] = in_boxes
  columns["IoU"] = ious
  head, lines = list(columns), list(map(list, zip(*columns.values(), strict=True)))
  return table(head, lines, bar="IoU")


def confusion(counts: np.ndarray, names: Sequence[str]) -> str:
  """Where the pixels of each class went.

  Args:
    counts: int [classes, classes], rows = label.
    names: of the classes.
  """
  heads = "".join(f"<th>{safe(name)}</th>" for name in names)
  rows = [_confusion_row(name, row, names) for name, row in zip(names, counts, strict=True)]
  note = (
    "Share of each class's pixels, in percent, by what they are taken for; each row sums to 100."
  )
  return (
    f"{_note(note)}<div class='scroll'><table class='confusion'><thead><tr><th>true class</th>"
    f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def _confusion_row(name, row, names):
  shares = row / max(row.sum(), 1)
  cells = []
  for other, count, share in zip(names, row.tolist(), shares.tolist(), strict=True):
    told = safe(f"{count:,} pixels of {name} taken for {other}")
    kind = " class='deep'" if share > 0.75 else ""
    colour = f"background:rgba(0,100,160,{0.06 + 0.9 * share:.2f})"
    cells.append(f"<td{kind} style='{colour}' title='{told}'>{100 * share:.1f}</td>")
  return f"<tr><th>{safe(name)}</th>{''.join(cells)}</tr>"


def images(kinds: Mapping, draw: Callable, names: Sequence[str], learns_sigma: bool) -> str:
  """Some images of the evaluation split.

  Args:
    kinds: title -> scores, see `report.ranked`.
    draw: scores -> (Score, Record, Decision) of each.
    names: of the classes.
    learns_sigma: whether certainty means anything.
  """
  about = "By the mean IoU of the foreground classes in an image or its prediction. "
  about += "Certainty: dark = doubtful; its number is the mean where an object is predicted."
  without = "This arm does not learn sigma, so nothing is said of certainty."
  parts = [_note(about if learns_sigma else f"{about.split('. ')[0]}. {without}"), legend(names)]
  for title, scores in kinds.items():
    parts.append(f"<h3>{safe(title)}</h3>")
    parts += [
      _card(score, record, decision, len(names), learns_sigma)
      for score, record, decision in draw(scores)
    ]
    parts += [] if scores else [_note("None: no image has an object in its mask or prediction.")]
  return "\n".join(parts)


def _card(score, record, decision, num_classes, learns_sigma):
  views = pictures.judged(
    record.read_image(),
    record.read_labels(),
    decision.classes,
    decision.certainty / 255 if learns_sigma else None,
    num_classes,
    side=_TILE,
  )
  tiles = "".join(
    f"<figure>{image(view, f'{record.image_id}: {title}', quality=_QUALITY)}"
    f"<figcaption>{title}</figcaption></figure>"
    for title, view in views.items()
  )
  told = f", IoU {_percent(score.iou)}"
  told += f", certainty {score.certainty:.2f}" if learns_sigma else ""
  caption = f"<p><b>{safe(record.image_id)}</b>{safe(told)}</p>"
  return f"<div class='card'>{caption}<div class='tiles'>{tiles}</div></div>"


def boxes(history: "box_history.History | str", names: Sequence[str]) -> str:
  """How the targets inside boxes changed.

  Args:
    history: of the run, or why there is none.
    names: of the classes.
  """
  if isinstance(history, str):
    return _note(history)
  steps = list(history.targets)
  about = (
    f"What is learned inside the {len(history.boxes)} boxes of {len(history.images.names)} "
    "training images that were given no mask, from the moving average of the network."
  )
  if not history.is_whole:
    about += " This run kept no targets: shown are its start and the checkpoints that are left."
  known = any(not math.isnan(value) for box in history.boxes for value in box.iou)
  charts = [_box_chart("Share of the box taken for its class, %", steps, history.boxes, "filled")]
  if known:
    charts.append(
      _box_chart("IoU with the true mask, inside the box, %", steps, history.boxes, "iou")
    )
  rows = [_box_row(history, box, steps, names) for box in box_history.chosen(history.boxes)]
  shown = "Grey: single boxes. Below: some of them, small and large ones of each class."
  return f"{_note(about)}<div class='charts'>{''.join(charts)}</div>{_note(shown)}" + "\n".join(
    rows
  )


def _box_chart(title, steps, followed, name):
  values = 100 * np.array([getattr(box, name) for box in followed])
  seen = values[~np.isnan(values).any(axis=1)]
  spread = seen[:: math.ceil(len(seen) / _GREY) or 1].tolist()  # more would hide each other
  every = [Series("", list(zip(steps, row, strict=True)), is_faint=True) for row in spread]
  mean = seen.mean(axis=0).tolist() if len(seen) else []
  average = Series("mean over boxes", list(zip(steps, mean, strict=bool(mean))))
  return svg.lines(title, [*every, average], unit=" %", top=100)


def _box_row(history, box, steps, names):
  images, known = history.images, not math.isnan(box.iou[-1])
  tiles = pictures.box_history(
    images.image[box.image],
    images.boxes[box.image, box.slot],
    [box_history.with_background(target[box.image]) for target in history.targets.values()],
    images.true_labels[box.image] if known else None,
    label=box.label,
    side=_CROP,
  )
  titles = ["image", *(f"step {step:,}" for step in steps), *["true mask"] * known]
  shown = "".join(
    f"<figure>{image(tile, title, quality=_QUALITY)}<figcaption>{title}</figcaption></figure>"
    for tile, title in zip(tiles, titles, strict=True)
  )
  told = f"{names[box.label]} in {images.names[box.image]}: filled {_from_to(box.filled)}"
  told += f", IoU {_from_to(box.iou)}" if known else ""
  return f"<div class='card'><p>{safe(told)}</p><div class='history'>{shown}</div></div>"


def _from_to(values):
  return f"{100 * values[0]:.0f} \u2192 {100 * values[-1]:.0f} %"


def sigma(histogram: np.ndarray | None, named: Mapping[str, float], why_not: str) -> str:
  """Whether the certainty of boxes is what it says.

  Args:
    histogram: of `metrics.uncertainty_histogram`, None where nothing was measured.
    named: metrics in [0, 1] by name.
    why_not: what to say then.
  """
  if histogram is None or not histogram.sum():
    return _note(why_not)
  bins = metrics.reliability(histogram)
  title = "Wrong pixels of boxes: expected by sigma (across), observed (up), %"
  chart = svg.reliability(title, 1 - bins.certainty, 1 - bins.right, bins.pixels)
  lines = [
    ["AUROC: a wrong pixel is less certain than a right one", _percent(named["boxes/sigma_auroc"])],
    ["expected calibration error", _percent(named["boxes/sigma_calibration_error"])],
    ["pixels inside boxes", f"{int(histogram.sum()):,}"],
    ["- whose box's class is wrong", _percent(float(histogram[1].sum() / histogram.sum()))],
  ]
  about = (
    "Inside boxes of training images whose masks are known and were never learned from. A pixel is "
    "wrong if its true label is not the class of its box; expected is 1 - certainty. On the dashed "
    "line both agree; the larger a dot, the more pixels."
  )
  return f"{_note(about)}{table(['', ''], lines)}<div class='charts'>{chart}</div>"


def throughput(log: Mapping, batch_size: int, starts: Sequence[Mapping]) -> str:
  """Speed and duration.

  Args:
    log: (step, value) by name, as in `metrics.jsonl`.
    batch_size: images per step.
    starts: of `origin.starts`.
  """
  rates = log.get("train/images_per_second", [])
  lines = []
  if rates:
    speeds = [rate for _, rate in rates]
    lines.append(["images per second, median of the log", svg.number(float(np.median(speeds)))])
    lines.append(
      ["- slowest and fastest", f"{svg.number(min(speeds))} to {svg.number(max(speeds))}"]
    )
    steps = np.diff([0, *(step for step, _ in rates)])
    seconds = float(np.sum(steps * batch_size / np.array(speeds)))
    lines.append(["training steps alone, by these rates", f"about {_duration(seconds)}"])
  if starts and all("seconds" in start for start in starts):
    total = sum(start["seconds"] for start in starts)
    told = _duration(total) + (f" in {len(starts)} starts" if len(starts) > 1 else "")
    lines.append(["with compilation, evaluations and checkpoints", told])
  return table(["", ""], lines) if lines else _note("metrics.jsonl holds no rates.")


def _duration(seconds):
  minutes = seconds / 60
  if minutes < 2:
    return f"{seconds:.0f} s"
  return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def split(counts: Sequence[tuple[str, int]]) -> str:
  """What was learned from.

  Args:
    counts: (title, number).
  """
  return table(["", ""], [[title, f"{count:,}"] for title, count in counts])


def configuration(config: ConfigDict) -> str:
  """Every value, those that are not the default marked.

  Args:
    config: the configuration.
  """
  values = defaults.flatten(config)
  default = defaults.flatten(defaults.get_config())
  changed = [key for key in values if values[key] != default[key]]
  rows = "".join(
    f"<tr{' class=changed' * (key in changed)}><td>{safe(key)}</td><td>{safe(value)}</td>"
    f"<td>{safe(default[key]) if key in changed else ''}</td></tr>"
    for key, value in values.items()
  )
  return (
    f"<details><summary>{len(changed)} of {len(values)} values are not the default</summary>"
    "<div class='scroll'><table class='config'><tr><th>key</th><th>value</th><th>default</th></tr>"
    f"{rows}</table></div></details>"
  )


def versions(starts: Sequence[Mapping], here: Mapping) -> str:
  """What made the run, and what made this page.

  Args:
    starts: of `origin.starts`.
    here: of `origin.here`.
  """
  trained = starts[-1] if starts else {}
  lines = [[key, str(trained.get(key, "-")), str(here[key])] for key in here if key != "command"]
  parts = [table(["", "training", "this page"], lines)]
  for start in starts:
    told = f"Started {start['started']} at step {start['step']:,}: "
    parts.append(f"<p>{safe(told)}<code>{safe(start['command'])}</code></p>")
  if not starts:
    parts.append(_note("What trained this run was not written down: it is of an earlier version."))
  return "".join(parts)
