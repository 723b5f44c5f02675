"""Output of an evaluation as a text table, as JSON and as CSV."""

import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vae.data.files import write_beside, write_csv
from vae.evaluation.evaluate import Evaluation
from vae.evaluation.photographs import PhotographEvaluation

_WIDTH = 100
_NOTHING = "-"


def format_table(evaluation: Evaluation, photographs: PhotographEvaluation | None = None) -> str:
    """Formats the whole evaluation as plain text: codecs, labels, whole photographs, notes."""
    counts, (height, width) = evaluation.counts, evaluation.size
    scale = "unknown" if evaluation.scale is None else f"{evaluation.scale:g}"
    known = "" if evaluation.patients_known else " (unknown)"
    parts = [
        f"{_count(counts['tiles'], 'tile')} of {height} x {width} pixels, "
        f"{_count(counts['photographs'], 'photograph')}, "
        f"{_count(counts['patients'], 'patient')}{known}, scale {scale}",
        _ruled(
            ["codec", "SSIM", "95%", "PSNR dB", "95%", "latents", "ratio", "bytes*", "as fp16"],
            [_codec_cells(row) for row in evaluation.rows],
        ),
    ]
    if len(evaluation.labels) > 1:
        parts.append(_label_table(evaluation.labels))
    notes = evaluation.notes
    if photographs is not None:
        if photographs.rows:
            parts.append(_photograph_table(photographs))
        notes = notes + photographs.notes
    marks = ["* " + notes[0], *(f"- {note}" for note in notes[1:])]
    parts.append("\n".join(_wrap(mark) for mark in marks))
    return "\n\n".join(parts)


def results(
    evaluation: Evaluation, photographs: PhotographEvaluation | None = None
) -> dict[str, Any]:
    """Returns the evaluation as plain values, the content of results.json."""
    return {
        "rows": evaluation.rows,
        "labels": evaluation.labels,
        "counts": evaluation.counts,
        "means": evaluation.means,
        "size": list(evaluation.size),
        "scale": evaluation.scale,
        "patients_known": evaluation.patients_known,
        "photographs": None if photographs is None else photographs.as_dict(),
        "notes": evaluation.notes,
    }


def write_results(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes strict JSON atomically; numbers that are not finite become null."""
    text = json.dumps(strict(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_beside(path, (text + "\n").encode())


def write_tiles(
    path: str | os.PathLike, evaluation: Evaluation, origin: Mapping[str, str] | None = None
) -> None:
    """Writes the CSV of all tiles; metrics of tiles that were left out are empty.

    Args:
      path: Path of the file.
      evaluation: The evaluation with the tiles.
      origin: Further columns by name, with one value for all rows, such as the model's hash; rows
        of several files can then be merged.
    """
    origin = origin or {}
    rows = zip(*evaluation.tiles.values(), strict=True)
    cells = ([*map(_cell, row), *origin.values()] for row in rows)
    write_csv(path, [*evaluation.tiles, *origin], cells)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def strict(value: Any) -> Any:
    """Converts to plain values for strict JSON; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        return strict(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _codec_cells(row: dict[str, Any]) -> list[str]:
    interval = row["interval"] or {}
    return [
        row["name"],
        f"{row['ssim']:.4f}",
        _range(interval.get("ssim"), ".4f"),
        f"{row['psnr']:.2f}",
        _range(interval.get("psnr"), ".2f"),
        _number(row["latents"], ",d"),
        _number(row["ratio"], ",.4g" if (row["ratio"] or 0) < 1000 else ",.0f", ":1"),
        _number(row["bytes"], ",.0f"),
        _number(row["bytes_fp16"], ",d"),
    ]


def _label_table(labels: list[dict[str, Any]]) -> str:
    return _ruled(
        ["label", "tiles", "patients", "SSIM", "PSNR dB", "PCA SSIM", "PCA PSNR dB"],
        [
            [
                row["label"],
                f"{row['tiles']:,d}",
                f"{row['patients']:,d}",
                f"{row['ssim']:.4f}",
                f"{row['psnr']:.2f}",
                _number(row.get("pca_ssim"), ".4f"),
                _number(row.get("pca_psnr"), ".2f"),
            ]
            for row in labels
        ],
    )


def _photograph_table(photographs: PhotographEvaluation) -> str:
    means = photographs.means
    cells = [
        [
            f"mean of {_count(len(photographs.rows), 'whole photograph')}",
            "",
            *_photograph_cells(means),
        ],
        *(
            [row["photograph"], f"{row['height']} x {row['width']}", *_photograph_cells(row)]
            for row in photographs.rows
        ),
    ]
    return _ruled(["photograph", "size", "SSIM", "PSNR dB", "tile SSIM", "tile PSNR dB"], cells)


def _photograph_cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['ssim']:.4f}",
        f"{row['psnr']:.2f}",
        f"{row['tile_ssim']:.4f}",
        f"{row['tile_psnr']:.2f}",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,d} {noun}{'' if number == 1 else 's'}"


def _range(interval: list[float] | None, form: str) -> str:
    return _NOTHING if interval is None else f"{interval[0]:{form}}..{interval[1]:{form}}"


def _number(value: float | int | None, form: str, unit: str = "") -> str:
    return _NOTHING if value is None else f"{value:{form}}{unit}"


def _ruled(header: list[str], cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return align([header, ["-" * width for width in widths], *cells])


def align(rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns to their widest cell, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _wrap(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False)
