"""Rate-distortion curves: the baselines at several sizes, on a sample of tiles.

The table has one size of each codec. The curves show how many more bytes JPEG, or how many more
components PCA needs for equal quality. All points, the model's included, are means over the same
sample of tiles; their values differ a little from the table's.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vae.evaluation.evaluate import Evaluation
from vae.evaluation.jpeg import jpeg_scores
from vae.evaluation.scoring import TileMetrics, bicubic_step, latent_size, model_step, pca_step
from vae.evaluation.split import NAMES, Batch, Split, map_over_split
from vae.inference.batches import filled
from vae.models.pca import PCA
from vae.sharding import put, replicated

TILE_COUNT = 128
JPEG_QUALITIES = (30, 50, 70, 80, 88, 93, 96, 98)
BICUBIC_FACTORS = (2, 4, 8)
# Numbers of PCA components, as shares of those of the fit.
PCA_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Points of rate-distortion curves, as means over a sample of tiles.

    Attributes:
      tiles: Number of tiles.
      points: One dict per codec and setting: codec ("model", "pca", "bicubic", "jpeg"), setting (in
        words), latents (values per tile, None for JPEG), bytes (per tile; None without a rate),
        ssim, psnr (dB), and for codecs with a posterior ssim_sampled and psnr_sampled, the quality
        that belongs to `bytes`.
    """

    tiles: int
    points: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"tiles": self.tiles, "points": self.points}


