"""What is in a data set, as one HTML file that needs nothing else: tables, findings, pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from boxseg_jax.apps.page import document, image, legend, safe, table
from boxseg_jax.data.findings import Finding
from boxseg_jax.data.records import Record
from boxseg_jax.data.training_set import Reading
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import pictures
from boxseg_jax.files import write_text

_PICTURES = 6  # of each split
_LISTED = 200  # items of one finding
_STYLE = """
.finding { border-left: 5px solid; padding: 6px 14px; margin: 10px 0; background: var(--soft); }
.error { border-color: #c22; } .warning { border-color: #e69f00; } .fine { border-color: #009e73; }
.finding ul { margin: 6px 0 0; padding-left: 1.3em; max-height: 14em; overflow: auto;
              font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
figure { max-width: 340px; } figure img { height: auto; }
"""


def write(
  path: Path,
  config: ConfigDict,
  tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
  found: Sequence[tuple[str, Finding]],
  readings: Mapping[str, Reading],
) -> None:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file; its folder is made where it is missing.
    config: the configuration.
    tables: (title, head, lines of cells).
    found: (split, finding).
    readings: splits by name, for pictures of images that findings are about, and some others.

  Raises:
    InputError: the file cannot be written.
  """
  write_text(path, _page(config, tables, found, readings))


def _page(config, tables, found, readings):
  names = tuple(config.data.class_names)
  where = f"source {config.data.source}" + (f", {config.data.root}" if config.data.root else "")
  parts = [
    f"<h1>What is in the data</h1><p class='sub'>{safe(where)}</p>",
    *(_finding(split, one) for split, one in found),
  ]
  if not found:
    parts.append("<div class='finding fine'>Nothing is wrong with these data.</div>")
  for title, head, lines in tables:
    parts += [f"<h2>{safe(title)}</h2>", table(head, lines, bar="share" if "share" in head else "")]
  for split, reading in readings.items():
    parts += [f"<h2>Pictures of {safe(split)}</h2>", legend(names), "<div class='pictures'>"]
    for record in _chosen(reading, [one for name, one in found if name in (split, "")]):
      parts.append(_figure(record, len(names)))
    parts.append("</div>")
  return document(f"Data: {where}", parts, _STYLE)


def _finding(split, one):
  kind = "error" if one.is_error else "warning"
  items = [f"<li>{safe(item)}</li>" for item in one.items[:_LISTED]]
  if len(one.items) > _LISTED:
    items.append(f"<li>and {len(one.items) - _LISTED} more</li>")
  listed = f"<ul>{''.join(items)}</ul>" if items else ""
  return (
    f"<div class='finding {kind}'><b>{kind.capitalize()}</b>, {safe(split)}: "
    f"{safe(one.text)}{listed}</div>"
  )


def _chosen(reading: Reading, found: Sequence[Finding]) -> list[Record]:
  """A few records: those that findings name, then some spread over the split."""
  by_name = {record.image_id: record for record in reading.records}
  told = " \n".join(f"{item} " for one in found for item in one.items)
  named = [name for name in by_name if f"{name} " in told or f"image {name}:" in told]
  spread = list(by_name)[:: max(1, len(by_name) // _PICTURES)]
  names = dict.fromkeys([*named[: _PICTURES // 2], *spread])
  return [by_name[name] for name in list(names)[:_PICTURES]]


def _figure(record: Record, num_classes: int) -> str:
  caption = f"{safe(record.image_id)}, {record.size[1]} x {record.size[0]}"
  try:
    picture = _draw(record, num_classes)
  except InputError as error:
    return f"<figure><figcaption>{caption}: {safe(error)}</figcaption></figure>"
  shown = image(picture, record.image_id)
  return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _draw(record, num_classes):
  labels = None if record.read_labels is None else record.read_labels()
  known = [i for i, label in enumerate(record.box_classes) if 1 <= label < num_classes]
  return pictures.annotated(
    record.read_image(),
    labels,
    record.boxes[known],
    record.box_classes[known],
    record.box_is_crowd[known],
    num_classes,
  )
