"""Evaluation of a model on a split, next to reproducible baselines."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from vae.data.errors import DataError
from vae.evaluation.aggregate import by_label, patient_intervals
from vae.evaluation.baselines import BICUBIC_FACTOR
from vae.evaluation.jpeg import SAMPLE_TILES, TileSample, jpeg_scores, match_quality
from vae.evaluation.scoring import baseline_step, latent_size, model_step
from vae.evaluation.split import Split, map_over_split
from vae.models.pca import PCA
from vae.sharding import local_rows, put, replicated

RATE_NOTE = (
    "bytes is what an ideal coder needs for posterior samples (KL/8), so it belongs to the quality "
    "of the *_sampled row: a posterior mean has no finite rate. JPEG: size of the files; "
    "mean_colour and bicubic_x4: one byte a value"
)
PATIENTS_NOTE = (
    "patients are unknown: photographs of one person may be on both sides of the split, and "
    "intervals are over the groups that stand for patients"
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metrics of one split. Tiles without an SSIM window inside the field of view are left out.

    Attributes:
      rows: The table, one dict per codec: name, ssim, psnr (dB), latents (values per tile, None for
        JPEG), ratio (input values / latents), bytes, bytes_fp16 (None where no latents are
        stored), interval ({"ssim": [low, high], "psnr": ...}, 95% over patients; None with one
        patient). `bytes` belongs to the quality of the sampled row.
      labels: Per label: tiles, patients, and ssim, psnr, psnr_unrounded of the model, and of PCA
        with the prefix `pca_`.
      counts: Numbers of tiles, left_out, patients and photographs.
      means: The model's means over tiles, for logs: ssim, psnr, ssim_sample, psnr_sample,
        psnr_unrounded, kl (nats), kl_bits.
      tiles: Columns [N], with NaN for the tiles left out: tile_id, photograph, patient, label,
        ssim, psnr, ssim_sample, psnr_sample, kl_bits, windows.
      size: Height and width of a tile in pixels.
      scale: Pixels of a tile per pixel of the original photograph; None if unknown or mixed.
      patients_known: False if the split may not be by patient.
      notes: Remarks to print with the table.
    """

    rows: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    counts: dict[str, int]
    means: dict[str, float]
    tiles: dict[str, np.ndarray]
    size: tuple[int, int]
    scale: float | None
    patients_known: bool
    notes: list[str]


def evaluate(
    module: nn.Module,
    variables: Any,
    split: Split,
    *,
    mesh: Mesh,
    pca: PCA | None = None,
    seed: int = 0,
    baselines: bool = True,
    jpeg: bool = True,
    scale: float | None = None,
    patients_known: bool = True,
) -> Evaluation:
    """Evaluates a model on every tile of a split, each exactly once.

    SSIM and PSNR are means over tiles, for reconstructions rounded to 8 bits from the posterior
    mean (row `model`) and from a posterior sample (row `model_sampled`). All processes of the mesh
    call it together and return the same values.

    Args:
      module: A module with the methods `encode` and `decode`.
      variables: Variables of the module, on the mesh in any sharding.
      split: Function that starts a pass over this process's rows, as `lambda: eval_batches(...)`;
        called once, and once more for the JPEG row.
      mesh: Mesh with the axes data and fsdp, which together divide the global batch.
      pca: Linear codec of the same latent size, for the rows `pca` and `pca_sampled`.
      seed: Seed of posterior samples, bootstrap and the tiles that choose the JPEG quality.
      baselines: If true, computes the rows mean_colour, bicubic_x4 and PCA's.
      jpeg: If true, computes the row jpeg, at the quality whose mean bytes match the model's.
      scale: Passed on to the result.
      patients_known: Passed on to the result.

    Raises:
      DataError: The split is empty, or no tile has an SSIM window inside its field of view.
    """
    scores, names, sample, size = _model_pass(
        module, variables, split, mesh=mesh, pca=pca, seed=seed, baselines=baselines, sample=jpeg
    )
    counted = scores["windows"] > 0
    if not counted.any():
        raise DataError(
            f"none of {len(counted)} tiles holds an 11 x 11 window inside its field of view, so "
            "there is nothing to measure; look at the tiles' FOV"
        )
    notes = [RATE_NOTE]
    model_bytes = _kl_bytes(scores["model.kl"])
    if jpeg:
        quality = match_quality(sample, np.where(counted, model_bytes, np.nan))
        scores |= jpeg_scores(split(), mesh, quality)
        notes.append(f"jpeg: quality {quality} (Pillow, 4:2:0, optimised tables)")
    counts = {
        "tiles": int(counted.sum()),
        "left_out": int((~counted).sum()),
        "patients": len(np.unique(names["patient"][counted])),
        "photographs": len(np.unique(names["photograph"][counted])),
    }
    if counts["left_out"]:
        notes.append(f"{counts['left_out']} tiles without an SSIM window inside the FOV left out")
    if counts["patients"] == 1:
        notes.append("one patient: no interval can be given")
    if not patients_known:
        notes.append(PATIENTS_NOTE)
    kept = {key: values[counted] for key, values in scores.items()}
    patients = names["patient"][counted]
    latents = latent_size(module, variables, (*size, 3))
    pca_latents = math.prod(size) // pca.downsample**2 * pca.sd.size if pca is not None else 0
    return Evaluation(
        rows=_rows(kept, patients, size, latents, pca_latents, seed),
        labels=by_label(names["label"][counted], patients, _label_scores(kept)),
        counts=counts,
        means=_means(kept),
        tiles=_tile_columns(names, scores, counted),
        size=size,
        scale=scale,
        patients_known=patients_known,
        notes=notes,
    )


