"""`embed`: vectors, clusters and a map from latents."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from vae.cli.options import declare, results
from vae.data.errors import UsageError
from vae.data.extras import require_extra
from vae.data.outputs import refuse_overlap


def add(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "embed",
        help="compute vectors, clusters and a map of encoded images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Pools each image's latents (mean and spread of every channel), reduces them\n"
        "to 16 principal components, finds clusters and draws a map. Writes\n"
        "embedding.csv, vectors.npz, map.png, and clusters.png: the most typical images\n"
        "of each cluster and their position in their photographs.",
        epilog="examples:\n"
        "  fundus-vae embed tiles.zarr --out embedding\n"
        "  fundus-vae embed tiles.zarr --out embedding --method kmeans --clusters 8 --map pca",
    )
    option = parser.add_argument
    option("latents", metavar="LATENTS", help="*.zarr or *.npz written by `fundus-vae encode`")
    option("--out", required=True, metavar="DIR", help="folder for tables and pictures")
    option("--method", choices=("gmm", "kmeans"), default="gmm", help="clustering method (gmm)")
    option("--clusters", type=int, metavar="N", help="number of clusters (best of 2 to 12)")
    option("--map", dest="kind", choices=("tsne", "umap", "pca"), default="tsne",
           help="method of the map (tsne, for at most 5,000 images)")  # fmt: skip
    option("--typical", type=int, default=4, metavar="N", help="images shown per cluster (4)")
    option("--images", nargs="+", default=(), metavar="DIR",
           help="folders of the images to show (the folder of LATENTS)")  # fmt: skip
    option("--seed", type=int, default=0, help="seed of the clusters and the map (0)")
    declare(parser, results("out"), reads=("latents",))
    parser.set_defaults(run=_embed)


def _embed(
    latents: str,
    out: str,
    method: str,
    clusters: int | None,
    kind: str,
    typical: int,
    images: Sequence[str],
    seed: int,
) -> int:
    _check_options(clusters, typical, seed)
    require_extra("embed", "embed", "matplotlib.figure", "sklearn")
    from vae.inference import embedding, embedding_clusters, embedding_pictures
    from vae.inference.embedding_sources import Sources
    from vae.inference.latent_store import open_latents

    store = open_latents(latents)
    refuse_overlap(out, store.about.get("inputs", ()))
    features, rows = embedding.pooled_features(store)
    vectors = embedding.principal_components(features)
    found = embedding_clusters.find_clusters(vectors.values, method, clusters, seed)
    places, note = embedding_clusters.make_map(vectors.values, kind, seed)
    ranks = embedding_clusters.typical(found, rows, typical)

    folder = Path(out)
    embedding.write_vectors(folder, rows, vectors)
    embedding.write_table(folder, rows, found.labels, ranks, places)
    names = {"tsne": "t-SNE", "umap": "UMAP", "pca": "principal components"}
    shown = f" ({note})" if note else ""
    title = f"{len(rows):,} images, {names[kind]} of pooled latents, {found.note}{shown}"
    labels = [row.label for row in rows]
    embedding_pictures.draw_map(folder, places, found, labels, title)
    if typical:
        sources = Sources(store, images)
        shelf = [[] for _ in range(found.count)]
        for i in sorted(ranks.nonzero()[0], key=lambda i: ranks[i]):
            shelf[found.labels[i]].append((_caption(rows[i]), sources.find(rows[i])))
        embedding_pictures.draw_typical(folder, found, labels, shelf)
        for line in itertools.islice(dict.fromkeys(sources.missing), 5):
            print(f"not shown: {line}")
    explained = vectors.explained.sum()
    print(f"{out}: {len(rows)} vectors of {vectors.values.shape[1]} components"
          f" ({explained:.0%} of the variance), {found.note}{shown}")  # fmt: skip
    return 0


def _caption(row) -> str:
    """Returns the last part of an id, which names photograph and position."""
    return row.item_id.rsplit("/", 1)[-1][-34:]


def _check_options(clusters: int | None, typical: int, seed: int) -> None:
    if clusters is not None and clusters < 1:
        raise UsageError(f"clusters {clusters}: expected at least 1")
    if typical < 0:
        raise UsageError(f"typical {typical}: expected 0 or more")
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed {seed}: expected 0 to {2**32 - 1}")
