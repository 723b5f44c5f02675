"""Evaluation of an enhancer as users run it: on whole photographs, for every case and method."""

import concurrent.futures
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vae.checkpoints.provenance import dated_provenance
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.cores import available_cores
from vae.data.errors import DataError, UsageError
from vae.data.files import make_folder, write_beside
from vae.data.images import encode_image
from vae.data.pipeline import Dataset, open_dataset
from vae.evaluation.enhancement import classical
from vae.evaluation.enhancement.cases import (
    CASES,
    CLEAN,
    SEVERAL,
    SIDE,
    Photograph,
    Shown,
    degraded,
    read_photograph,
)
from vae.evaluation.enhancement.structure import compare_structure, find_structure
from vae.evaluation.enhancement.table import (
    METRICS,
    MODEL_ROW,
    NOTHING,
    by_case,
    format_table,
    rows_of,
    write_csv,
)
from vae.evaluation.table import write_results
from vae.evaluation.vessels import Segmentation, dice
from vae.inference.compare import compare
from vae.inference.enhance import EnhancementModel
from vae.inference.pictures import reduced

RESULTS, TABLE, FIGURE = "enhancement.json", "enhancement.csv", "enhancement.png"
PHOTOGRAPH_COUNT = 12
EXAMPLES = 6
# Longer side of the pictures of the report, pixels.
PICTURE_SIDE = 512
# Least saturation of the pixels whose hue is compared.
SATURATION = 0.1


