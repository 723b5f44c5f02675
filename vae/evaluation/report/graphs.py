"""The parts of the page that are drawn: quality against size, and the spread over tiles."""

from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from vae.evaluation.evaluate import Evaluation
from vae.evaluation.report import markup, plots

# Labels with a colour of their own; the smallest ones share the last.
COLOURS = 7
_MARKERS = {
    "bicubic": ("triangle", "bicubic, reduced 8, 4, 2 times"),
    "jpeg": ("square", "JPEG, 4:2:0"),
    "pca": ("circle", "PCA, fitted to training tiles"),
    "model": ("diamond", "models"),
}


def curves(content: dict[str, Any]) -> str:
    """Rate-distortion: four plots that share a legend."""
    points = content["curves"]["points"]
    shown = [codec for codec in _MARKERS if any(point["codec"] == codec for point in points)]
    panels = []
    for kind, label in (("latents", "latent values a tile"), ("bytes", "rate, kB a tile")):
        for figure, y_label in (("ssim", "SSIM"), ("psnr", "PSNR, dB")):
            series = [_series(points, codec, kind, figure) for codec in shown]
            series = [one for one in series if one.points]
            panels.append(
                plots.curve_plot(
                    series,
                    title=f"{y_label} against {label}",
                    x_label=label,
                    y_label=y_label + (" of samples" if kind == "bytes" else ""),
                    x_format=_short if kind == "latents" else "{:g}".format,
                    y_top=1.0 if figure == "ssim" else np.inf,
                )
            )
    keys = "".join(legend(codec, _MARKERS[codec][1], _MARKERS[codec][0]) for codec in shown)
    rate = (
        "Above: quality of the posterior mean against the size of the latent. Below: quality of "
        "posterior samples against the bytes an ideal coder needs for them, beside JPEG files of "
        "several qualities. All points are means over the same "
        f"{markup.count(content['curves']['tiles'], 'tile')}, drawn at random, so they differ a "
        "little from the table. Up and to the left is better."
    )
    return markup.section(
        "Quality against size",
        f'<p class="note">{rate}</p><p class="legend">{keys}</p>'
        f'<div class="panels">{"".join(panels)}</div>',
    )


def distribution(evaluation: Evaluation) -> str:
    """Histogram of the tiles' SSIM, coloured by label."""
    counted = evaluation.tiles["windows"] > 0
    ssim, label = evaluation.tiles["ssim"][counted], evaluation.tiles["label"][counted]
    names, sizes = np.unique(label, return_counts=True)
    names = names[np.argsort(-sizes, kind="stable")]
    own = names if len(names) <= COLOURS else names[: COLOURS - 1]
    groups = [(f"l{i}", ssim[label == name]) for i, name in enumerate(own)]
    words = [str(name) or "(no label)" for name in own]
    if len(own) < len(names):
        groups.append((f"l{COLOURS - 1}", ssim[~np.isin(label, own)]))
        words.append(f"{len(names) - len(own)} others")
    low = float(np.floor(200 * np.percentile(ssim, 0.5)) / 200)
    low = min(low, 0.995)
    below = int((ssim < low).sum())
    plot = plots.histogram(
        groups,
        title="Histogram of SSIM",
        x_label="SSIM of a tile",
        low=low,
        high=1.0,
    )
    keys = "".join(legend(g, w) for (g, _), w in zip(groups, words, strict=True))
    tail = f" {markup.count(below, 'tile')} below {low:g} in the first bar." if below else ""
    p5, median, p95 = np.percentile(ssim, (5, 50, 95))
    note = (
        f"5% of the tiles are below {p5:.4f}, half below {median:.4f}, 95% below {p95:.4f}.{tail}"
    )
    return markup.section(
        "Spread over the tiles",
        f'<p class="legend">{keys}</p><div class="wide">{plot}</div><p class="note">{note}</p>',
    )


def _series(points: Iterable[dict], codec: str, kind: str, figure: str) -> plots.Series:
    """By latents the mean's quality, by bytes that of samples, where the codec has any."""
    drawn = []
    for point in points:
        if point["codec"] == codec and point[kind]:  # none at all has no place on a log scale
            sampled = f"{figure}_sampled"
            value = point[sampled if kind == "bytes" and sampled in point else figure]
            size = point[kind] / 1000 if kind == "bytes" else point[kind]
            which = "" if codec == "model" else f"{_MARKERS[codec][1]}, "
            words = f"{which}{point['setting']}: "
            unit = "kB" if kind == "bytes" else "values"
            figure_words = f"{value:.4f}" if figure == "ssim" else f"{value:.2f} dB"
            drawn.append((size, value, f"{words}{size:,.4g} {unit}, {figure_words}"))
    return plots.Series(codec, drawn, _MARKERS[codec][0])


def legend(colour: str, words: str, shape: str = "square") -> str:
    """A key of a plot: its colour and shape, and plain text."""
    mark = plots.marker(shape, 7, 7, 4.5)
    return (
        f'<span><svg viewBox="0 0 14 14" class="key" aria-hidden="true"><g class="mark bar '
        f'c-{colour}">{mark}</g></svg>{escape(words)}</span>'
    )


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
