"""The report page of an autoencoder."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae.evaluation.evaluate import Evaluation
from vae.evaluation.photographs import PhotographEvaluation
from vae.evaluation.report import pictures, plots
from vae.evaluation.report.page import write_page

_CODECS = {
    "mean_colour": ("mean colour", "each tile filled with its mean"),
    "bicubic_x4": ("bicubic", "reduced four times and enlarged again"),
    "pca": ("PCA", "the linear codec of about the same latent size"),
    "pca_sampled": ("PCA, sampled", "the quality that belongs to its bytes"),
    "jpeg": ("JPEG", "at the quality nearest the model’s bytes"),
    "model": ("this model", "from the posterior mean"),
    "model_sampled": ("this model, sampled", "the quality that belongs to its bytes"),
}
_CURVES = {
    "bicubic": {
        "label": "bicubic, reduced 8, 4, 2 times", "color": "#8a4b8f", "marker": "^", "ls": ":",
    },
    "jpeg": {"label": "JPEG, 4:2:0", "color": "#00785a", "marker": "s"},
    "pca": {
        "label": "PCA, fitted to training tiles", "color": "#0063a8", "marker": "o", "ls": "--",
    },
    "model": {"label": "models", "color": "#c4420a", "marker": "D", "markersize": 8},
}  # fmt: skip


def write_report(
    folder: str | os.PathLike,
    content: dict[str, Any],
    evaluation: Evaluation,
    photographs: PhotographEvaluation | None,
    examples: Sequence[pictures.RankedExample],
    originals: np.ndarray,
    reconstructions: np.ndarray,
) -> Path:
    """Writes `index.html` into a folder, atomically.

    Args:
      folder: The folder.
      content: The content of results.json: the metrics, and config, split, step, dataset, data,
        model, version, command, date, parameters and curves.
      evaluation: Metrics of the tiles.
      photographs: Metrics and pictures of whole photographs; None for none.
      examples: Tiles to show, from `pictures.pick`.
      originals: uint8 [len(examples), H, W, 3].
      reconstructions: uint8 [len(examples), H, W, 3].

    Returns:
      Path of the file.
    """
    views = [pictures.tile_views(*pair) for pair in zip(originals, reconstructions, strict=True)]
    tile_gain = pictures.choose_gain([difference for _, _, difference in views])
    tiles: dict[str, list] = {}
    for example, view in zip(examples, views, strict=True):
        shown = (pictures.triple(view, tile_gain), example.caption)
        tiles.setdefault(example.rank, []).append(shown)
    ranked = pictures.pick_photographs(photographs) if photographs else []
    views = [photographs.pictures[row["photograph"]] for _, row in ranked]
    photograph_gain = pictures.choose_gain([view[2] for view in views]) if views else 1
    return write_page(
        folder,
        "autoencoder.html.j2",
        content,
        codecs=_CODECS,
        rows={row["name"]: row for row in content["rows"]},
        curve_labels={name: style["label"] for name, style in _CURVES.items()},
        curves=_curves(content["curves"]["points"]),
        spread=_spread(evaluation),
        tiles=tiles,
        tile_gain=tile_gain,
        labels=_labels(content["labels"], evaluation),
        photographs=photographs,
        photograph_gain=photograph_gain,
        shown_photographs=[
            (rank, row, pictures.triple(view, photograph_gain))
            for (rank, row), view in zip(ranked, views, strict=True)
        ],
    )


def _curves(points: Iterable[dict[str, Any]]) -> str:
    """Plots quality of the mean by latents, and quality of samples, if there are any, by bytes."""
    panels = []
    for size, suffix, x_label in (
        ("latents", "", "latent values a tile"),
        ("bytes", "_sampled", "rate, bytes a tile"),
    ):
        for metric, y_label, top in (("ssim", "SSIM", 1.0), ("psnr", "PSNR, dB", np.inf)):
            lines: dict[str, list] = {}
            for point in points:
                if point[size]:  # 0 and None have no place on a log scale
                    value = point.get(metric + suffix, point[metric])
                    name = point["setting"] if point["codec"] == "model" else ""
                    lines.setdefault(point["codec"], []).append((point[size], value, name))
            y_label += " of samples" if suffix else ""
            panels.append(plots.Panel(x_label, y_label, lines, top))
    return plots.curves(panels, _CURVES, log=True)


def _spread(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the histogram of the tiles' SSIM by label, its legend and percentiles."""
    ssim, label = _counted(evaluation)
    names, sizes = np.unique(label, return_counts=True)
    names = names[np.argsort(-sizes, kind="stable")]
    # The smallest labels share the last colour.
    most = len(plots.COLOURS)
    own = names if len(names) <= most else names[: most - 1]
    groups, words = [ssim[label == name] for name in own], [name or "(no label)" for name in own]
    if len(own) < len(names):
        groups.append(ssim[~np.isin(label, own)])
        words.append(f"{len(names) - len(own)} others")
    low = min(float(np.floor(200 * np.percentile(ssim, 0.5)) / 200), 0.995)
    p5, median, p95 = np.percentile(ssim, (5, 50, 95))
    return {
        "histogram": plots.histogram(groups, low),
        "legend": list(zip(plots.COLOURS, words, strict=False)),
        "low": low,
        "below": int((ssim < low).sum()),
        "p5": p5,
        "median": median,
        "p95": p95,
    }


def _labels(rows: Iterable[dict[str, Any]], evaluation: Evaluation) -> dict[str, Any]:
    """Returns each label's row and strip, and the left end of the strips."""
    ssim, label = _counted(evaluation)
    low = float(np.percentile(ssim, 1))
    strips = [(row, plots.strip(ssim[label == row["label"]], min(low, 0.9999))) for row in rows]
    return {"low": low, "strips": strips}


def _counted(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Returns SSIM and label of the tiles that have an SSIM."""
    counted = evaluation.tiles["windows"] > 0
    return evaluation.tiles["ssim"][counted], evaluation.tiles["label"][counted]
