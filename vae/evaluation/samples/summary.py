"""Summaries of sets of tiles, small enough to hold sets of many tiles in memory."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from vae.evaluation.enhancement.structure import vesselness
from vae.evaluation.samples.measures import pyramid_patches
from vae.inference.embedding import pool

PATCHES = 16  # per level and tile
SMALL = 32  # side of the reduced tile for the search of copies, pixels
REGIONS = 4  # regions along a side of a tile's latents
VESSELS = 256  # tiles of a set for vesselness, which is the slowest metric
# Standard deviations of vessel profiles, in pixels of a photograph of about 2,000 pixels.
SIGMAS = (2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Summary of a set of N tiles.

    Attributes:
      patches: float16 [N, levels, PATCHES, D], patches of Laplacian pyramids, grey levels.
      small: uint8 [N, SMALL, SMALL, 3], reduced tiles.
      features: float32 [N, F], pooled latents (`pooled`).
      vessels: float32 [min(N, VESSELS), 2], mean and 99th percentile of vesselness.
      patients: str [N]; "" for sampled tiles.
    """

    patches: np.ndarray
    small: np.ndarray
    features: np.ndarray
    vessels: np.ndarray
    patients: np.ndarray

    def __len__(self) -> int:
        return len(self.small)

    @property
    def colours(self) -> np.ndarray:
        """Returns the mean colour of each tile, float64 [N, 3], grey levels."""
        return self.small.mean(axis=(1, 2))


def summarise(
    tiles: Iterable[tuple[np.ndarray, np.ndarray]],
    encode: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
) -> Summary:
    """Summarises a set of tiles.

    Args:
      tiles: Batches (uint8 [b, S, S, 3], patients str [b]).
      encode: Function from tiles to latents, the same for all sets.
      seed: Seed of the patches' positions.
    """
    rng, parts = np.random.default_rng(seed), []
    count = 0
    for images, patients in tiles:
        chosen = images[: max(0, VESSELS - count)]
        count += len(images)
        parts.append(
            (
                np.stack([pyramid_patches(image, PATCHES, rng) for image in images]),
                shrunk(images),
                pooled(encode(images)),
                np.array([_vessels(image) for image in chosen], np.float32).reshape(-1, 2),
                np.asarray(patients).astype(str),
            )
        )
    return Summary(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def shrunk(images: np.ndarray) -> np.ndarray:
    """Reduces tiles uint8 [N, S, S, 3] to [N, SMALL, SMALL, 3]."""
    size = (SMALL, SMALL)
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])


def pooled(latents: np.ndarray) -> np.ndarray:
    """Pools latents to features.

    Args:
      latents: float32 [N, h, w, C], or vectors [N, L].

    Returns:
      float32 [N, F]: means over `REGIONS` x `REGIONS` regions, and the logarithm of each channel's
      standard deviation over the whole tile; vectors are returned unchanged.
    """
    if latents.ndim == 2:
        return latents
    rows = [part.mean(axis=1) for part in np.array_split(latents, REGIONS, axis=1)]
    cells = [cell.mean(axis=1) for row in rows for cell in np.array_split(row, REGIONS, axis=1)]
    spread = pool(latents)[:, latents.shape[-1] :]
    return np.concatenate([*cells, spread], axis=1)


def batched(tiles: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields tiles uint8 [N, S, S, 3] in batches for `summarise`, without patients."""
    for start in range(0, len(tiles), 64):
        part = tiles[start : start + 64]
        yield part, np.full(len(part), "")


def _vessels(image: np.ndarray) -> tuple[float, float]:
    ridges = vesselness(image, SIGMAS)
    return float(ridges.mean()), float(np.quantile(ridges, 0.99))
