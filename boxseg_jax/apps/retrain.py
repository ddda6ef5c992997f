"""A second network, taught by the masks that a first one made of its boxes.

While the first one trains, the masks of its boxes are as good as it is by then. At the end it, its
rules and its refiner make better ones. A network that learns from these as from true masks, all
images alike, comes close to one of all masks (launch/results/method.md): better than the first
where that was behind it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from boxseg_jax.apps import label, refine, results
from boxseg_jax.apps.model import load
from boxseg_jax.data import labels, split, training_set
from boxseg_jax.data.records import Record
from boxseg_jax.errors import InputError
from boxseg_jax.files import read_json, write_json
from boxseg_jax.training import loop, saved
from boxseg_jax.training.run import refuse_other_configuration

_MASKS = "pseudo_masks"  # in the first run's workdir
_FOLDER = "retrained"
_MAKER = "masks_made_by.json"  # in it


def run(config: ConfigDict, workdir, *, report: Callable[[str], None] = print) -> str:
  """Makes masks of the boxes of a run and trains a second network by them, in `retrained`.

  Args:
    config: of the run.
    workdir: of the run, which is finished. Started again, all of it goes on.
    report: takes lines of text for the person who waits.

  Returns:
    The second network's metrics, and what the first one had.

  Raises:
    InputError: no finished run there, another configuration, a second network that learned from
      other masks, or what training finds wrong.
  """
  workdir = Path(workdir)
  if not (workdir / "result.json").exists():
    raise InputError(f"{workdir} holds no finished run; only a finished one makes good masks")
  maker = make_masks(config, workdir, report=report)
  _refuse_other_maker(workdir / _FOLDER, maker)
  own, first = second_config(config, workdir), read_json(workdir / "result.json")
  found = loop.train(own, workdir / _FOLDER, report=report)
  text, name = results.table(found, workdir / _FOLDER), own.train.best_metric
  if name in found and name in first:
    text += f"\n{name} {100 * found[name]:.1f} %, of the first network {100 * first[name]:.1f} %."
  return text


def _refuse_other_maker(folder: Path, maker: str) -> None:
  """So that a first network that is refined anew is not told the old second one's figures."""
  path = folder / _MAKER
  if path.exists() and read_json(path).get("fingerprint") != maker:
    raise InputError(
      f"{folder} learned from masks of another network or refiner than those made now; "
      "remove or rename it to train it anew"
    )
  write_json(path, {"fingerprint": maker})


def second_config(config: ConfigDict, workdir) -> ConfigDict:
  """The configuration of the second network, that of the run but for what it learns from.

  Args:
    config: of the run.
    workdir: of the run, with what `make_masks` makes.
  """
  own, workdir = config.copy_and_resolve_references(), Path(workdir)
  own.arm, own.data.pseudo_masks = "retrained", str(workdir / _MASKS / "labels")
  own.data.split_file = str(workdir / "split.json")
  return own


def make_masks(config: ConfigDict, workdir: Path, *, report: Callable[[str], None] = print) -> str:
  """Makes masks of the boxes that a run has learned from, in its `pseudo_masks`.

  Where the run has masks, they teach it a refiner first (`refine`), unless it has one. True masks
  of box images take no part: they are taken from the records before anything looks at these.

  Args:
    config: of the run.
    workdir: of the run. Started again, it goes on.
    report: takes lines of text for the person who waits.

  Returns:
    Fingerprint of the network and its refiner.

  Raises:
    InputError: no trained network there, another configuration, no box image, or images that
      cannot be read.
  """
  refuse_other_configuration(config, workdir)
  model, path = load(workdir), workdir / "split.json"
  if not path.exists():
    raise InputError(f"{workdir} is no run: only there it is known which masks may be learned from")
  mask_ids, box_ids = split.read_lists(path)
  if not box_ids:
    raise InputError(f"{workdir} learned from masks alone; there are no boxes to make masks of")
  records = _box_records(config, set(box_ids), report)
  labels.require_own_files(str(workdir), [record.image_id for record in records])
  if mask_ids and model.network.refiner is None:
    try:
      report(refine.run(config, workdir, report=report))
    except InputError as error:  # as where no object is large enough to learn from
      report(f"Masks are made by rules alone: {error}")
    model = load(workdir)
  made, rate, broken = label.make(config, model, records, workdir / _MASKS, report=report)
  if broken:
    raise InputError("masks of all boxes are needed, but " + "; ".join(broken))
  where = second_config(config, workdir).data.pseudo_masks
  label.write_index_images(records, made, Path(where), len(config.data.class_names))
  report(f"Masks of the boxes of {len(records)} images ({rate}): {where}")
  return saved.fingerprint(model.network)


def _box_records(config, box_ids, report) -> list[Record]:
  """The box images as the run had them, with faults that were made on purpose; without masks."""
  training = training_set.open_training_set(config, report=report)
  return [
    replace(record, read_labels=None, labels_source="", masked_boxes=frozenset(), regions=())
    for record in training.reader.records
    if record.image_id in box_ids
  ]
