"""One compact vector per image, computed from the latents of a store, and tables of the results."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from vae.data.errors import DataError
from vae.data.files import write_beside, write_csv
from vae.data.progress import progress
from vae.inference.latent_store import LatentStore, Row

TABLE = "embedding.csv"
VECTORS = "vectors.npz"
COMPONENTS = 16
_COLUMNS = (
    "item_id", "photograph", "patient", "label", "split", "y", "x", "height", "width",
    "cluster", "typical", "map_x", "map_y",
)  # fmt: skip
# Fewer images than this are too few for clusters.
SMALLEST = 10


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Principal components of pooled latents.

    Attributes:
      values: float32 [N, K], components of the features that they were computed from.
      mean: float64 [D], means of the pooled features.
      scale: float64 [D], standard deviations of the pooled features.
      components: float64 [K, D]: values = (features - mean) / scale @ components.T.
      explained: float64 [K], share of the variance of each component.
    """

    values: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    explained: np.ndarray

    def project(self, features: np.ndarray) -> np.ndarray:
        """Projects other features [M, D] onto the components: float64 [M, K]."""
        return (features - self.mean) / self.scale @ self.components.T


def pooled_features(store: LatentStore) -> tuple[np.ndarray, list[Row]]:
    """Pools the latents of each image to one feature vector; reads a few megabytes at a time.

    Latents [h, w, C] give the mean and the log standard deviation of each channel over all
    positions: what the image contains, and how much of it. Vectors [L] are kept as they are.

    Returns:
      float32 [N, 2 C] or [N, L], and the metadata of each image, in the order of the inputs.

    Raises:
      DataError: The store is damaged, or has fewer than `SMALLEST` images.
    """
    if len(store) < SMALLEST:
        raise DataError(
            f"{store.path}: {len(store)} images; clusters and a map need {SMALLEST} at least"
        )
    features, rows = [], []
    with progress("pooling latents", len(store), "image") as advance:
        for group in store.groups:
            for start, stop in group.pieces():
                features.append(pool(group.latents(start, stop)))
                rows.extend(group.rows(start, stop))
                advance(stop - start)
    order = sorted(range(len(rows)), key=lambda i: rows[i].number)
    return np.concatenate(features)[order], [rows[i] for i in order]


def pool(latents: np.ndarray) -> np.ndarray:
    """Pools latents [N, h, w, C] to mean and log standard deviation [N, 2 C]; keeps [N, L]."""
    if latents.ndim == 2:
        return latents
    mean = latents.mean(axis=(1, 2))
    # An image of one colour has no deviation; 1e-3 keeps its logarithm finite.
    return np.concatenate([mean, np.log(latents.std(axis=(1, 2)) + 1e-3)], axis=1)


def principal_components(features: np.ndarray, most: int = COMPONENTS) -> Vectors:
    """Standardises features [N, D] and reduces them to at most `most` principal components."""
    features = features.astype(np.float64)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-12] = 1.0  # A constant feature carries no information.
    features = (features - mean) / scale
    count = min(most, features.shape[1], len(features) - 1)
    variance, vectors = np.linalg.eigh(features.T @ features / len(features))
    components = vectors[:, ::-1][:, :count].T
    # The sign of a component is arbitrary: its largest entry is made positive.
    largest = components[np.arange(count), np.abs(components).argmax(axis=1)]
    components = components * np.where(largest < 0, -1.0, 1.0)[:, None]
    values = features @ components.T
    explained = variance[::-1][:count] / max(variance.sum(), 1e-12)
    return Vectors(values.astype(np.float32), mean, scale, components, explained)


def write_table(
    out: Path, rows: list[Row], clusters: np.ndarray, ranks: np.ndarray, places: np.ndarray
) -> None:
    """Writes the table with one row per image.

    Args:
      out: Output folder.
      rows: Metadata of the images.
      clusters: int [N], cluster of each image.
      ranks: int [N]: 1 for the most typical image shown of a cluster, 2 for the next, ...; 0 if
        the image is not shown.
      places: float [N, 2], position on the map; NaN if the image is not on the map.
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
    """Writes the vectors with image ids, and the transform from features to vectors."""
    file = io.BytesIO()
    np.savez(
        file, item_id=np.array([row.item_id for row in rows]), vectors=vectors.values,
        feature_mean=vectors.mean, feature_scale=vectors.scale, components=vectors.components,
        explained=vectors.explained,
    )  # fmt: skip
    write_beside(out / VECTORS, file.getvalue())
