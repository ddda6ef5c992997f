"""A run as one HTML file: what it learned, how, and where it fails."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from boxseg_jax import config as configuration
from boxseg_jax.apps import box_history, report_page, results
from boxseg_jax.data.examples import ExampleReader
from boxseg_jax.data.photos import Photo
from boxseg_jax.evaluation import evaluate, metrics
from boxseg_jax.evaluation.predictor import Decision, Predictor
from boxseg_jax.files import write_text
from boxseg_jax.training import origin
from boxseg_jax.training.progress import Count
from boxseg_jax.training.run import Run
from boxseg_jax.training.step import make_predict_fn

_SHOWN = 4  # images of each kind, at most a third of all


class Score(NamedTuple):
  """How one image of the evaluation split was predicted.

  Attributes:
    index: its position in the split.
    iou: mean over the foreground classes that are in its mask or its prediction, NaN without any.
    certainty: mean where an object is predicted, in [0, 1]; NaN where none is.
  """

  index: int  # type: ignore[assignment]  # hides tuple.index, which a score has no use for
  iou: float
  certainty: float


def run(config: ConfigDict, workdir, *, report=print) -> str:
  """Evaluates the best checkpoint of a run, and writes the page.

  Args:
    config: the configuration of the run.
    workdir: its folder; `report.html` is written there.
    report: takes lines of text for the person who waits.

  Returns:
    The path of the page, as a line of text.

  Raises:
    InputError: no checkpoint there, or one of another configuration.
  """
  opened, step, state = results.open_best(config, workdir, report=report)
  report(f"Looking at the checkpoint of step {step}.")
  predictor = predictor_of(opened, state)
  scores, confusion = judge(predictor, opened.judged, len(config.data.class_names))
  totals = {"confusion": confusion, **opened.box_totals(state)}
  named = evaluate.results(totals, config.data.class_names)
  path = opened.workdir / "report.html"
  write_text(path, _page(opened, step, scores, totals, named, predictor))
  return f"Report: {path}"


def predictor_of(opened: Run, state) -> Predictor:
  """The network of a state, as the run's evaluations show images to it; on one device.

  Args:
    opened: the run.
    state: TrainState.
  """
  config = opened.config
  return Predictor(
    make_predict_fn(opened.model, opened.settings),
    jax.device_put(jax.device_get(state.ema), jax.devices()[0]),
    canvas=tuple(config.data.canvas),
    tiles=config.eval.tiles,
    overlap=config.eval.overlap,
    batch_size=config.eval.batch_size,
    workers=config.data.workers,
  )


def judge(
  predictor: Predictor, reader: ExampleReader, num_classes: int
) -> tuple[list[Score], np.ndarray]:
  """Predicts every image of a split at its own size.

  Args:
    predictor: the network.
    reader: of the split.
    num_classes: number of classes, background included.

  Returns:
    A score for each image, in the order of the split; and the confusion matrix of all, int64
    [num_classes, num_classes], rows = label, columns = predicted.
  """
  total = np.zeros((num_classes, num_classes), np.int64)
  scores, count = [], Count("evaluate")
  for index, decision in _decisions(predictor, reader, range(len(reader))):
    counts = _confusion(reader.records[index].read_labels(), decision.classes, num_classes)
    total += counts
    scores.append(Score(index, metrics.summary(counts)["foreground_iou"], _certainty(decision)))
    count(len(scores), len(reader))
  count.close()
  return sorted(scores, key=lambda score: score.index), total


def _decisions(predictor, reader, indices):
  """(position, Decision) of images of a split."""
  positions = {reader.records[index].image_id: index for index in indices}
  photos = [_as_photo(reader, index) for index in indices]
  for photo, decision in predictor.decisions(photos):
    yield positions[photo.name], decision


def _as_photo(reader, index):
  """An image, fitted to the canvas as it is in every evaluation."""
  record = reader.records[index]
  return Photo(
    record.image_id,
    record.read_image,
    lambda: record.size,
    lambda at_least: _on_canvas(reader, index),
  )


def _on_canvas(reader, index):
  example = reader(index)
  height, width = np.rint(example["extent"] * reader.canvas).astype(int)
  return example["image"][:height, :width]


def _confusion(labels, classes, num_classes):
  known = labels < num_classes
  cells = labels[known].astype(np.int64) * num_classes + classes[known]
  return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _certainty(decision: Decision) -> float:
  # Sigma is learned inside boxes: where no object is, it means little.
  objects = decision.classes > 0
  return float(decision.certainty[objects].mean() / 255) if objects.any() else math.nan


def _page(opened: Run, step, scores, totals, named, predictor):
  config, log = opened.config, _read_log(opened.workdir)
  names, starts = tuple(config.data.class_names), origin.starts(opened.workdir)
  learns_sigma = configuration.arm(config).learns_sigma
  draw = partial(_drawn, predictor, opened.judged)
  sections = {
    "Curves": report_page.curves(log),
    "Classes": report_page.classes(named, totals["confusion"], names),
    "Confusion": report_page.confusion(totals["confusion"], names),
    "Images": report_page.images(ranked(scores, learns_sigma), draw, names, learns_sigma),
    "Boxes": report_page.boxes(box_history.read(opened), names),
    "Sigma": report_page.sigma(totals.get("sigma_histogram"), named, _why_no_sigma(config)),
    "Throughput": report_page.throughput(log, config.data.batch_size, starts),
    "Split": report_page.split(_counts(opened)),
    "Configuration": report_page.configuration(config),
    "Versions": report_page.versions(starts, origin.here()),
  }
  return report_page.page(config, opened.workdir, step, named, sections)


def ranked(scores: Sequence[Score], learns_sigma: bool) -> dict[str, list[Score]]:
  """Images worth a look: the worst, the best, and those that the network doubts most.

  Args:
    scores: of all images.
    learns_sigma: whether certainty means anything.
  """
  count = min(_SHOWN, max(1, len(scores) // 3))
  by_iou = sorted((s for s in scores if not math.isnan(s.iou)), key=lambda s: s.iou)
  kinds = {"Worst": by_iou[:count], "Best": by_iou[::-1][:count]}
  if learns_sigma:
    doubted = [s for s in scores if not math.isnan(s.certainty)]
    kinds["Most uncertain"] = sorted(doubted, key=lambda s: s.certainty)[:count]
  return kinds


def _drawn(predictor, reader, scores):
  """(Score, its Record, its Decision) of some images, in their order."""
  if not scores:
    return []
  found = dict(_decisions(predictor, reader, [score.index for score in scores]))
  return [(score, reader.records[score.index], found[score.index]) for score in scores]


def _why_no_sigma(config):
  if not configuration.arm(config).learns_sigma:
    return f'The arm "{config.arm}" does not learn sigma.'
  return "No box image with a known mask to judge it by, or eval.box_images is 0."


def _counts(opened):
  """(title, number) of what was learned from and judged by."""
  training, records = opened.training, opened.training.reader.records
  boxes = [int((~record.box_is_crowd).sum()) for record in records]
  known = training.known_box_images
  return [
    ("training images with masks", len(training.mask_indices)),
    ("- boxes in them", sum(boxes[i] for i in training.mask_indices)),
    ("training images with boxes only", len(training.box_indices)),
    ("- boxes in them", sum(boxes[i] for i in training.box_indices)),
    ("- of these images, judged by their known masks", len(known) if known else 0),
    (f"images with masks in each batch of {opened.config.data.batch_size}", training.mask_images),
    ("evaluation images", len(opened.judged)),
  ]


def _read_log(workdir) -> dict[str, list[tuple[int, float]]]:
  """(step, value) of each metric by name, without what is no number."""
  path = Path(workdir) / "metrics.jsonl"
  log: dict[str, list[tuple[int, float]]] = {}
  for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      continue  # half a line, of a run that was killed
    if not isinstance(row, dict) or "step" not in row:
      continue
    for name, value in row.items():
      if value is not None and name != "step":
        log.setdefault(name, []).append((row["step"], value))
  return log
