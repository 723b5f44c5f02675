"""Whether the uncertainty says how far off the result is."""

from typing import Any

import numpy as np
from scipy import stats

BINS = 10


def calibration(
    clean: np.ndarray, made: np.ndarray, deviations: np.ndarray, fov: np.ndarray
) -> dict[str, Any]:
    """The uncertainty that a model gives its pixels, as a deviation, beside their errors.

    Args:
      clean: uint8 [N, S, S, 3].
      made: Like `clean`, of the model.
      deviations: float32 [N, S, S], grey levels, root mean square of R, G, B.
      fov: bool [N, S, S].

    Returns:
      `deviation` and `error` (root mean squares over all pixels, grey levels), `ratio` (error over
      deviation: what the deviation would have to be multiplied by), `correlation` (Spearman's, of
      the tiles' root mean squares), and `bins`: dicts of deviation and error of each tenth of the
      pixels by deviation. None where all deviations are 0.
    """
    square = np.square(made.astype(np.float32) - clean).mean(axis=-1)
    found = [(s[m], np.square(d[m])) for s, d, m in zip(square, deviations, fov, strict=True)]
    error, deviation = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(deviation, kind="stable")
    bins = [
        {"deviation": _root(deviation[part]), "error": _root(error[part])}
        for part in np.array_split(order, BINS)
    ]
    tiles = np.array([(_root(e), _root(d)) for e, d in found])
    ratio = _root(error) / _root(deviation) if deviation.any() else None
    return {
        "deviation": _root(deviation),
        "error": _root(error),
        "ratio": ratio,
        "correlation": float(stats.spearmanr(*tiles.T).statistic) if len(tiles) > 1 else None,
        "bins": bins,
    }


def format_calibration(found: dict[str, Any]) -> str:
    """The metrics as a line."""
    if found["ratio"] is None:
        return "uncertainty: 0 everywhere"
    ends = found["bins"][0], found["bins"][-1]
    low, high = (f"{one['deviation']:.2f} said, {one['error']:.2f} off" for one in ends)
    return (
        f"uncertainty: {found['deviation']:.2f} grey levels said, {found['error']:.2f} off "
        f"({found['ratio']:.2f} times); surest tenth of the pixels {low}, least sure {high}; "
        f"rank correlation of tiles {found['correlation']:.2f}"
    )


def _root(squares: np.ndarray) -> float:
    return float(np.sqrt(squares.mean(dtype=np.float64)))
