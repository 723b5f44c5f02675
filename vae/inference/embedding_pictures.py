"""Pictures of an embedding: the map, and the most typical images of each cluster."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vae.data.files import write_beside
from vae.inference.embedding_clusters import Clusters
from vae.inference.embedding_sources import Source

MAP = "map.png"
TYPICAL = "clusters.png"

# The eight colours of Okabe and Ito, which colour-blind people can tell apart, and four more.
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F", "#000000",
    "#7B3FA0", "#9BBF30", "#8A8A8A", "#C2185B",
)  # fmt: skip
_OTHER = "#BBBBBB"


def draw_map(
    out: Path, places: np.ndarray, clusters: Clusters, labels: list[str], title: str
) -> None:
    """Draws the map twice: coloured by cluster and, where there are labels, by label.

    Args:
      out: Output folder.
      places: float [N, 2], NaN for an image that is not on the map.
      clusters: Clusters of the images.
      labels: Labels of the images, "" where unknown.
      title: Title of the figure.
    """
    shown = ~np.isnan(places).any(axis=1)
    panels = [("cluster", [str(label) for label in clusters.labels])]
    if any(labels):
        panels.append(("label", [label or "unknown" for label in labels]))
    figure = Figure(figsize=(1 + 7 * len(panels), 7), layout="constrained")
    figure.suptitle(title, fontsize=12)
    for axes, (name, words) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True
    ):
        _scatter(axes, places[shown], np.array(words, object)[shown], name)
    _save(figure, out / MAP, dpi=130)


def _scatter(axes: Axes, places: np.ndarray, words: np.ndarray, name: str) -> None:
    values, counts = np.unique(words, return_counts=True)
    order = [str(values[i]) for i in np.argsort(-counts, kind="stable")]
    if name == "cluster":
        order.sort(key=int)
    colours = dict(zip(order, _COLOURS, strict=False))
    size = float(np.clip(6000 / max(len(places), 1), 3, 30))
    # The order is random; otherwise the last group would hide the others.
    mixed = np.random.default_rng(0).permutation(len(places))
    axes.scatter(
        *places[mixed].T, s=size, linewidths=0, alpha=0.75, rasterized=True,
        c=[colours.get(word, _OTHER) for word in words[mixed]],
    )  # fmt: skip
    for word in order[: len(_COLOURS)]:
        count = int((words == word).sum())
        axes.scatter([], [], s=40, color=colours[word], label=f"{word} ({count})")
    if len(order) > len(_COLOURS):
        axes.scatter([], [], s=40, color=_OTHER, label=f"{len(order) - len(_COLOURS)} others")
    axes.legend(
        title=name, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=4,
        frameon=False,
    )  # fmt: skip
    axes.set(xticks=[], yticks=[], aspect="equal", title=f"by {name}")


def draw_typical(
    out: Path, clusters: Clusters, labels: list[str], rows: list[list[tuple[str, Source]]]
) -> None:
    """Draws a row for each cluster: its most typical images, each next to its photograph.

    Args:
      out: Output folder.
      clusters: Clusters of all images.
      labels: Labels of all images, "" where unknown.
      rows: For each cluster, (caption, source) of each image to show.
    """
    columns = max(len(row) for row in rows)
    pairs = any(source.photograph is not None for row in rows for _, source in row)
    cells = 2 if pairs else 1
    figure = Figure(
        figsize=(1.4 + 1.9 * cells * columns, 0.3 + 2.15 * len(rows)), layout="constrained"
    )
    grid = figure.add_gridspec(
        len(rows), 1 + cells * columns, width_ratios=[0.75] + [1] * cells * columns
    )
    for cluster, row in enumerate(rows):
        head = figure.add_subplot(grid[cluster, 0])
        head.axis("off")
        head.text(
            0.0, 0.5, _describe(cluster, clusters, labels), fontsize=9, va="center",
            color=_COLOURS[cluster] if cluster < len(_COLOURS) else "black",
        )  # fmt: skip
        for column, (caption, source) in enumerate(row):
            axes = figure.add_subplot(grid[cluster, 1 + cells * column])
            _show(axes, source.image, "image not found")
            axes.set_title(caption, fontsize=6.5, loc="left", pad=2)
            if source.photograph is None:
                continue
            axes = figure.add_subplot(grid[cluster, 2 + cells * column])
            _show(axes, source.photograph, "")
            left, top, width, height = source.box
            axes.add_patch(
                Rectangle((left, top), width, height, fill=False, color="white", linewidth=2.4)
            )
            axes.add_patch(
                Rectangle((left, top), width, height, fill=False, color="#0072B2", linewidth=1.2)
            )
    _save(figure, out / TYPICAL, dpi=110)


def _describe(cluster: int, clusters: Clusters, labels: list[str]) -> str:
    members = np.flatnonzero(clusters.labels == cluster)
    lines = [f"cluster {cluster}", f"{len(members)} images"]
    words, counts = np.unique([labels[member] for member in members], return_counts=True)
    for i in np.argsort(-counts, kind="stable")[:3]:
        if words[i]:
            lines.append(f"{words[i]} {counts[i] / len(members):.0%}")
    return "\n".join(lines)


def _show(axes: Axes, image: np.ndarray | None, otherwise: str) -> None:
    axes.axis("off")
    if image is None:
        axes.text(0.5, 0.5, otherwise, ha="center", va="center", fontsize=7)
    else:
        axes.imshow(image, interpolation="antialiased")


def _save(figure: Figure, path: Path, dpi: int) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, bbox_inches="tight")
    write_beside(path, file.getvalue())
