"""Metrics of all cases as table rows, text and CSV."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vae.data import files
from vae.evaluation.aggregate import patient_intervals
from vae.evaluation.enhancement.structure import STRUCTURE_METRICS

NOTHING, MODEL_ROW = "do_nothing", "ours"
COLUMNS = ("psnr", "ssim", *STRUCTURE_METRICS)


def rows_of(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computes means over tiles for each degradation, severity and method.

    Args:
      scores: One dict per tile: degradation, severity, method, patient, and `COLUMNS`.

    Returns:
      Rows in order of appearance: degradation, severity (None for mixed), method, tiles, patients,
      `COLUMNS` (None where nothing could be compared) and `interval`: 95% intervals over patients
      of psnr, ssim and vesselness; None with one patient.
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
    """Returns degradation -> method -> metrics, as means over severities."""
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
    """Computes the kept contrast of small spots per label, for clean and mixed tiles.

    Args:
      scores: One dict per tile; see `rows_of`.

    Returns:
      Dicts of label, degradation, tiles (those with spots), lesions (spots per tile), lesions_kept
      (after enhancement) and lesions_kept_before (without it); means over tiles.
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
                for method in (NOTHING, MODEL_ROW)
            }
            if not of[MODEL_ROW]:
                continue
            kept = {
                method: float(np.mean([entry["lesions_kept"] for entry in entries]))
                for method, entries in of.items()
            }
            rows.append({
                "label": label,
                "degradation": degradation,
                "tiles": len(of[MODEL_ROW]),
                "lesions": float(np.mean([entry["lesions"] for entry in of[MODEL_ROW]])),
                "lesions_kept": kept[MODEL_ROW],
                "lesions_kept_before": kept[NOTHING],
            })  # fmt: skip
    return rows


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats PSNR, SSIM and vesselness by degradation and method, as means over severities."""
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
    """Writes the rows as CSV, without intervals, atomically."""
    names = [name for name in rows[0] if name != "interval"]
    files.write_csv(path, names, ([row[name] for name in names] for row in rows))