def _model_pass(module, variables, split: Split, *, mesh, pca, seed, baselines, sample):
    """Returns (metrics [N] by name, names, sample of tiles, (H, W))."""
    seed_on_mesh, pca_on_mesh = put((np.uint32(seed), pca), replicated(mesh))
    drawn = TileSample(max(SAMPLE_TILES // jax.process_count(), 1) if sample else 0, seed)
    size = None

    def step(batch, placed, first_row):
        nonlocal size
        images, fov = placed["image"], placed["fov"]
        size = images.shape[1:3]
        if sample:
            valid = batch["valid"]
            rows = first_row + local_rows(mesh, len(images))
            drawn.add(batch["image"][valid], batch["tile_id"][valid], rows[valid])
        row = put(np.int32(first_row), replicated(mesh))
        scores = model_step(module, mesh)(variables, images, fov, row, seed_on_mesh)
        if baselines:
            scores |= baseline_step(mesh)(pca_on_mesh, images, fov, row, seed_on_mesh)
        return scores

    scores, names = map_over_split(split(), mesh, step)
    if not names or not len(names["tile_id"]):
        raise DataError("the split holds no tiles; evaluate another one, or build it with more")
    return scores, names, drawn, size


def _kl_bytes(nats: np.ndarray) -> np.ndarray:
    return nats / math.log(2) / 8


def _rows(
    scores: dict[str, np.ndarray],
    patients: np.ndarray,
    size: tuple[int, int],
    latents: int,
    pca_latents: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Returns the table's rows, for the codecs that were measured."""
    values = math.prod(size) * 3
    reduced = values // BICUBIC_FACTOR**2
    # name: (latents, mean bytes, bytes as float16)
    codecs = {"mean_colour": (3, 3.0, None), "bicubic_x4": (reduced, float(reduced), None)}
    for name, count in (("pca", pca_latents), ("model", latents)):
        if name == "model" and "jpeg.bytes" in scores:
            codecs["jpeg"] = (None, float(scores["jpeg.bytes"].mean()), None)
        if f"{name}.kl" in scores:
            rate = float(_kl_bytes(scores[f"{name}.kl"]).mean())
            codecs |= {row: (count, rate, 2 * count) for row in (name, f"{name}_sampled")}
    codecs = {name: sizes for name, sizes in codecs.items() if f"{name}.ssim" in scores}

    columns = [scores[f"{name}.{kind}"] for name in codecs for kind in ("ssim", "psnr")]
    intervals = patient_intervals(np.stack(columns, axis=1), patients, seed=seed)
    rows = []
    for i, (name, (count, mean_bytes, bytes_fp16)) in enumerate(codecs.items()):
        interval = None
        if intervals is not None:
            ssim, psnr = intervals[:, 2 * i].tolist(), intervals[:, 2 * i + 1].tolist()
            interval = {"ssim": ssim, "psnr": psnr}
        rows.append(
            {
                "name": name,
                "ssim": float(columns[2 * i].mean()),
                "psnr": float(columns[2 * i + 1].mean()),
                "latents": count,
                "ratio": values / count if count else None,
                "bytes": mean_bytes,
                "bytes_fp16": bytes_fp16,
                "interval": interval,
            }
        )
    return rows


def _label_scores(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    columns = {}
    for prefix, name in (("", "model"), ("pca_", "pca")):
        if f"{name}.ssim" in scores:
            columns |= {
                f"{prefix}{kind}": scores[f"{name}.{kind}"]
                for kind in ("ssim", "psnr", "psnr_unrounded")
            }
    return columns


def _tile_scores(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "ssim": scores["model.ssim"],
        "psnr": scores["model.psnr"],
        "ssim_sample": scores["model_sampled.ssim"],
        "psnr_sample": scores["model_sampled.psnr"],
        "kl_bits": scores["model.kl"] / math.log(2),
    }


def _means(scores: dict[str, np.ndarray]) -> dict[str, float]:
    columns = _tile_scores(scores) | {
        "psnr_unrounded": scores["model.psnr_unrounded"],
        "kl": scores["model.kl"],
    }
    return {name: float(values.mean()) for name, values in columns.items()}


def _tile_columns(
    names: dict[str, np.ndarray], scores: dict[str, np.ndarray], counted: np.ndarray
) -> dict[str, np.ndarray]:
    left_out = {
        name: np.where(counted, values, np.nan) for name, values in _tile_scores(scores).items()
    }
    return {**names, **left_out, "windows": scores["windows"].astype(np.int64)}
