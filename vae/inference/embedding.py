"""Latents of a store as one compact vector an image, and what is told about them in a table."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from vae.data.errors import DataError
from vae.data.files import write_beside, write_csv
from vae.inference.latent_store import LatentStore, Row

TABLE = "embedding.csv"
VECTORS = "vectors.npz"
COMPONENTS = 16
_COLUMNS = (
    "item_id", "photograph", "patient", "label", "split", "y", "x", "height", "width",
    "cluster", "typical", "map_x", "map_y",
)  # fmt: skip
# Below this nothing can be told of clusters.
SMALLEST = 10


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Principal components of pooled latents.

    Attributes:
      values: float32 [N, K], of the features that they were found from.
      mean: float64 [D], of the pooled features.
      scale: float64 [D], their standard deviations.
      components: float64 [K, D]: values = (features - mean) / scale @ components.T.
      explained: float64 [K], share of the variance.
    """

    values: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    explained: np.ndarray

    def of(self, features: np.ndarray) -> np.ndarray:
        """Other features [M, D] -> their components, float64 [M, K]."""
        return (features - self.mean) / self.scale @ self.components.T


def pooled_features(store: LatentStore) -> tuple[np.ndarray, list[Row]]:
    """One feature vector an image, whatever its size; reads a few megabytes at a time.

    Of latents [h, w, C] the mean over all positions, and the logarithm of the standard deviation:
    what is in the image, and how much of it. Vectors [L] are taken as they are.

    Returns:
      float32 [N, 2 C] or [N, L], and what is known of each image, in the order of the inputs.

    Raises:
      DataError: The store is damaged, or has too few images.
    """
    if len(store) < SMALLEST:
        raise DataError(
            f"{store.path}: {len(store)} images; clusters and a map need {SMALLEST} at least"
        )
    features, rows = [], []
    for group in store.groups:
        for start, stop in group.pieces():
            features.append(pool(group.latents(start, stop)))
            rows.extend(group.rows(start, stop))
    order = sorted(range(len(rows)), key=lambda i: rows[i].number)
    return np.concatenate(features)[order], [rows[i] for i in order]


def pool(latents: np.ndarray) -> np.ndarray:
    """Latents [N, h, w, C] -> [N, 2 C]: mean, and logarithm of the standard deviation; [N, L] as
    they are."""
    if latents.ndim == 2:
        return latents
    mean = latents.mean(axis=(1, 2))
    # An image of one colour has no deviation; it gets that of a thousandth.
    return np.concatenate([mean, np.log(latents.std(axis=(1, 2)) + 1e-3)], axis=1)


def principal_components(features: np.ndarray, most: int = COMPONENTS) -> Vectors:
    """Standardised features [N, D] to at most `most` principal components."""
    features = features.astype(np.float64)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-12] = 1.0  # A feature that never changes says nothing.
    features = (features - mean) / scale
    count = min(most, features.shape[1], len(features) - 1)
    variance, vectors = np.linalg.eigh(features.T @ features / len(features))
    components = vectors[:, ::-1][:, :count].T
    # A component has two directions; the one whose largest entry is positive is taken.
    largest = components[np.arange(count), np.abs(components).argmax(axis=1)]
    components = components * np.where(largest < 0, -1.0, 1.0)[:, None]
    values = features @ components.T
    explained = variance[::-1][:count] / max(variance.sum(), 1e-12)
    return Vectors(values.astype(np.float32), mean, scale, components, explained)


def write_table(
    out: Path, rows: list[Row], clusters: np.ndarray, ranks: np.ndarray, places: np.ndarray
) -> None:
    """Writes the table: a line for each image.

    Args:
      out: The folder.
      rows: What is known of the images.
      clusters: int [N].
      ranks: int [N]: 1 for the most typical of its cluster that is shown, ...; 0 for none.
      places: float [N, 2] on the map, NaN where an image has none.
    """
    lines = []
    for row, cluster, rank, place in zip(rows, clusters, ranks, places, strict=True):
        on_map = ["", ""] if np.isnan(place).any() else [f"{value:.4f}" for value in place]
        lines.append(
            [row.item_id, row.photograph, row.patient, row.label, row.split, *row.origin,
             *row.size, int(cluster), rank or "", *on_map]
        )  # fmt: skip
    write_csv(out / TABLE, _COLUMNS, lines)


def write_vectors(out: Path, rows: list[Row], vectors: Vectors) -> None:
    """Writes the vectors with the ids of their images, and what makes vectors of features."""
    file = io.BytesIO()
    np.savez(
        file, item_id=np.array([row.item_id for row in rows]), vectors=vectors.values,
        feature_mean=vectors.mean, feature_scale=vectors.scale, components=vectors.components,
        explained=vectors.explained,
    )  # fmt: skip
    write_beside(out / VECTORS, file.getvalue())
