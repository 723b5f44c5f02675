"""Plots as inline SVG: small, sharp in print, in the page's own colours and fonts.

Colours are classes (`c-NAME`) that the style sheet defines for light and dark; shape and dashes
say the same for those who do not see colours.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 500, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 48


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one codec.

    Attributes:
      name: Of its colour: "model", "pca", "jpeg", "bicubic".
      points: (x, y, what it says when pointed at).
      marker: "circle", "square", "diamond" or "triangle".
      line: Whether the points are joined.
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    marker: str
    line: bool = True


@dataclasses.dataclass(frozen=True)
class Axis:
    """A scale of numbers along `start`..`end` pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers inside the scale."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)


def curve_plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_format: Callable[[float], str],
    y_top: float = math.inf,
    log: bool = True,
) -> str:
    """Curves.

    Args:
      series: At least one with a point; drawn in this order, the last on top.
      title: Read out instead of the picture.
      x_label: With its unit.
      y_label: With its unit.
      x_format: Words of a tick.
      y_top: What y can never exceed.
      log: Whether x is logarithmic.
    """
    xs = np.array([x for one in series for x, _, _ in one.points])
    ys = np.array([y for one in series for _, y, _ in one.points])
    room = max(0.08 * np.ptp(ys), 1e-3 * abs(ys.max()), 1e-9)
    ends = (xs.min() / 1.25, xs.max() * 1.25) if log else (0.0, xs.max() * 1.05)
    x = Axis(*ends, LEFT, WIDTH - RIGHT, log=log)
    y = Axis(ys.min() - room, min(ys.max() + room, y_top), HEIGHT - BOTTOM, TOP)
    parts = _frame(x, y, x_label, y_label, x_format)
    for one in series:
        places = [(x(a), y(b)) for a, b, _ in one.points]
        if one.line and len(places) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(f'<polyline class="line c-{one.name}" points="{path}"/>')
        for (a, b), (_, _, words) in zip(places, one.points, strict=True):
            shape = marker(one.marker, a, b, 6.5 if one.name == "model" else 4)
            parts.append(f'<g class="mark c-{one.name}"><title>{escape(words)}</title>{shape}</g>')
    return _svg(parts, title)


def histogram(
    groups: Sequence[tuple[str, np.ndarray]],
    *,
    title: str,
    x_label: str,
    low: float,
    high: float,
    bins: int = 48,
) -> str:
    """Stacked bars of several groups; what lies below `low` is counted in the first bar.

    Args:
      groups: (name of its colour, values [n]) each.
      title: Read out instead of the picture.
      x_label: With its unit.
      low: Left end.
      high: Right end.
      bins: Number of bars.
    """
    edges = np.linspace(low, high, bins + 1)
    counts = [np.histogram(np.clip(values, low, high), edges)[0] for _, values in groups]
    x = Axis(low, high, LEFT, 2 * WIDTH - RIGHT)
    y = Axis(0, max(np.sum(counts, axis=0).max(), 1) * 1.05, HEIGHT - BOTTOM, TOP)
    parts = _frame(x, y, x_label, "tiles", None, 2 * WIDTH)
    base = np.zeros(bins)
    for (name, _), column in zip(groups, counts, strict=True):
        for i in np.flatnonzero(column):
            left, right = x(edges[i]) + 0.5, x(edges[i + 1]) - 0.5
            bottom, top = y(base[i]), y(base[i] + column[i])
            parts.append(
                f'<rect class="bar c-{escape(name)}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{right - left:.1f}" height="{bottom - top:.1f}"/>'
            )
        base += column
    return _svg(parts, title, 2 * WIDTH)


def strip(values: np.ndarray, low: float, high: float) -> str:
    """A line from the 5th to the 95th percentile, thicker between the quartiles, a dot at the mean.

    Args:
      values: float [n].
      low: Left end of all strips of a table.
      high: Right end.
    """
    x = Axis(low, high, 4, 156)
    p5, p25, p75, p95 = (x(v) for v in np.percentile(values, (5, 25, 75, 95)).clip(low, high))
    mean = x(float(np.clip(values.mean(), low, high)))
    return (
        '<svg class="strip" viewBox="0 0 160 16" aria-hidden="true">'
        f'<line class="thin" x1="{p5:.1f}" x2="{p95:.1f}" y1="8" y2="8"/>'
        f'<line class="thick" x1="{p25:.1f}" x2="{p75:.1f}" y1="8" y2="8"/>'
        f'<circle cx="{mean:.1f}" cy="8" r="3.5"/></svg>'
    )


def marker(shape: str, x: float, y: float, r: float) -> str:
    """A marker of radius `r` pixels about (x, y)."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    corners = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "diamond": [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
        "triangle": [(0, -1.3), (1.2, 1), (-1.2, 1)],
    }[shape]
    points = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in corners)
    return f'<polygon points="{points}"/>'


def _frame(
    x: Axis,
    y: Axis,
    x_label: str,
    y_label: str,
    x_format: Callable[[float], str] | None,
    width: int = WIDTH,
) -> list[str]:
    """Grid, ticks and labels."""
    bottom, right = HEIGHT - BOTTOM, width - RIGHT
    x_format, y_format = x_format or _as_many_digits(x.ticks()), _as_many_digits(y.ticks())
    parts = []
    for value in y.ticks():
        place = y(value)
        parts.append(_grid_line(LEFT, right, place, place))
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{place + 4:.1f}" text-anchor="end">'
                     f"{escape(y_format(value))}</text>")  # fmt: skip
    for value in x.ticks():
        place = x(value)
        parts.append(_grid_line(place, place, TOP, bottom))
        parts.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">'
                     f"{escape(x_format(value))}</text>")  # fmt: skip
    middle = (TOP + bottom) / 2
    parts += [
        f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
        f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text class="label" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]
    return parts


def _grid_line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _as_many_digits(ticks: list[float]) -> Callable[[float], str]:
    """Words of ticks, with the decimals that the finest of them needs."""
    decimals = max((len(f"{tick:.10g}".partition(".")[2]) for tick in ticks), default=0)
    return lambda value: f"{value:,.{decimals}f}"


def _svg(parts: list[str], title: str, width: int = WIDTH) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {width} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _ticks(low: float, high: float, count: int = 7) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**n for n in decades for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks if len(ticks) <= 8 else [tick for tick in ticks if f"{tick:e}"[0] == "1"]
