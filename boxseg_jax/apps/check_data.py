"""Tells what is in a data set, and what is wrong with it, before anything is trained."""

import textwrap
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from boxseg_jax import config as configuration
from boxseg_jax.apps import budget, data_page, page
from boxseg_jax.batch import VOID
from boxseg_jax.data import findings, survey, training_set
from boxseg_jax.data.findings import Finding
from boxseg_jax.errors import InputError
from boxseg_jax.training.progress import Count

_WIDTH = 79  # of 80 columns: a full line would wrap on some terminals
_CLASSES = 10  # of which the smallest box is told


def run(config: ConfigDict, workdir, *, report=print) -> str:
  """Reads the training and the evaluation split once, and reports.

  Args:
    config: the configuration.
    workdir: folder for `data.html`, made where it is missing; nothing else is written.
    report: takes lines of text for the person who waits.

  Returns:
    The report, for a terminal of 80 columns.

  Raises:
    InputError: lists every error: what would stop a training or teach something else. The
      report and the page are out by then.
  """
  configuration.check(config)
  readings, found = _read_splits(config)
  summaries = {name: training_set.summarize(config, one) for name, one in readings.items()}
  for name, summary in summaries.items():
    found += [(name, one) for one in training_set.judge(config, name, summary)]
  found += _leaks(config, readings)
  plan, more = (None, []) if _errors(found) else _plan(config, readings)
  found += more
  tables = _tables(config, summaries, plan)
  text = [*_as_text(tables), *_warnings(found)]
  if readings:
    path = Path(workdir) / "data.html"
    data_page.write(path, config, tables, found, readings)
    text.append(f"\nPage: {path}")
  errors = _errors(found)
  if errors:
    report("\n".join(text))
    count = f"{len(errors)} thing{'' if len(errors) == 1 else 's'}"
    raise InputError("\n".join([f"{count} must be put right before a training:", *errors]))
  return "\n".join(text)


def _read_splits(config):
  """What can be read, by split, and findings about what cannot."""
  readings, found = {}, []
  for name in dict.fromkeys((config.data.train_split, config.data.eval_split)):
    count = Count(name)
    try:
      readings[name] = training_set.read_split(config, name, progress=count)
    except InputError as error:
      found.append((name, Finding(True, "cannot be read", (str(error),))))
    finally:
      count.close()
  return readings, found


def _leaks(config, readings):
  names = config.data.train_split, config.data.eval_split
  if not all(name in readings for name in names):
    return []
  pairs = survey.shared_images(*(readings[name].facts for name in names))
  return [(names[1], one) for one in findings.leaks(pairs, names[0])]


def _plan(config, readings):
  """What a run takes, and what else would stop it."""
  train, judged = (readings[name] for name in (config.data.train_split, config.data.eval_split))
  try:
    training = training_set.make_training_set(config, train)
    reader = training_set.make_evaluation_set(config, judged)
    return budget.estimate(config, training, len(reader)), []
  except InputError as error:
    return None, [("the configuration", Finding(True, "no training can start", (str(error),)))]


def _errors(found):
  """Text for each error; they are told once, by the exception that ends the command."""
  return [_wrapped("", name, one) for name, one in found if one.is_error]


# --- Tables: (title, head, lines), the same for the terminal and the page. ---


def _tables(config, summaries, plan):
  tables = [("Images and annotations", ["", *summaries], _counts(summaries))] if summaries else []
  names = tuple(config.data.class_names)
  for split, summary in summaries.items():
    head = ["id", "class", "pixels", "share", "masks", "boxes"]
    tables.append((f"Labels of {split}", head, _labels(summary, names)))
  smallest = [line for name, one in summaries.items() for line in _smallest(name, one, names)]
  if smallest:
    head = ["split", "image", "class", "width", "height"]
    tables.append(("Smallest box of each class, pixels of data.canvas", head, smallest))
  if plan:
    tables.append(("A run of this configuration", ["", ""], _plan_lines(config, plan)))
  return tables


def _counts(summaries):
  """A line per fact, a column per split."""
  columns = [_count_column(summary) for summary in summaries.values()]
  return [[title, *(column[title] for column in columns)] for title in columns[0]]


