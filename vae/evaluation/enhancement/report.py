"""The report page of an enhancer on artificially degraded tiles, in one file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae.evaluation.enhancement.cases import Shown
from vae.evaluation.enhancement.table import MODEL_ROW, NOTHING, averaged
from vae.evaluation.report import plots
from vae.evaluation.report.page import write_page

_METHODS = {
    NOTHING: "do nothing",
    MODEL_ROW: "this model",
    "clahe": "CLAHE",
    "unsharp_mask": "unsharp mask",
    "non_local_means": "non-local means",
    "wiener": "Wiener",
}
# Without CLAHE: it lowers clean tiles to 18 dB, and its scale would flatten the other curves.
_CURVES = {
    "unsharp_mask": {"color": "#8a4b8f", "marker": "^", "ls": ":"},
    "non_local_means": {"color": "#00785a", "marker": "s"},
    "wiener": {"color": "#8d949c", "marker": "v"},
    NOTHING: {"color": "#0063a8", "marker": "o", "ls": "--"},
    MODEL_ROW: {"color": "#c4420a", "marker": "D", "markersize": 8},
}
_UNCERTAINTY = {
    "ideal": {"label": "error = uncertainty", "color": "#0063a8", "ls": "--"},
    "found": {"label": "measured", "color": "#c4420a", "marker": "D"},
}


def write_report(
    folder: str | os.PathLike, content: dict[str, Any], examples: Sequence[Shown]
) -> Path:
    """Writes `index.html` into a folder, atomically.

    Args:
      folder: The folder.
      content: The content of enhancement.json.
      examples: Tiles to show.

    Returns:
      Path of the file.
    """
    rows = content["rows"]
    table = averaged(rows)
    first = next(iter(table.values()))
    methods = {name: label for name, label in _METHODS.items() if name in first}
    for row in rows:  # means over several severities have no interval
        interval = row["interval"] if row["severity"] in (None, 0.0) else None
        table[row["degradation"]][row["method"]]["interval"] = interval
    return write_page(
        folder,
        "enhancement.html.j2",
        content,
        examples=examples,
        methods=methods,
        averaged=table,
        best={
            degradation: max(methods, key=lambda name: np.nan_to_num(found[name]["psnr"], nan=-1))
            for degradation, found in table.items()
        },
        curves=_curves([row for row in rows if row["severity"]]),
        uncertainty=_uncertainty(content["uncertainty"]["bins"]),
    )


def _curves(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Plots PSNR and SSIM against severity; one plot per degradation, by its name in words."""
    styles = {name: {"label": _METHODS[name], **style} for name, style in _CURVES.items()}
    found = {}
    for degradation in dict.fromkeys(row["degradation"] for row in rows):
        words, panels = degradation.replace("_", " "), []
        for metric, label, top in (("psnr", "PSNR, dB", np.inf), ("ssim", "SSIM", 1.0)):
            lines: dict[str, list] = {}
            for row in rows:
                if row["degradation"] == degradation and row[metric] is not None:
                    point = (row["severity"], row[metric], "")
                    lines.setdefault(row["method"], []).append(point)
            panels.append(plots.Panel(f"severity of {words}", label, lines, top))
        found[words] = plots.curves(panels, styles)
    return found


def _uncertainty(bins: Sequence[dict[str, float]]) -> str:
    points = [(one["deviation"], one["error"], "") for one in bins]
    top = max((max(point[:2]) for point in points), default=0.0)
    lines = {"ideal": [(0.0, 0.0, ""), (top, top, "")], "found": points}
    labels = "uncertainty, grey levels", "root mean square error, grey levels"
    return plots.curves([plots.Panel(*labels, lines)], _UNCERTAINTY)
