"""What is in a data set, as one HTML file that needs nothing else: tables, findings, pictures."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from boxseg_jax.data.findings import Finding
from boxseg_jax.data.records import Record
from boxseg_jax.data.training_set import Reading
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import pictures
from boxseg_jax.training.run import write_text

_PICTURES = 6  # of each split
_LISTED = 200  # items of one finding
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0.2em; } h2 { font-size: 1.15em; margin: 1.8em 0 0.5em; }
.sub { color: #666; margin-top: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: left; border-bottom: 1px solid #e4e4e4; }
th { color: #666; font-weight: 500; } .number { text-align: right; }
td.part { padding-left: 1.2em; }
.bar { display: inline-block; height: 9px; background: #56b4e9; min-width: 1px; }
.finding { border-left: 5px solid; padding: 6px 14px; margin: 10px 0; background: #f7f7f7; }
.error { border-color: #c22; } .warning { border-color: #e69f00; } .fine { border-color: #009e73; }
.finding ul { margin: 6px 0 0; padding-left: 1.3em; max-height: 14em; overflow: auto;
              font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 13px; height: 13px; margin-right: 5px;
          vertical-align: -1px; }
.legend span { margin-right: 1.2em; white-space: nowrap; }
.pictures { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
figure { margin: 0; max-width: 340px; } figure img { width: 100%; display: block; }
figcaption { font-size: 13px; color: #444; overflow-wrap: anywhere; }
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


def is_number(text: str) -> bool:
  """Whether a cell belongs to the right: a number, a share in percent, or none of either."""
  return re.fullmatch(r"-?|[\d.,]+( %)?", text) is not None


def _page(config, tables, found, readings):
  names = tuple(config.data.class_names)
  where = f"source {config.data.source}" + (f", {config.data.root}" if config.data.root else "")
  parts = [
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>",
    "<meta name='viewport' content='width=device-width'>",
    f"<title>Data: {_safe(where)}</title><style>{_STYLE}</style></head><body>",
    f"<h1>What is in the data</h1><p class='sub'>{_safe(where)}</p>",
    *(_finding(split, one) for split, one in found),
  ]
  if not found:
    parts.append("<div class='finding fine'>Nothing is wrong with these data.</div>")
  parts += [_table(*table) for table in tables]
  for split, reading in readings.items():
    parts += [f"<h2>Pictures of {_safe(split)}</h2>", _legend(names), "<div class='pictures'>"]
    for record in _chosen(reading, [one for name, one in found if name in (split, "")]):
      parts.append(_figure(record, len(names)))
    parts.append("</div>")
  return "\n".join([*parts, "</body></html>\n"])


def _safe(text):
  return html.escape(str(text), quote=True)


def _finding(split, one):
  kind = "error" if one.is_error else "warning"
  items = [f"<li>{_safe(item)}</li>" for item in one.items[:_LISTED]]
  if len(one.items) > _LISTED:
    items.append(f"<li>and {len(one.items) - _LISTED} more</li>")
  listed = f"<ul>{''.join(items)}</ul>" if items else ""
  return (
    f"<div class='finding {kind}'><b>{kind.capitalize()}</b>, {_safe(split)}: "
    f"{_safe(one.text)}{listed}</div>"
  )


def _table(title, head, lines):
  numeric = [all(is_number(line[column]) for line in lines) for column in range(len(head))]
  heads = "".join(_cell("th", text, right) for text, right in zip(head, numeric, strict=True))
  rows = [f"<tr>{heads}</tr>"] if any(head) else []
  for line in lines:
    cells = "".join(_cell("td", text, right) for text, right in zip(line, numeric, strict=True))
    rows.append(f"<tr>{cells}{_bar(head, line)}</tr>")
  return f"<h2>{_safe(title)}</h2><table>{''.join(rows)}</table>"


def _cell(tag, text, right):
  kinds = ["number"] * right + ["part"] * text.startswith("- ")
  shown = _safe(text.removeprefix("- "))
  return f"<{tag} class='{' '.join(kinds)}'>{shown}</{tag}>"


def _bar(head, line):
  """A bar beside a share in percent."""
  if "share" not in head or not line[list(head).index("share")].endswith("%"):
    return ""
  percent = float(line[list(head).index("share")].split()[0])
  return f"<td style='width:210px'><span class='bar' style='width:{2 * percent:.0f}px'></span></td>"


def _legend(names):
  colours = pictures.palette(len(names))
  swatches = (
    f"<span><i class='swatch' style='background:rgb({r},{g},{b})'></i>{_safe(name)}</span>"
    for name, (r, g, b) in zip(names[1:], colours[1:].tolist(), strict=True)
  )
  return f"<p class='legend'>{''.join(swatches)}<span>void: hatched; crowds: grey</span></p>"


def _chosen(reading: Reading, found: Sequence[Finding]) -> list[Record]:
  """A few records: those that findings name, then some spread over the split."""
  by_name = {record.image_id: record for record in reading.records}
  told = " \n".join(f"{item} " for one in found for item in one.items)
  named = [name for name in by_name if f"{name} " in told or f"image {name}:" in told]
  spread = list(by_name)[:: max(1, len(by_name) // _PICTURES)]
  names = dict.fromkeys([*named[: _PICTURES // 2], *spread])
  return [by_name[name] for name in list(names)[:_PICTURES]]


def _figure(record: Record, num_classes: int) -> str:
  caption = f"{_safe(record.image_id)}, {record.size[1]} x {record.size[0]}"
  try:
    picture = _draw(record, num_classes)
  except InputError as error:
    return f"<figure><figcaption>{caption}: {_safe(error)}</figcaption></figure>"
  content = io.BytesIO()
  Image.fromarray(picture).save(content, format="PNG")
  data = base64.b64encode(content.getvalue()).decode()
  shown = f"<img alt='{_safe(record.image_id)}' src='data:image/png;base64,{data}'>"
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
