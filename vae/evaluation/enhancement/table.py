"""Figures of many cases as rows, text and files."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vae.data import files
from vae.evaluation.aggregate import patient_intervals
from vae.evaluation.enhancement.structure import FIGURES

NOTHING, OURS = "do_nothing", "ours"
COLUMNS = ("psnr", "ssim", *FIGURES)


def rows_of(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over tiles of each degradation, severity and method.

    Args:
      metrics: Of each tile: degradation, severity, method, patient, and `COLUMNS`.

    Returns:
      Rows in the order in which they appear: degradation, severity (None where several are drawn),
      method, tiles, patients, `COLUMNS` (None where nothing could be compared) and `interval`:
      95% over patients of psnr, ssim and vesselness; None with one patient.
    """
    groups: dict[tuple, list[dict]] = {}
    for entry in scores:
        key = (entry["degradation"], entry["severity"], entry["method"])
        groups.setdefault(key, []).append(entry)
    rows = []
    for (degradation, severity, method), entries in groups.items():
        patients = np.array([entry["patient"] for entry in entries])
        row = {
            "degradation": degradation,
            "severity": severity,
            "method": method,
            "tiles": len(entries),
            "patients": len(set(patients)),
        }
        for column in COLUMNS:
            values = np.array([entry[column] for entry in entries])
            known = values[np.isfinite(values)]
            row[column] = float(known.mean()) if known.size else None
        spans = {}
        for column in ("psnr", "ssim", "vesselness"):
            values = np.array([entry[column] for entry in entries])
            known = np.isfinite(values)
            if known.any():
                span = patient_intervals(values[known, None], patients[known])
                spans[column] = None if span is None else [float(end) for end in span[:, 0]]
        rows.append(row | {"interval": spans})
    return rows


def averaged(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """degradation -> method -> metrics, means over severities."""
    found: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        found.setdefault(row["degradation"], {}).setdefault(row["method"], []).append(row)
    return {
        degradation: {
            method: {
                column: float(np.mean(values))
                if (values := [row[column] for row in entries if row[column] is not None])
                else math.nan
                for column in COLUMNS
            }
            for method, entries in methods.items()
        }
        for degradation, methods in found.items()
    }


def lesions_by_label(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is left of small spots, for each label, of clean and of mixed tiles.

    Args:
      metrics: Of each tile; see `rows_of`.

    Returns:
      Dicts of label, degradation, tiles (with any spots), lesions (spots a tile), lesions_kept (as
      ours leaves them) and lesions_kept_before (where nothing is done); means over tiles.
    """
    rows = []
    for label in sorted({entry["label"] for entry in scores}):
        for degradation in ("clean", "mixed"):
            of = {
                method: [
                    entry
                    for entry in scores
                    if (entry["label"], entry["degradation"], entry["method"])
                    == (label, degradation, method)
                    and entry["lesions"] > 0
                ]
                for method in (NOTHING, OURS)
            }
            if not of[OURS]:
                continue
            kept = {
                method: float(np.mean([entry["lesions_kept"] for entry in entries]))
                for method, entries in of.items()
            }
            rows.append({
                "label": label,
                "degradation": degradation,
                "tiles": len(of[OURS]),
                "lesions": float(np.mean([entry["lesions"] for entry in of[OURS]])),
                "lesions_kept": kept[OURS],
                "lesions_kept_before": kept[NOTHING],
            })  # fmt: skip
    return rows


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """SSIM, PSNR and vesselness correlation by degradation and method, means over severities."""
    table = averaged(rows)
    methods = list(next(iter(table.values())))
    width = max(map(len, table)) + 2
    lines = [" " * width + "".join(f"{method:>22}" for method in methods)]
    for degradation, found in table.items():
        cells = (
            f"{found[m]['psnr']:>8.2f} {found[m]['ssim']:.4f} {found[m]['vesselness']:.3f} "
            for m in methods
        )
        lines.append(f"{degradation:<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    lines.append("PSNR in dB, SSIM, correlation of vesselness; means over tiles and severities")
    return "\n".join(lines)


def write_csv(path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows without their intervals, beside and then renamed."""
    names = [name for name in rows[0] if name != "interval"]
    files.write_csv(path, names, ([row[name] for name in names] for row in rows))
