"""Evaluation of an enhancer on a dataset, for every case and method."""

import concurrent.futures
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae.checkpoints.provenance import dated_provenance
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.cores import available_cores
from vae.data.errors import UsageError
from vae.data.files import make_folder, write_beside
from vae.data.images import encode_image
from vae.data.pipeline import Dataset, open_dataset
from vae.evaluation.enhancement import classical
from vae.evaluation.enhancement.calibration import calibration, format_calibration
from vae.evaluation.enhancement.cases import (
    CASES,
    MIXED,
    Case,
    Shown,
    Tile,
    degrade_case,
    pick_tiles,
)
from vae.evaluation.enhancement.structure import (
    STRUCTURE_METRICS,
    Structure,
    compare_structure,
    find_structure,
)
from vae.evaluation.enhancement.table import (
    MODEL_ROW,
    NOTHING,
    averaged,
    format_table,
    lesions_by_label,
    rows_of,
    write_csv,
)
from vae.evaluation.table import write_results
from vae.inference.enhance import EnhancementModel
from vae.metrics import masked_psnr, masked_ssim

RESULTS, TABLE, FIGURE = "enhancement.json", "enhancement.csv", "enhancement.png"
TILE_COUNT = 22
EXAMPLES = 6
# Seed of the tiles and their degradations: fixed, so that all models are measured on the same.
SEED = 0


def evaluate_enhancement(
    model: EnhancementModel,
    tiles: Sequence[Tile],
    *,
    cases: Sequence[Case] = CASES,
    methods: dict[str, classical.Method] | None = None,
    structure: bool = True,
) -> list[dict[str, Any]]:
    """Measures each tile, case and method.

    Args:
      model: The enhancer.
      tiles: Tiles of `pick_tiles`.
      cases: Ways of degrading.
      methods: Classical methods by name; None for all of `classical.METHODS`.
      structure: If true, compares vessels and lesions, the slowest part; else those are NaN.

    Returns:
      Dicts of degradation, severity, method, tile_id, patient, label, psnr (dB) and ssim inside
      the field of view, and `structure.STRUCTURE_METRICS`.
    """
    methods = classical.METHODS if methods is None else methods
    found = []
    with concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
        known = list(pool.map(lambda t: find_structure(t.image, t.fov), tiles)) if structure else []
        for case in cases:
            pairs = [degrade_case(tile, case, SEED) for tile in tiles]
            seen, thumbnails = (np.stack(pictures) for pictures in zip(*pairs, strict=True))
            circles = np.stack([tile.fov_circle for tile in tiles])
            made = {NOTHING: seen}
            for name, method in methods.items():
                made[name] = np.stack(list(pool.map(method, seen)))
            made[MODEL_ROW] = model.enhance_tiles(seen, thumbnails, circles)
            for name, images in made.items():
                found += _scored(tiles, case, name, images, known, pool)
    return found


def evaluate_enhancer(
    saved: SavedModel,
    dataset: Dataset | str,
    *,
    split: str = "test",
    limit: int = 0,
    out: Path | str | None = None,
    report: Path | str | None = None,
    cases: Sequence[Case] = CASES,
) -> list[dict[str, Any]]:
    """Evaluates an enhancer and prints the table.

    Args:
      saved: The model.
      dataset: A dataset with thumbnails of its photographs, or its folder.
      split: Name of the split.
      limit: Approximate number of tiles, equally many per patient; 0 for 22.
      out: Folder for `enhancement.json`, `enhancement.csv` and `enhancement.png`; None for none.
      report: Folder for `index.html` and `enhancement.json`; None for none.
      cases: Ways of degrading, including mixed and clean.

    Returns:
      Rows of the table; see `table.rows_of`.

    Raises:
      UsageError: There is no such split.
      DataError: The dataset has no thumbnails, or a folder cannot be made.
    """
    dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    if split not in dataset.shards:
        raise UsageError(f"--split {split}: the dataset has {', '.join(dataset.shards)}")
    for option, folder in (("--out", out), ("--report", report)):
        if folder is not None:
            make_folder(folder, option)
    config, model = saved.config, EnhancementModel(saved)
    tiles = pick_tiles(dataset, split, size=config.data.size, count=limit or TILE_COUNT, seed=SEED)
    scores = evaluate_enhancement(model, tiles, cases=cases)
    uncertainty = calibrate(model, tiles)
    rows = rows_of(scores)
    print(f"{config.name} after {saved.step} steps, split {split}, {len(tiles)} tiles degraded:")
    print(format_table(rows))
    print(closing_line(rows))
    print(format_calibration(uncertainty))
    if out is None and report is None:
        return rows
    content = {
        "rows": rows,
        "labels": lesions_by_label(scores),
        "uncertainty": uncertainty,
        "tiles": len(tiles),
        "split": split,
        "seed": SEED,
        "config": config.name,
        "step": saved.step,
        "model": model.hash,
        "data": "/".join(dataset.path.parts[-3:]),
        "dataset": dataset.fingerprint,
        **dated_provenance(),
    }
    examples = examples_of(model, tiles)
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