def rate_curves(
    evaluation: Evaluation,
    split: Split,
    *,
    mesh: Mesh,
    latents: int,
    pca: PCA | None,
    other_models: Sequence[tuple[str, nn.Module, Any]] = (),
    seed: int = 0,
) -> Curves:
    """Measures the baselines at several sizes, and other models, on a single process.

    Args:
      evaluation: Evaluation of the model on the split.
      split: The split that was evaluated; read once more.
      mesh: Mesh with the axes data and fsdp.
      latents: The model's number of latent values per tile.
      pca: Fit with the largest number of components to show; None for no PCA curve.
      other_models: Other models for tiles of this size: name, module, variables on the mesh.
      seed: Seed of the sample of tiles and of posterior samples.

    Returns:
      The models' points, then the curves, each from small to large.
    """
    counted = np.flatnonzero(evaluation.tiles["windows"] > 0)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(counted, min(TILE_COUNT, len(counted)), replace=False))
    batches = list(_chosen_batches(split, chosen))
    values = math.prod(evaluation.size)
    models = [_model_point(evaluation, chosen, latents)]
    for name, module, variables in other_models:
        count = latent_size(module, variables, (*evaluation.size, 3))
        scores = _codec_metrics(model_step(module, mesh), variables, batches, mesh, seed)
        models.append(_coded_point("model", name, scores, count))
    points = sorted(models, key=lambda point: point["latents"])
    if pca is not None:
        for count in sorted({max(round(pca.sd.size * share), 1) for share in PCA_SHARES}):
            fewer = put(truncate(pca, count), replicated(mesh))
            scores = _codec_metrics(pca_step(mesh), fewer, batches, mesh, seed)
            setting = f"{count} component{'s' if count > 1 else ''}"
            size = count * (values // pca.downsample**2)
            points.append(_coded_point("pca", setting, scores, size))
    for factor in sorted(BICUBIC_FACTORS, reverse=True):
        if all(side % factor == 0 for side in evaluation.size):
            points.append(_bicubic_point(batches, mesh, factor, 3 * values // factor**2))
    points += [_jpeg_point(batches, mesh, quality) for quality in JPEG_QUALITIES]
    return Curves(len(chosen), points)


def truncate(pca: PCA, count: int) -> PCA:
    """Keeps the first `count` components; the variance of the others joins the residual."""
    dropped = np.sum(np.square(pca.sd[count:], dtype=np.float64))
    scale = np.sqrt(np.square(pca.scale, dtype=np.float64) + dropped / pca.mean.size)
    return PCA(pca.mean, pca.components[:, :count], pca.sd[:count], np.float32(scale))


def _chosen_batches(split: Split, chosen: np.ndarray):
    """Yields the chosen rows of the split, in batches of the split's batch size."""
    wanted = set(chosen.tolist())
    held, size, first_row = [], 0, 0
    for batch in split():
        size = len(batch["valid"])
        for row in range(size):
            if first_row + row in wanted:
                held.append({key: np.array(values[row]) for key, values in batch.items()})
        first_row += size
    for start in range(0, len(held), size):
        yield _stack(held[start : start + size], size)


def _stack(rows: list[dict[str, np.ndarray]], size: int) -> Batch:
    """Stacks rows to a batch and pads it with invalid rows."""
    columns = {key: np.stack([row[key] for row in rows]) for key in ("image", "fov", *NAMES)}
    return filled(columns, size) | {"valid": np.arange(size) < len(rows)}


def _model_point(evaluation: Evaluation, chosen: np.ndarray, latents: int) -> dict[str, Any]:
    means = {name: float(values[chosen].mean()) for name, values in evaluation.tiles.items()
             if values.dtype.kind == "f"}  # fmt: skip
    return {
        "codec": "model",
        "setting": "this model",
        "latents": latents,
        "bytes": means["kl_bits"] / 8,
        "ssim": means["ssim"],
        "psnr": means["psnr"],
        "ssim_sampled": means["ssim_sample"],
        "psnr_sampled": means["psnr_sample"],
    }


def _codec_metrics(
    step: Callable[..., TileMetrics], codec: Any, batches: list[Batch], mesh: Mesh, seed: int
) -> dict[str, np.ndarray]:
    """Measures a codec on the mesh with `pca_step` or `model_step`."""
    seed_on_mesh = put(np.uint32(seed), replicated(mesh))

    def of_batch(batch, placed, first_row):
        row = put(np.int32(first_row), replicated(mesh))
        return step(codec, placed["image"], placed["fov"], row, seed_on_mesh)

    return map_over_split(batches, mesh, of_batch)[0]


def _coded_point(
    codec: str, setting: str, scores: Mapping[str, np.ndarray], latents: int
) -> dict[str, Any]:
    """Returns the point of a codec with a posterior."""
    return {
        "codec": codec,
        "setting": setting,
        "latents": latents,
        "bytes": float(scores[f"{codec}.kl"].mean()) / math.log(2) / 8,
        "ssim": float(scores[f"{codec}.ssim"].mean()),
        "psnr": float(scores[f"{codec}.psnr"].mean()),
        "ssim_sampled": float(scores[f"{codec}_sampled.ssim"].mean()),
        "psnr_sampled": float(scores[f"{codec}_sampled.psnr"].mean()),
    }


def _bicubic_point(batches: list[Batch], mesh: Mesh, factor: int, latents: int) -> dict[str, Any]:
    def step(batch, placed, first_row):
        return bicubic_step(mesh, factor)(placed["image"], placed["fov"])

    scores, _ = map_over_split(batches, mesh, step)
    return {
        "codec": "bicubic",
        "setting": f"reduced {factor} times",
        "latents": latents,
        "bytes": None,
        "ssim": float(scores["bicubic.ssim"].mean()),
        "psnr": float(scores["bicubic.psnr"].mean()),
    }


def _jpeg_point(batches: list[Batch], mesh: Mesh, quality: int) -> dict[str, Any]:
    scores = jpeg_scores(batches, mesh, quality)
    return {
        "codec": "jpeg",
        "setting": f"quality {quality}",
        "latents": None,
        "bytes": float(scores["jpeg.bytes"].mean()),
        "ssim": float(scores["jpeg.ssim"].mean()),
        "psnr": float(scores["jpeg.psnr"].mean()),
    }
