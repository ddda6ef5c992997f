"""Charts as SVG inside of a page: in its colours, with numbers to point at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from boxseg_jax.apps.page import safe

STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr));
          gap: 18px 22px; margin: 12px 0; }
.chart { max-width: 480px; } .chart svg { display: block; width: 100%; height: auto; }
.chart figcaption { color: var(--ink); }
.chart text { font-size: 11px; fill: var(--dim); } .grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.faint { fill: none; stroke: var(--dim); stroke-width: 1; opacity: 0.35; }
.guide { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 4 3; }
.keys { font-size: 13px; margin: 2px 0 0; color: var(--dim); }
.keys span { margin-right: 1em; white-space: nowrap; display: inline-block; }
.keys i { display: inline-block; width: 14px; height: 3px; margin-right: 5px;
          vertical-align: 3px; background: currentColor; }
.keys b { font-weight: 500; color: var(--ink); }
.c0 { color: #0072b2; } .c1 { color: #d55e00; } .c2 { color: #009e73; }
.c3 { color: #b0578c; } .c4 { color: #b57b00; } .c5 { color: #3d93c6; }
.line, .dot { stroke: currentColor; } .dot { fill: currentColor; fill-opacity: 0.45; }
@media (prefers-color-scheme: dark) {
  .c0 { color: #56a5e0; } .c1 { color: #ee8033; } .c2 { color: #2fc79c; }
  .c3 { color: #d98fbb; } .c4 { color: #e6ab33; } .c5 { color: #9bd0f2; } }
"""
_COLOURS = 6
_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 22  # room for the ticks
_POINTS = 200  # of a line; more are not seen


class Series(NamedTuple):
  """One line of a chart.

  Attributes:
    name: plain text.
    points: (x, y), by x.
    is_faint: one of many, told by no key.
  """

  name: str
  points: Sequence[tuple[float, float]]
  is_faint: bool = False


class _Axes:
  """From numbers to places in the picture."""

  def __init__(self, x_range, y_range):
    self.x_range, self.y_range = _widened(*x_range), _widened(*y_range)

  def x(self, value):
    low, high = self.x_range
    return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

  def y(self, value):
    low, high = self.y_range
    return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

  def ticks(self):
    """SVG of the grid and its numbers."""
    for value in _round_numbers(*self.y_range):
      height = f"{self.y(value):.1f}"
      yield f"<path class='grid' d='M{_LEFT} {height}H{_WIDTH - _RIGHT}'/>"
      yield f"<text x='{_LEFT - 6}' y='{height}' dy='4' text-anchor='end'>{value:g}</text>"
    for value in _round_numbers(*self.x_range):
      place = f"x='{self.x(value):.1f}' y='{_HEIGHT - 6}' text-anchor='middle'"
      yield f"<text {place}>{value:g}</text>"


def lines(title: str, series: Sequence[Series], *, unit: str = "", top: float | None = None) -> str:
  """Curves over steps.

  Args:
    title: plain text.
    series: what is drawn; lines without points are left out.
    unit: after numbers, plain text.
    top: upper end of the scale; None = the largest number. The lower end is 0.

  Returns:
    HTML of a figure, "" where no line has a point.
  """
  series = [one._replace(points=_thinned(one.points)) for one in series if len(one.points)]
  if not series:
    return ""
  xs, ys = zip(*(point for one in series for point in one.points), strict=True)
  axes = _Axes((min(0, *xs), max(xs)), (0, max(ys) if top is None else top))
  parts, keys = [*axes.ticks()], []  # type: list[str], list[str]
  for one in series:
    places = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in one.points)
    if one.is_faint:
      parts.append(f"<polyline class='faint' points='{places}'/>")
      continue
    colour = f"c{len(keys) % _COLOURS}"
    parts.append(f"<polyline class='line {colour}' points='{places}'/>")
    # A line of one point would not be seen.
    kind = f"class='dot {colour}'" if len(one.points) == 1 else "fill='transparent'"
    parts += [_spot(axes, one.name, x, y, unit, kind) for x, y in one.points]
    last = f"<b>{number(one.points[-1][1])}{safe(unit)}</b>"
    keys.append(f"<span><i class='{colour}'></i>{safe(one.name)} {last}</span>")
  return _figure(title, parts, f"<p class='keys'>{' '.join(keys)}</p>")


def reliability(title: str, expected, observed, pixels) -> str:
  """Observed shares over expected ones, the diagonal being perfect.

  Args:
    title: plain text.
    expected: [bins] in [0, 1]; bins without pixels are left out.
    observed: [bins] in [0, 1].
    pixels: [bins], number of pixels: areas of the dots.

  Returns:
    HTML of a figure.
  """
  axes = _Axes((0, 100), (0, 100))
  ends = [axes.x(0), axes.y(0), axes.x(100), axes.y(100)]
  parts = [*axes.ticks(), "<path class='guide' d='M{:.1f} {:.1f}L{:.1f} {:.1f}'/>".format(*ends)]
  bins = sorted(
    (100 * x, 100 * y, n) for x, y, n in zip(expected, observed, pixels, strict=True) if n
  )
  places = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y, _ in bins)
  parts.append(f"<polyline class='line c0' points='{places}'/>")
  for x, y, count in bins:
    told = f"expected {x:.1f} % wrong, observed {y:.1f} %: {count:,.0f} pixels"
    radius = 2 + 10 * np.sqrt(count / sum(pixels))
    place = f"cx='{axes.x(x):.1f}' cy='{axes.y(y):.1f}' r='{radius:.1f}'"
    parts.append(f"<circle class='dot c0' {place}><title>{told}</title></circle>")
  return _figure(title, parts, "")


def number(value: float) -> str:
  """Three digits, which are enough for an eye."""
  if value != 0 and not 1e-3 <= abs(value) < 1e5:
    return f"{value:.1e}"
  return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _figure(title, parts, below):
  drawn = "".join(parts)
  return (
    f"<figure class='chart'><figcaption>{safe(title)}</figcaption>"
    f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{safe(title)}'>{drawn}</svg>"
    f"{below}</figure>"
  )


def _spot(axes, name, x, y, unit, kind):
  """A place that tells its numbers when it is pointed at."""
  told = safe(f"{name}, step {x:,.0f}: {number(y)}{unit}")
  place = f"cx='{axes.x(x):.1f}' cy='{axes.y(y):.1f}' r='5'"
  return f"<circle {place} {kind}><title>{told}</title></circle>"


def _round_numbers(low, high):
  ticks = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
  reach = 1e-9 * (high - low)
  return [0.0 if abs(t) <= reach else t for t in ticks if low - reach <= t <= high + reach]


def _widened(low, high):
  """A range that is one."""
  return (low, high) if high > low else (low, low + 1)


def _thinned(points):
  """Means of neighbours where there are more points than can be seen; the last one stays."""
  if len(points) <= _POINTS:
    return list(points)
  groups = np.array_split(np.asarray(points, float), _POINTS)
  return [*(tuple(group.mean(axis=0).tolist()) for group in groups[:-1]), tuple(points[-1])]