def evaluate_enhancement(
    model: EnhancementModel,
    photographs: Sequence[Photograph],
    *,
    cases: Sequence[str] = CASES,
    methods: dict[str, classical.Method] | None = None,
    structure: bool = True,
    vessels: Segmentation | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Measures each photograph, case and method.

    Args:
      model: The enhancer.
      photographs: Clean photographs.
      cases: Names of `CASES`.
      methods: Classical methods by name; None for all of `classical.METHODS`.
      structure: If true, compares vesselness and small spots, the slowest part.
      vessels: Segmentation of vessels (`vae.evaluation.vessels`), whose maps are compared.

    Yields:
      For each photograph dicts of case, method, name, patient, label, judged, quality, and
      `table.METRICS`: psnr (dB), ssim, hue (absolute shift of the mean hue, degrees), and the
      measures of vessels; NaN where they are not measured.
    """
    methods = classical.METHODS if methods is None else methods
    for photograph in photographs:
        known = find_structure(photograph.image, photograph.measured) if structure else None
        clean = vessels(photograph.image, photograph.fov) if vessels else None
        found = []
        for case in cases:
            seen = degraded(photograph, case)
            enhanced = model.enhanced(seen, photograph.fov)
            made = {NOTHING: seen, MODEL_ROW: enhanced.image}
            with concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
                results = [pool.submit(method, seen) for method in methods.values()]
                made |= {name: one.result() for name, one in zip(methods, results, strict=True)}
            for name, image in made.items():
                ours = name in (NOTHING, MODEL_ROW)
                found.append({
                    "case": case,
                    "method": name,
                    "name": photograph.name,
                    "patient": photograph.patient,
                    "label": photograph.label,
                    "judged": str(enhanced.judgement) if ours else "",
                    "quality": enhanced.judgement.quality if ours else math.nan,
                    **_scores(photograph, image, known if ours else None),
                })  # fmt: skip
                if vessels and ours:
                    found[-1]["dice"] = dice(clean, vessels(image, photograph.fov))
        yield found


def evaluate_enhancer(
    saved: SavedModel,
    dataset: Dataset | str,
    *,
    split: str = "test",
    limit: int = 0,
    out: Path | str | None = None,
    report: Path | str | None = None,
    cases: Sequence[str] = CASES,
    vessels: Segmentation | None = None,
) -> list[dict[str, Any]]:
    """Evaluates an enhancer on the photographs of a split and prints the table.

    The photographs are read from the files that their tiles were cut from.

    Args:
      saved: The model.
      dataset: A dataset, or its folder.
      split: Name of the split.
      limit: Largest number of photographs, spread over the labels; 0 for 12.
      out: Folder for `enhancement.json`, `enhancement.csv` and `enhancement.png`; None for none.
      report: Folder for `index.html` and `enhancement.json`; None for none.
      cases: Names of `cases.CASES`.
      vessels: See `evaluate_enhancement`.

    Returns:
      Rows of the table; see `table.rows_of`.

    Raises:
      UsageError: There is no such split.
      DataError: No photograph of the split can be read, or a folder cannot be made.
    """
    dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    if split not in dataset.shards:
        raise UsageError(f"--split {split}: the dataset has {', '.join(dataset.shards)}")
    for option, folder in (("--out", out), ("--report", report)):
        if folder is not None:
            make_folder(folder, option)
    config, model = saved.config, EnhancementModel(saved)
    photographs = read_photographs(dataset, split, limit or PHOTOGRAPH_COUNT)
    scores = []
    measured = evaluate_enhancement(model, photographs, cases=cases, vessels=vessels)
    for number, found in enumerate(measured, 1):
        scores += found
        print(f"{number} of {len(photographs)}: {found[0]['name']}, judged {found[0]['judged']}")
    rows = rows_of(scores)
    print(f"{config.name} after {saved.step} steps, split {split}, {len(photographs)} photographs:")
    print(format_table(rows))
    print(closing_line(rows))
    if out is None and report is None:
        return rows
    content = {
        "rows": rows,
        "photographs": scores,
        "split": split,
        "config": config.name,
        "step": saved.step,
        "model": model.hash,
        "data": "/".join(dataset.path.parts[-3:]),
        "dataset": dataset.fingerprint,
        **dated_provenance(),
    }
    examples = examples_of(model, photographs)
    written = []
    if out is not None:
        out = Path(out)
        write_results(out / RESULTS, content)
        write_csv(out / TABLE, rows)
        write_beside(out / FIGURE, encode_image(draw_examples(examples), ".png"))
        written += [out / RESULTS, out / TABLE, out / FIGURE]
    if report is not None:
        from vae.evaluation.enhancement.report import write_report

        write_results(Path(report) / RESULTS, content)
        written.append(write_report(report, content, examples))
    print(f"written: {', '.join(map(str, written))}")
    return rows


def read_photographs(
    dataset: Dataset, split: str, count: int, side: int = SIDE
) -> list[Photograph]:
    """Reads up to `count` photographs of a split, spread over its rows, reduced to `side`.

    Raises:
      DataError: None can be read.
    """
    rows = [row for row in dataset.photographs() if row.split == split]
    rows = rows[:: -(-len(rows) // count)] if rows else []
    images, numbers = dataset.thumbnails()
    thumbnails = {name: images[number] for name, number in numbers.items()}
    found, problem = [], f"{dataset.path}: photographs.csv lists no photograph of split {split!r}"
    for row in rows:
        try:
            found.append(read_photograph(row, side, thumbnails))
        except DataError as error:
            problem = f"{error}; an enhancer is measured on whole photographs"
            print(problem)
    if not found:
        raise DataError(problem)
    return found


def closing_line(rows: Sequence[dict[str, Any]]) -> str:
    """Summarises several degradations at once and the clean photographs in one line."""
    table = by_case(rows)
    parts = []
    if SEVERAL in table:
        before, after = table[SEVERAL][NOTHING], table[SEVERAL][MODEL_ROW]
        parts.append(
            f"several at once: {before['psnr']:.2f} -> {after['psnr']:.2f} dB "
            f"({after['gain']:+.2f}), SSIM {before['ssim']:.4f} -> {after['ssim']:.4f}"
        )
    if CLEAN in table:
        clean = table[CLEAN][MODEL_ROW]
        parts.append(
            f"clean photographs: SSIM {clean['ssim']:.4f} to themselves, at least "
            f"{clean['ssim_min']:.4f}"
        )
    return "; ".join(parts)


def quick_scores(saved: SavedModel, dataset: Dataset, split: str, limit: int) -> dict[str, float]:
    """Measures several degradations at once and clean photographs, for logs.

    Args:
      saved: The model.
      dataset: A dataset whose photographs can be read.
      split: Name of the split.
      limit: Largest number of photographs.
    """
    photographs = read_photographs(dataset, split, limit, PICTURE_SIDE)
    found = evaluate_enhancement(
        EnhancementModel(saved), photographs, cases=(CLEAN, SEVERAL), methods={}, structure=False
    )
    table = by_case(rows_of([row for rows in found for row in rows]))
    before, after = table[SEVERAL][NOTHING], table[SEVERAL][MODEL_ROW]
    return {
        "psnr": after["psnr"],
        "ssim": after["ssim"],
        "psnr_before": before["psnr"],
        "ssim_before": before["ssim"],
        "ssim_clean": table[CLEAN][MODEL_ROW]["ssim"],
        "photographs": len(photographs),
    }


def examples_of(model: EnhancementModel, photographs: Sequence[Photograph]) -> list[Shown]:
    """Returns some photographs under several degradations, before and after enhancement."""
    shown = []
    for one in photographs[:: max(1, len(photographs) // EXAMPLES)][:EXAMPLES]:
        seen = degraded(one, SEVERAL)
        made = model.enhanced(seen, one.fov)
        (s0, p0), (s1, p1) = (compare(one.image, x, one.measured) for x in (seen, made.image))
        caption = (
            f"SSIM {s0:.4f} to {s1:.4f}, {p0:.1f} to {p1:.1f} dB, judged {made.judgement}\n"
            f"{one.name}"
        )
        shown.append(
            Shown(caption, *(reduced(x, PICTURE_SIDE) for x in (seen, made.image, one.image)))
        )
    return shown


def draw_examples(examples: Sequence[Shown]) -> np.ndarray:
    """Draws a column of degraded, enhanced and clean photograph per example: uint8 [h, w, 3]."""
    columns = [np.concatenate([one.before, one.after, one.clean]) for one in examples]
    tallest = max(len(column) for column in columns)
    columns = [np.pad(c, ((0, tallest - len(c)), (0, 0), (0, 0))) for c in columns]
    return np.concatenate(columns, axis=1)


def hue_shift(clean: np.ndarray, image: np.ndarray, inside: np.ndarray) -> float:
    """Returns the absolute shift of the mean hue in degrees, over coloured pixels.

    Args:
      clean: uint8 [H, W, 3].
      image: uint8 [H, W, 3].
      inside: bool [H, W], pixels to compare.
    """
    hsv = [cv2.cvtColor(x.astype(np.float32) / 255, cv2.COLOR_RGB2HSV) for x in (clean, image)]
    there = inside & (hsv[0][..., 1] > SATURATION) & (hsv[1][..., 1] > SATURATION)
    if not there.any():
        return math.nan
    turn = np.radians(hsv[1][there][:, 0] - hsv[0][there][:, 0])
    return float(abs(np.degrees(np.angle(np.exp(1j * turn).mean()))))


def _scores(photograph: Photograph, image: np.ndarray, known) -> dict[str, float]:
    ssim, psnr = compare(photograph.image, image, photograph.measured)
    kept = dict.fromkeys(METRICS, math.nan)
    if known is not None:
        found = compare_structure(known, image)
        kept |= {name: found[name] for name in METRICS if name in found}
    hue = hue_shift(photograph.image, image, photograph.measured)
    return kept | {"psnr": float(psnr), "ssim": float(ssim), "hue": hue}
