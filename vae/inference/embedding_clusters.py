"""Clusters of vectors, the most typical images of each cluster, and a map of all images."""

import dataclasses

import numpy as np

from vae.data.errors import DataError, UsageError
from vae.data.extras import require_extra
from vae.inference.latent_store import Row

METHODS = ("gmm", "kmeans")

MOST_CLUSTERS = 12  # largest number tried if none is given
_SILHOUETTE_SAMPLE = 5000
_FIT_SAMPLE = 5_000  # vectors that clusters are fitted to; the others are only assigned
TSNE_SAMPLE = 5_000  # vectors on a t-SNE map: about a minute on two cores


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clusters, the largest first.

    Attributes:
      labels: int [N], 0..count-1.
      distances: float [N], distance from the centre of the image's own cluster; for a Gaussian
        mixture the Mahalanobis distance.
      count: Number of clusters.
      note: How the number was chosen, for the reader.
    """

    labels: np.ndarray
    distances: np.ndarray
    count: int
    note: str


def find_clusters(
    vectors: np.ndarray, method: str = "gmm", count: int | None = None, seed: int = 0
) -> Clusters:
    """Finds clusters.

    Args:
      vectors: float [N, K].
      method: "gmm", a Gaussian mixture with full covariances, or "kmeans".
      count: Number of clusters. None tries 2 to `MOST_CLUSTERS` and takes the best by BIC, the
        penalised likelihood, for a mixture, and by silhouette, which compares the distances to the
        own cluster and to the next one, for k-means.
      seed: Seed of the sample and the initialization.

    Raises:
      UsageError: `count` is below 1.
      DataError: There are too few vectors, or too few different ones.
    """
    if count is not None and count < 1:
        raise UsageError(f"clusters {count}: expected at least 1")
    vectors = vectors.astype(np.float64)
    smallest = 5 * (count or 2)
    if len(vectors) < smallest:
        raise DataError(f"{len(vectors)} images are too few for {count or 2} clusters")
    if len(np.unique(vectors, axis=0)) < (count or 2):
        raise DataError(f"the images are all alike; {count or 2} clusters cannot be told apart")
    draw = np.random.default_rng(seed).permutation(len(vectors))[:_FIT_SAMPLE]
    sample = vectors[np.sort(draw)]
    if count is not None:
        fitted, note = _fit(sample, method, count, seed), f"{count} clusters"
    else:
        tried = range(2, min(MOST_CLUSTERS, len(sample) // 5) + 1)
        models = [_fit(sample, method, k, seed) for k in tried]
        scores = [_score(model, sample, method, seed) for model in models]
        fitted = models[int(np.argmax(scores))]
        by = "BIC" if method == "gmm" else "silhouette"
        note = f"{tried[int(np.argmax(scores))]} clusters, best of 2 to {tried[-1]} by {by}"
    labels, distances = _assign(fitted, vectors, method)
    order = np.argsort(-np.bincount(labels), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    # The smallest clusters may be empty after assignment and are dropped.
    return Clusters(rank[labels], distances, int(rank[labels].max()) + 1, note)


def _fit(vectors: np.ndarray, method: str, count: int, seed: int):
    if method == "kmeans":
        from sklearn.cluster import KMeans

        return KMeans(count, n_init=4, random_state=seed).fit(vectors)
    from sklearn.mixture import GaussianMixture

    # The floor keeps a cluster of a few images from becoming infinitely narrow.
    floor = 1e-2 * vectors.var(axis=0).mean()
    return GaussianMixture(count, reg_covar=floor, random_state=seed, max_iter=200).fit(vectors)


def _score(model, vectors: np.ndarray, method: str, seed: int) -> float:
    """Scores a clustering; higher is better."""
    if method == "gmm":
        return -model.bic(vectors)
    from sklearn.metrics import silhouette_score

    size = min(_SILHOUETTE_SAMPLE, len(vectors))
    return silhouette_score(vectors, model.labels_, sample_size=size, random_state=seed)


def _assign(model, vectors: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    labels = model.predict(vectors)
    if method == "kmeans":
        return labels, np.linalg.norm(vectors - model.cluster_centers_[labels], axis=1)
    deviations = vectors - model.means_[labels]
    scaled = np.einsum("nk,nkj->nj", deviations, model.precisions_cholesky_[labels])
    return labels, np.linalg.norm(scaled, axis=1)


def typical(clusters: Clusters, rows: list[Row], count: int) -> np.ndarray:
    """Ranks the images nearest to the centre of their cluster.

    Each image comes from another photograph as far as possible. After that, further images of the
    same photographs follow if they share no pixels with images already taken.

    Args:
      clusters: Clusters of the images.
      rows: Metadata of the images.
      count: Largest number of images per cluster.

    Returns:
      int [N]: 1 for the most typical image of a cluster, 2 for the next, ...; 0 for all others.
    """
    ranks = np.zeros(len(rows), int)
    for cluster in range(clusters.count):
        members = np.flatnonzero(clusters.labels == cluster)
        members = members[np.argsort(clusters.distances[members], kind="stable")].tolist()
        taken: list[int] = []
        for again in (False, True):
            for member in members:
                shared = [o for o in taken if rows[o].photograph == rows[member].photograph != ""]
                clash = any(_overlap(rows[o], rows[member]) for o in shared) if again else shared
                if len(taken) < count and member not in taken and not clash:
                    taken.append(member)
        ranks[taken] = range(1, len(taken) + 1)
    return ranks


def _overlap(a: Row, b: Row) -> bool:
    """Returns True if two images of one photograph share pixels."""
    return all(abs(p - q) < size for p, q, size in zip(a.origin, b.origin, a.size, strict=True))


def make_map(vectors: np.ndarray, kind: str = "tsne", seed: int = 0) -> tuple[np.ndarray, str]:
    """Places vectors on a plane.

    Args:
      vectors: float [N, K].
      kind: "pca", "tsne", or "umap" (needs the extra `umap`).
      seed: Seed of the initialization, and of the sample that t-SNE uses for many images.

    Returns:
      float [N, 2], NaN for an image outside the sample; and a note for the reader, or "".

    Raises:
      UsageError: UMAP is not installed.
    """
    places = np.full((len(vectors), 2), np.nan)
    if kind == "pca":
        places[:, : vectors.shape[1]] = vectors[:, :2]
        return np.nan_to_num(places), ""
    if kind == "umap":
        require_extra("umap", "--map umap", "umap")
        import umap

        neighbours = min(15, len(vectors) - 1)
        mapper = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
        return mapper.fit_transform(vectors), ""
    from sklearn.manifold import TSNE

    chosen = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:TSNE_SAMPLE])
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    mapper = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
    places[chosen] = mapper.fit_transform(vectors[chosen])
    note = (
        f"the map shows {len(chosen)} of {len(vectors)} images"
        if len(chosen) < len(vectors)
        else ""
    )
    return places, note
