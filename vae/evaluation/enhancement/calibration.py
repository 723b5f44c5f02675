"""Calibration of an enhancer's uncertainty against its errors."""

import math
from typing import Any

import numpy as np
from scipy import stats

BINS = 10


def calibration(
    clean: np.ndarray, made: np.ndarray, deviations: np.ndarray, fov: np.ndarray
) -> dict[str, Any]:
    """Compares the standard deviations that a model predicts for its pixels with their errors.

    Args:
      clean: uint8 [N, S, S, 3], clean tiles.
      made: uint8 [N, S, S, 3], tiles enhanced by the model.
      deviations: float32 [N, S, S], grey levels, root mean square of R, G, B.
      fov: bool [N, S, S], field of view.

    Returns:
      `deviation` and `error` (root mean squares over all pixels, grey levels), `ratio` (error /
      deviation, the factor that would calibrate the deviations; None if all deviations are 0),
      `correlation` (Spearman's, of the tiles' root mean squares; NaN if undefined, for example of
      one tile), and `bins`: dicts of deviation and error for each tenth of the pixels by deviation.
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
        "correlation": float(stats.spearmanr(*tiles.T).statistic) if len(tiles) > 1 else math.nan,
        "bins": bins,
    }


def format_calibration(found: dict[str, Any]) -> str:
    """Formats the result of `calibration` as one line."""
    if found["ratio"] is None:
        return "uncertainty: 0 everywhere"
    ends = found["bins"][0], found["bins"][-1]
    low, high = (f"{one['deviation']:.2f}, error {one['error']:.2f}" for one in ends)
    text = (
        f"uncertainty: {found['deviation']:.2f} grey levels, error {found['error']:.2f} "
        f"({found['ratio']:.2f} times); most certain tenth of the pixels {low}, "
        f"least certain {high}"
    )
    if math.isnan(found["correlation"]):
        return text
    return f"{text}; rank correlation of tiles {found['correlation']:.2f}"


def _root(squares: np.ndarray) -> float:
    return float(np.sqrt(squares.mean(dtype=np.float64)))
