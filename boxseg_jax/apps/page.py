"""What the HTML pages have in common: one file that needs nothing else, in light and dark."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from boxseg_jax.evaluation import paint

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --dim: #666; --rule: #e4e4e4;
        --soft: #f7f7f7; --bar: #56b4e9; --link: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dcdfe3; --paper: #16181b; --dim: #9aa1a9; --rule: #353a40; --soft: #22262a;
          --bar: #3d8fc0; --link: #6cbcec; } }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1080px; margin: 2em auto; padding: 0 1em; overflow-wrap: break-word; }
h1 { font-size: 1.5em; margin-bottom: 0.2em; } h2 { font-size: 1.15em; margin: 1.8em 0 0.5em; }
a { color: var(--link); }
.sub, .note { color: var(--dim); } .sub { margin-top: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: left; border-bottom: 1px solid var(--rule); }
th { color: var(--dim); font-weight: 500; } .number { text-align: right; }
td.number { white-space: nowrap; }
td.part { padding-left: 1.2em; }
td.bars { width: 210px; min-width: 80px; padding-right: 0; }
.bar { display: inline-block; height: 9px; background: var(--bar); min-width: 1px; }
.swatch { display: inline-block; width: 13px; height: 13px; margin-right: 5px;
          vertical-align: -1px; }
.legend span { margin-right: 1.2em; white-space: nowrap; }
.pictures { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
figure { margin: 0; } figure img { width: 100%; display: block; }
figcaption { font-size: 13px; color: var(--dim); overflow-wrap: anywhere; }
"""


def document(title: str, body: Iterable[str], style: str = "") -> str:
  """A whole page.

  Args:
    title: plain text.
    body: HTML.
    style: CSS beside the common one.
  """
  head = [
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>",
    "<meta name='viewport' content='width=device-width, initial-scale=1'>",
    f"<title>{safe(title)}</title><style>{_STYLE}{style}</style></head><body>",
  ]
  return "\n".join([*head, *body, "</body></html>\n"])


def safe(text) -> str:
  """Text with everything escaped that HTML would take for its own."""
  return html.escape(str(text), quote=True)


def is_number(text: str) -> bool:
  """Whether a cell belongs to the right: a number, a share in percent, or none of either."""
  return re.fullmatch(r"-?|[\d.,]+( %)?", text) is not None


def table(head: Sequence[str], lines: Sequence[Sequence[str]], *, bar: str = "") -> str:
  """A table; numbers to the right, what begins with "- " indented.

  Args:
    head: titles of the columns, plain text; none at all if all are empty.
    lines: cells, plain text.
    bar: title of a column of shares in percent, for which bars are drawn at the right.
  """
  numeric = [all(is_number(line[column]) for line in lines) for column in range(len(head))]
  heads = "".join(_cell("th", text, right) for text, right in zip(head, numeric, strict=True))
  drawn_by = list(head).index(bar) if bar else None
  rows = [f"<tr>{heads}{'<th></th>' if bar else ''}</tr>"] if any(head) else []
  for line in lines:
    cells = "".join(_cell("td", text, right) for text, right in zip(line, numeric, strict=True))
    rows.append(f"<tr>{cells}{'' if drawn_by is None else _bar(line[drawn_by])}</tr>")
  return f"<div class='scroll'><table>{''.join(rows)}</table></div>"


def _cell(tag, text, right):
  kinds = ["number"] * right + ["part"] * text.startswith("- ")
  shown = safe(text.removeprefix("- "))
  return f"<{tag} class='{' '.join(kinds)}'>{shown}</{tag}>"


def _bar(share):
  """A cell with a bar for a share in percent; empty for what is none."""
  shown = f"<i class='bar' style='width:{share.split()[0]}%'></i>" if share.endswith("%") else ""
  return f"<td class='bars'>{shown}</td>"


def legend(class_names: Sequence[str]) -> str:
  """Colours of the classes, background first in the names and not shown."""
  colours = paint.palette(len(class_names))
  swatches = (
    f"<span><i class='swatch' style='background:rgb({r},{g},{b})'></i>{safe(name)}</span>"
    for name, (r, g, b) in zip(class_names[1:], colours[1:].tolist(), strict=True)
  )
  return f"<p class='legend'>{' '.join(swatches)} <span>void: hatched; crowds: grey</span></p>"


def image(picture: np.ndarray, alt: str, *, quality: int | None = None) -> str:
  """A picture inside of the page.

  Args:
    picture: uint8 [height, width, 3].
    alt: what it shows, plain text.
    quality: of a JPEG; None = PNG.
  """
  content, kind = io.BytesIO(), "png" if quality is None else "jpeg"
  # Full colour resolution: outlines are a pixel thin.
  options = {} if quality is None else {"quality": quality, "subsampling": 0}
  Image.fromarray(picture).save(content, format=kind, **options)
  data = base64.b64encode(content.getvalue()).decode()
  height, width = picture.shape[:2]
  size = f"width='{width}' height='{height}'"
  return f"<img alt='{safe(alt)}' {size} src='data:image/{kind};base64,{data}'>"
