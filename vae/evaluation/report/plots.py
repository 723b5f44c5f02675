"""Plots as data URIs of SVG. Equal values give equal bytes, and text is drawn as paths."""

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

# The colours of Okabe and Ito, safe for colour-blind readers, and a grey.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8d949c")

_style = rc_context({
    "axes.axisbelow": True, "axes.formatter.useoffset": False, "axes.grid": True,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "font.size": 9, "grid.color": "#dfe3e8", "legend.frameon": False,
    "svg.fonttype": "path", "svg.hashsalt": "fundus-vae", "text.parse_math": False,
    "xtick.major.pad": 6, "xtick.major.size": 0, "xtick.minor.size": 0, "ytick.major.size": 0,
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves over common axes.

    Attributes:
      x_label: Label with the unit.
      y_label: Label with the unit.
      lines: Points (x, y, name to print next to the point or "") of each curve, by its name.
      top: Upper bound of y.
    """

    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float, str]]]
    top: float = math.inf


@_style
def curves(
    panels: Sequence[Panel], styles: Mapping[str, dict[str, Any]], *, log: bool = False
) -> str:
    """Draws panels, two per row, below a common legend.

    Args:
      panels: At least one.
      styles: matplotlib keyword arguments of each curve, by its name. Curves are drawn in this
        order, the last on top; a panel may lack some of them.
      log: True for a logarithmic x axis.
    """
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.3 * columns, 3.2 * rows), layout="constrained")
    drawn = {}
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        for name in (name for name in styles if panel.lines.get(name)):
            x, y, words = zip(*panel.lines[name], strict=True)
            (drawn[name],) = axes.plot(x, y, clip_on=False, **styles[name])
            for place, word in zip(zip(x, y, strict=True), words, strict=True):
                # matplotlib cannot draw lone surrogates.
                axes.annotate(
                    word.encode("utf-8", "replace").decode(), place, (7, -3),
                    textcoords="offset points", fontsize=8, va="top", in_layout=False,
                )  # fmt: skip
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
        axes.set_ylim(top=min(panel.top, axes.get_ylim()[1]))
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter(NullFormatter())
    handles = [drawn[name] for name in styles if name in drawn]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return _svg(figure)


@_style
def histogram(groups: Sequence[np.ndarray], low: float) -> str:
    """Draws the stacked histogram of SSIM of groups; values below `low` are in the first bar."""
    figure = Figure(figsize=(10.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        [values.clip(low, 1) for values in groups],
        bins=48, range=(low, 1), stacked=True, rwidth=0.9, color=COLOURS[: len(groups)],
    )  # fmt: skip
    axes.set(xlabel="SSIM of a tile", ylabel="tiles", xlim=(low, 1))
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _svg(figure)


@_style
def strip(values: np.ndarray, low: float) -> str:
    """Draws a line from the 5th to the 95th percentile, thick between quartiles, dot at the mean.

    Args:
      values: float [n], SSIM of tiles.
      low: Left end of all strips of a table; the right end is 1.
    """
    figure = Figure(figsize=(1.7, 0.17))
    axes = figure.add_axes((0.03, 0, 0.94, 1), xlim=(low, 1), ylim=(-1, 1))
    axes.axis("off")
    p5, p25, p75, p95 = np.percentile(values, (5, 25, 75, 95)).clip(low, 1)
    axes.hlines(0, p5, p95, color=COLOURS[0], linewidth=1.2)
    axes.hlines(0, p25, p75, color=COLOURS[0], linewidth=4, alpha=0.55)
    axes.plot(max(values.mean(), low), 0, "o", color=COLOURS[0], markersize=5, clip_on=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