def closing_line(rows: Sequence[dict[str, Any]]) -> str:
    """Summarises the mixed and the clean tiles in one line."""
    table = averaged(rows)
    before, after = table[MIXED][NOTHING], table[MIXED][MODEL_ROW]
    return (
        f"mixed: {before['psnr']:.2f} -> {after['psnr']:.2f} dB "
        f"({after['psnr'] - before['psnr']:+.2f}), SSIM {before['ssim']:.4f} -> "
        f"{after['ssim']:.4f} ({after['ssim'] - before['ssim']:+.4f}); "
        f"clean tiles: SSIM {table['clean'][MODEL_ROW]['ssim']:.4f} to themselves"
    )


def quick_scores(saved: SavedModel, dataset: Dataset, split: str, limit: int) -> dict[str, float]:
    """Measures mixed and clean tiles for logs, without classical methods and structure.

    Args:
      saved: The model.
      dataset: A dataset with thumbnails.
      split: Name of the split.
      limit: Approximate number of tiles, equally many per patient; 0 for 22.
    """
    size = saved.config.data.size
    tiles = pick_tiles(dataset, split, size=size, count=limit or TILE_COUNT, seed=SEED)
    model = EnhancementModel(saved)
    found = evaluate_enhancement(model, tiles, cases=CASES[:2], methods={}, structure=False)
    table = averaged(rows_of(found))
    return {
        "psnr": table[MIXED][MODEL_ROW]["psnr"],
        "ssim": table[MIXED][MODEL_ROW]["ssim"],
        "psnr_before": table[MIXED][NOTHING]["psnr"],
        "ssim_before": table[MIXED][NOTHING]["ssim"],
        "ssim_clean": table["clean"][MODEL_ROW]["ssim"],
        "tiles": len(tiles),
    }


def calibrate(model: EnhancementModel, tiles: Sequence[Tile]) -> dict[str, Any]:
    """Compares uncertainty and error on mixed tiles; see `calibration`."""
    pairs = [degrade_case(tile, Case(MIXED, math.nan), SEED) for tile in tiles]
    seen, thumbnails = (np.stack(pictures) for pictures in zip(*pairs, strict=True))
    clean, fov, circles = (
        np.stack([getattr(tile, name) for tile in tiles]) for name in ("image", "fov", "fov_circle")
    )
    made = model.enhance_tiles(seen, thumbnails, circles)
    return calibration(clean, made, model.tile_uncertainty(seen, thumbnails, circles), fov)


def examples_of(model: EnhancementModel, tiles: Sequence[Tile]) -> list[Shown]:
    """Returns some mixed tiles, before and after enhancement."""
    shown = []
    for tile in tiles[:: max(1, len(tiles) // EXAMPLES)][:EXAMPLES]:
        seen, thumbnail = degrade_case(tile, Case(MIXED, math.nan), SEED)
        made = model.enhance_tiles(seen[None], thumbnail[None], tile.fov_circle[None])[0]
        images = [image / np.float32(255) for image in (tile.image, seen, made)]
        clean, before, after = (image[None] for image in images)
        fov = tile.fov[None]
        ssim = [float(masked_ssim(clean, image, fov)[0]) for image in (before, after)]
        psnr = [float(masked_psnr(tile.image[None], x[None], fov)[0]) for x in (seen, made)]
        caption = (
            f"SSIM {ssim[0]:.4f} to {ssim[1]:.4f}, {psnr[0]:.1f} to {psnr[1]:.1f} dB\n"
            f"{tile.tile_id}"
        )
        shown.append(Shown(caption, seen, made, tile.image))
    return shown


def draw_examples(examples: Sequence[Shown]) -> np.ndarray:
    """Draws a column of degraded, enhanced and clean tile per example: uint8 [h, w, 3]."""
    columns = [np.concatenate([one.before, one.after, one.clean]) for one in examples]
    return np.concatenate(columns, axis=1)


def _scored(
    tiles: Sequence[Tile],
    case: Case,
    method: str,
    images: np.ndarray,
    known: Sequence[Structure],
    pool: concurrent.futures.Executor,
) -> Iterator[dict[str, Any]]:
    clean, fov = (np.stack([getattr(tile, name) for tile in tiles]) for name in ("image", "fov"))
    similarity = masked_ssim(clean / np.float32(255), images / np.float32(255), fov)
    ratio = masked_psnr(clean, images, fov)
    kept = pool.map(compare_structure, known, images) if known else [{}] * len(tiles)
    blank = dict.fromkeys(STRUCTURE_METRICS, math.nan)
    severity = None if math.isnan(case.severity) else case.severity
    for tile, one_ssim, one_psnr, scores in zip(tiles, similarity, ratio, kept, strict=True):
        yield {
            "degradation": case.name,
            "severity": severity,
            "method": method,
            "tile_id": str(tile.tile_id),
            "patient": str(tile.patient),
            "label": str(tile.label),
            "psnr": float(one_psnr),
            "ssim": float(one_ssim),
            **(blank | scores),
        }