def _count_column(one):
  fit = np.percentile(one.fits, (50, 10)) if one.fits.size else (np.nan, np.nan)
  side = np.percentile(one.thin_sides, (50, 5)) if one.thin_sides.size else (np.nan, np.nan)
  total = one.covered_total.total()
  return {
    "images": f"{one.images}",
    "- with mask and boxes": f"{one.mask_and_boxes}",
    "- with a mask only": f"{one.mask_only}",
    "- with boxes only": f"{one.boxes_only}",
    "- with neither": f"{one.neither}",
    "- that cannot be used": f"{one.unusable}",
    "- there more than once": f"{sum(len(group) - 1 for group in one.duplicates)}",
    "masks with objects, but no box": f"{len(one.unboxed)}",
    "boxes, but no object in the mask": f"{len(one.unmasked)}",
    "void, share of mask pixels": _percent(one.void_share),
    "boxes": f"{one.boxes.total() + one.crowds}",
    "- around crowds": f"{one.crowds}",
    "- outside of the image": f"{one.outside}",
    "- without area": f"{one.no_area}",
    "boxes against masks, median IoU": _number(fit[0], 2),
    "- a tenth of the boxes is below": _number(fit[1], 2),
    "objects outside of boxes, pixels": _percent(one.uncovered.total() / total if total else 0),
    "shorter side of boxes on canvas, median": _number(side[0], 1),
    "- 5 % of the boxes are below": _number(side[1], 1),
  }


def _labels(summary, names):
  """A line per class, and per value that is none."""
  total = max(summary.values.total(), 1)
  values = sorted({*range(len(names)), *summary.values, *summary.boxes})
  return [
    [
      f"{value}",
      names[value] if value < len(names) else "(void)" if value == VOID else "(no class)",
      f"{summary.values[value]}",
      _percent(summary.values[value] / total),
      f"{summary.images_by_value[value]}",
      f"{summary.boxes[value]}" if value not in (0, VOID) else "",
    ]
    for value in values
  ]


def _smallest(split, summary, names):
  return [
    [split, image, names[label] if label < len(names) else f"{label}", f"{w:.1f}", f"{h:.1f}"]
    for image, label, h, w in summary.smallest[:_CLASSES]
  ]


def _plan_lines(config, plan):
  steps = config.train.num_steps
  lines = []
  for kind, epoch, times in (
    ("mask", plan.mask_steps, plan.mask_epochs),
    ("box", plan.box_steps, plan.box_epochs),
  ):
    if epoch:
      seen = f"{_steps(epoch)}; {times:.{1 if times < 100 else 0}f} epochs in {_steps(steps)}"
      lines.append([f"all {kind} images once", seen])
  lines.append(["parameters", f"{plan.parameters:,}"])
  total = plan.state_bytes + plan.step_bytes
  device = f"about {_size(total)}, {_size(plan.state_bytes)} of it parameters and optimiser"
  lines.append(["memory of each device", device])
  cached = f"{_size(plan.cache_bytes)} for decoded images" if plan.cache_bytes else "no images kept"
  lines.append(["memory of the host", cached])
  return lines


def _percent(share):
  return "-" if np.isnan(share) else f"{100 * share:.1f} %"


def _number(value, digits):
  return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _steps(count):
  return f"{count} step{'' if count == 1 else 's'}"


def _size(count):
  if count < 2**20:
    return f"{count / 2**10:.0f} KiB"
  return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


# --- The terminal. ---


def _as_text(tables):
  for title, head, lines in tables:
    yield f"\n{title}"
    rows = [head, *lines] if any(head) else lines
    numeric = [all(page.is_number(cell) for cell in cells) for cells in zip(*lines, strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
      # Words to the left, numbers to the right.
      cells = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
      ]
      yield f"  {'  '.join(cells)}".rstrip()


def _warnings(found):
  if not found:
    return ["\nNothing is wrong with these data."]
  return ["\n" + _wrapped("warning: ", name, one) for name, one in found if not one.is_error]


def _wrapped(kind, split, finding):
  """Sentences are broken, items are not: paths in them can be copied."""
  sentence = textwrap.fill(
    f"{kind}{split}: {finding.text}",
    _WIDTH,
    subsequent_indent="  ",
    break_long_words=False,
    break_on_hyphens=False,
  )
  return finding._replace(text=sentence).message()
