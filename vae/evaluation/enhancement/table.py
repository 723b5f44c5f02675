"""Metrics of all cases as table rows, text and CSV."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vae.data import files
from vae.evaluation.aggregate import patient_intervals
from vae.evaluation.enhancement.structure import STRUCTURE_METRICS

NOTHING, MODEL_ROW = "do_nothing", "enhance"
# A photograph counts as worse from this loss of PSNR on, dB.
WORSE = 0.1
METRICS = ("psnr", "ssim", "hue", "dice", *STRUCTURE_METRICS)


def rows_of(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computes means over photographs for each case and method.

    Args:
      scores: One dict per photograph, case and method: case, method, name, patient, and `METRICS`.

    Returns:
      Rows in order of appearance: case, method, photographs, patients, `METRICS` (None where
      nothing could be compared), gain (dB above doing nothing), worse (share of the photographs
      that lose more than `WORSE`), ssim_min, and `interval`: 95% intervals over patients of psnr,
      ssim and gain; None with one patient.
    """
    nothing = {(s["case"], s["name"]): s["psnr"] for s in scores if s["method"] == NOTHING}
    groups: dict[tuple, list[dict]] = {}
    for entry in scores:
        gain = entry["psnr"] - nothing[entry["case"], entry["name"]]
        groups.setdefault((entry["case"], entry["method"]), []).append(entry | {"gain": gain})
    rows = []
    for (case, method), entries in groups.items():
        patients = np.array([entry["patient"] for entry in entries])
        row = {
            "case": case,
            "method": method,
            "photographs": len(entries),
            "patients": len(set(patients)),
        }
        spans = {}
        for metric in (*METRICS, "gain"):
            values = np.array([entry[metric] for entry in entries])
            known = np.isfinite(values)
            row[metric] = float(values[known].mean()) if known.any() else None
            if metric in ("psnr", "ssim", "gain") and known.any():
                span = patient_intervals(values[known, None], patients[known])
                spans[metric] = None if span is None else [float(end) for end in span[:, 0]]
        row["worse"] = float(np.mean([entry["gain"] < -WORSE for entry in entries]))
        row["ssim_min"] = float(min(entry["ssim"] for entry in entries))
        rows.append(row | {"interval": spans})
    return rows


def by_case(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns case -> method -> row."""
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        found.setdefault(row["case"], {})[row["method"]] = row
    return found


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the metrics of each case, and the gains of other methods."""
    table = by_case(rows)
    others = [m for m in next(iter(table.values())) if m not in (NOTHING, MODEL_ROW)]
    width = max(map(len, table)) + 2
    columns = (("PSNR, dB", 16), ("gain", 7), ("worse", 7), ("SSIM", 15), ("hue", 6))
    columns += (("vesselness", 15), ("Dice", 15), *((name, 17) for name in others))
    lines = [" " * width + "".join(f"{name:>{space}}" for name, space in columns)]
    for case, found in table.items():
        before, after = found[NOTHING], found[MODEL_ROW]
        cells = (
            f"{before['psnr']:>7.2f} {after['psnr']:>8.2f}{after['gain']:>+7.2f}"
            f"{after['worse']:>7.0%}{before['ssim']:>8.4f} {after['ssim']:.4f}"
            f"{_number(after['hue'], 6, '.1f')}"
            f"{_number(before['vesselness'], 8, '.3f')}{_number(after['vesselness'], 7, '.3f')}"
            f"{_number(before['dice'], 8, '.3f')}{_number(after['dice'], 7, '.3f')}"
        )
        gains = "".join(f"{found[name]['gain']:>+17.2f}" for name in others)
        lines.append(f"{case:<{width}}{cells}{gains}")
    lines.append(
        "PSNR before and after; gain over doing nothing, also of other methods, dB; share of the "
        f"photographs that lose more than {WORSE} dB; shift of the hue, degrees; correlation of "
        "vesselness and Dice of vessel maps, before and after; inside the field of view"
    )
    return "\n".join(lines)


def write_csv(path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the rows as CSV, without intervals, atomically."""
    names = [name for name in rows[0] if name != "interval"]
    files.write_csv(path, names, ([row[name] for name in names] for row in rows))


def _number(value: float | None, width: int, form: str) -> str:
    return " " * width if value is None else f"{value:>{width}{form}}"
