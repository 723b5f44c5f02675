"""What is kept of each tile of a set, so that sets of any number of tiles fit in memory."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from vae.evaluation.enhancement.structure import vesselness
from vae.evaluation.samples.measures import pyramid_patches
from vae.inference.embedding import pool

PATCHES = 16  # a level and tile
SMALL = 32  # pixels a side of the picture by which copies are found
REGIONS = 4  # a side, of the latents of a tile
VESSELS = 256  # tiles of a set whose vesselness is computed: it is the slowest figure


@dataclasses.dataclass(frozen=True)
class Summary:
    """A set of tiles.

    Attributes:
      patches: float16 [N, levels, PATCHES, D] of Laplacian pyramids.
      small: uint8 [N, SMALL, SMALL, 3].
      features: float32 [N, F], latents, pooled (`pooled`).
      vessels: float32 [min(N, VESSELS), 2]: mean of vesselness, and of its strongest hundredth.
      patients: str [N]; "" where there are none.
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
        """Mean colour of each tile, float64 [N, 3], grey levels."""
        return self.small.mean(axis=(1, 2))


def summarise(
    tiles: Iterable[tuple[np.ndarray, np.ndarray]],
    encode: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
) -> Summary:
    """Summarises a set.

    Args:
      tiles: (uint8 [b, S, S, 3], patients str [b]) at a time.
      encode: Tiles to latents, of the autoencoder that all sets are seen by.
      seed: Of the patches' places.
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
    """Tiles uint8 [N, S, S, 3] -> [N, SMALL, SMALL, 3]."""
    size = (SMALL, SMALL)
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])


def pooled(latents: np.ndarray) -> np.ndarray:
    """What is where in a tile, and how much of it there is.

    Args:
      latents: float32 [N, h, w, C], or vectors [N, L].

    Returns:
      float32 [N, F]: means of `REGIONS` x `REGIONS` regions, and of the whole the logarithm of each
      channel's deviation; vectors as they are.
    """
    if latents.ndim == 2:
        return latents
    rows = [part.mean(axis=1) for part in np.array_split(latents, REGIONS, axis=1)]
    cells = [cell.mean(axis=1) for row in rows for cell in np.array_split(row, REGIONS, axis=1)]
    spread = pool(latents)[:, latents.shape[-1] :]
    return np.concatenate([*cells, spread], axis=1)


def batched(tiles: np.ndarray, size: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles of nobody, uint8 [N, S, S, 3], as `summarise` takes them."""
    for start in range(0, len(tiles), size):
        part = tiles[start : start + size]
        yield part, np.full(len(part), "")


def _vessels(image: np.ndarray) -> tuple[float, float]:
    ridges = vesselness(image)
    return float(ridges.mean()), float(np.quantile(ridges, 0.99))
