"""Measures between two sets of tiles: pure functions of arrays, without a downloaded network."""

import cv2
import numpy as np

# Side of a patch, pixels, as in Karras et al. (2018), "Progressive growing of GANs".
PATCH = 7
PROJECTIONS = 128
NEIGHBOURS = 5
COARSEST = 16  # pixels a side of the last level of a pyramid


def pyramid_patches(tile: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws random patches of each level of a tile's Laplacian pyramid (Burt and Adelson, 1983).

    Args:
      tile: uint8 [S, S, 3].
      count: Number of patches per level.
      rng: Generator of the positions.

    Returns:
      float16 [levels, count, PATCH * PATCH * 3] in grey levels, from fine to coarse; the last level
      is the low-pass residual, the others are differences.
    """
    image, levels = tile.astype(np.float32), []
    while min(image.shape[:2]) >= 2 * COARSEST:
        small = cv2.pyrDown(image)
        levels.append(image - cv2.pyrUp(small, dstsize=image.shape[1::-1]))
        image = small
    levels.append(image)
    patches = np.empty((len(levels), count, PATCH * PATCH * 3), np.float16)
    for level, image in enumerate(levels):
        places = rng.integers(0, np.array(image.shape[:2]) - PATCH + 1, (count, 2))
        for number, (y, x) in enumerate(places):
            patches[level, number] = image[y : y + PATCH, x : x + PATCH].ravel()
    return patches


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Computes the mean 1-D Wasserstein-1 distance over random directions (Rabin et al., 2011).

    Args:
      a: float [N, levels, P, D], P patches per level of N tiles, grey levels.
      b: float [N, levels, P, D], the same for the other set.
      rng: Generator of the directions.

    Returns:
      float64 [levels], grey levels: for sets that differ by a constant colour, the mean absolute
      projection of the difference.

    Raises:
      ValueError: The sets are not of one size, or empty.
    """
    if a.shape != b.shape or not len(a):
        raise ValueError(f"expected two sets of one size, got {a.shape} and {b.shape}")
    distances = []
    for level in range(a.shape[1]):
        directions = rng.standard_normal((a.shape[-1], PROJECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        projected = [
            np.sort(s[:, level].reshape(-1, a.shape[-1]).astype(np.float32) @ directions, axis=0)
            for s in (a, b)
        ]
        distances.append(np.abs(projected[0] - projected[1]).mean(dtype=np.float64))
    return np.array(distances)


def precision_recall(real: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """Computes precision and recall of generated points (Kynkaanniemi et al., 2019).

    Precision is the share of `made` on the manifold of `real`, recall the reverse. The manifold is
    the union of balls around the points, with the distance to the `NEIGHBOURS`-th neighbour.

    Args:
      real: float [N, F].
      made: float [M, F].

    Returns:
      (precision, recall); nan if a set has at most `NEIGHBOURS` points.
    """
    if min(len(real), len(made)) <= NEIGHBOURS:
        return float("nan"), float("nan")

    def covered(points, centres):
        within = _distances(centres, centres)
        radius = np.partition(within, NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # the first is itself
        return float((_distances(points, centres) <= radius).any(axis=1).mean())

    return covered(made, real), covered(real, made)


def nearest(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Computes the distance of each small tile to the nearest training tile, over 8 symmetries.

    The mean colour of every tile is removed: colours differ between eyes, and copies are
    recognised by their vessels.

    Args:
      queries: uint8 [N, s, s, 3].
      training: uint8 [M, s, s, 3].

    Returns:
      float64 [N], root mean square differences over all values, grey levels.
    """
    best = np.full(len(queries), np.inf)
    points = _without_colour(queries)
    for start in range(0, len(training), 1024):
        part = training[start : start + 1024]
        for turned in _symmetries(part):
            best = np.minimum(best, _distances(points, _without_colour(turned)).min(axis=1))
    return best / np.sqrt(points.shape[1])


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Averages the 1-D Wasserstein-1 distances of the columns of float [N, K] and [M, K]."""
    shares = (np.arange(512) + 0.5) / 512
    return float(np.abs(np.quantile(a, shares, axis=0) - np.quantile(b, shares, axis=0)).mean())


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(square, 0))


def _without_colour(small: np.ndarray) -> np.ndarray:
    values = small.astype(np.float32)
    return (values - values.mean(axis=(1, 2), keepdims=True)).reshape(len(small), -1)


def _symmetries(tiles: np.ndarray):
    """Yields the tiles in the eight symmetries of the square, [N, s, s, 3] each."""
    for flipped in (tiles, tiles[:, :, ::-1]):
        for turns in range(4):
            yield np.rot90(flipped, turns, axes=(1, 2))
