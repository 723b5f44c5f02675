"""Aggregation of tile metrics to metrics of a split."""

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


def patient_intervals(
    values: np.ndarray, patients: np.ndarray, *, seed: int = 0
) -> np.ndarray | None:
    """Computes bootstrap intervals of means over tiles, resampling patients.

    Tiles of one eye resemble each other, so resampling tiles would give far too narrow intervals.

    Args:
      values: float [N, M], M metrics of N tiles.
      patients: str [N], the patient of each tile.
      seed: Seed of the draws, which are the same for all M metrics.

    Returns:
      float [2, M], the 2.5th and 97.5th percentile of each mean; None with a single patient.
    """
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max()) + 1
    if count == 1:
        return None
    tiles = np.bincount(patient, minlength=count).astype(np.float64)
    totals = np.stack([np.bincount(patient, column, count) for column in values.T], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, values.shape[1]))
    for i in range(RESAMPLES):
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        means[i] = drawn @ totals / (drawn @ tiles)
    tail = 50 * (1 - CONFIDENCE)
    return np.percentile(means, [tail, 100 - tail], axis=0)


def by_label(
    labels: np.ndarray, patients: np.ndarray, scores: dict[str, np.ndarray]
) -> list[dict[str, str | int | float]]:
    """Computes means over the tiles of each label.

    Args:
      labels: str [N].
      patients: str [N].
      scores: Columns float [N] by name.

    Returns:
      One dict per label, sorted: label, numbers of tiles and patients, and the mean per column.
    """
    rows = []
    for label in np.unique(labels):
        of_label = labels == label
        row = {
            "label": str(label),
            "tiles": int(of_label.sum()),
            "patients": len(np.unique(patients[of_label])),
        }
        rows.append(row | {name: float(v[of_label].mean()) for name, v in scores.items()})
    return rows
