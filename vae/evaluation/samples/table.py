"""Metrics of sets of tiles compared with training tiles, as table rows and as text."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vae.evaluation.samples.measures import (
    nearest,
    precision_recall,
    sliced_wasserstein,
    wasserstein,
)
from vae.evaluation.samples.summary import Summary
from vae.evaluation.table import align
from vae.inference.embedding import Vectors, principal_components

DRAWS = 10
COMPONENTS = 64
FLOOR = "floor"


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real tiles as the reference of all sets.

    Attributes:
      pool: Summary of a sample of training tiles.
      held_out: Summary of tiles of other patients.
      training: uint8 [M, s, s, 3], the training tiles, reduced.
      count: Number of tiles in a set.
      seed: Seed of all draws.
      components: Principal components of the pool's features.
      usual: float64 [K], distances of held-out tiles to the nearest training tile, grey levels.
    """

    pool: Summary
    held_out: Summary
    training: np.ndarray
    count: int
    seed: int
    components: Vectors
    usual: np.ndarray

    @classmethod
    def from_summary(
        cls, pool: Summary, training: np.ndarray, held_out: Summary, count: int, seed: int = 0
    ) -> "Reference":
        """Creates the reference, with `components` and `usual` computed from the arguments."""
        components = principal_components(pool.features, COMPONENTS)
        usual = nearest(held_out.small, training)
        return cls(pool, held_out, training, count, seed, components, usual)

    def features(self, summary: Summary, rows: Any = slice(None)) -> np.ndarray:
        """Returns the principal components of a set's features, float64 [N, K]."""
        return self.components.project(summary.features[rows])


def compare(name: str, made: Summary, real: Reference) -> dict[str, Any]:
    """Compares a set of tiles with the training tiles and returns a row of the table.

    Returns:
      `name`, `tiles`, and
      swd: mean over levels of the sliced Wasserstein distance of pyramid patches, grey levels;
      swd_levels: the distance of each level, from fine to coarse;
      swd_interval: 2.5th and 97.5th percentile of swd over ten draws of tiles and directions;
      precision, recall: of pooled latents;
      colour: Wasserstein distance of the tiles' mean colours, grey levels;
      vessels: Wasserstein distance of vesselness, in standard deviations of the training tiles';
      nearest: median distance to the nearest training tile, grey levels without mean colours;
      nearest_share: nearest divided by the median of held-out tiles;
      copies: share of tiles nearer to a training tile than 99% of held-out tiles are.
    """
    size = min(real.count, len(made), len(real.pool))
    distances = []
    for rng in _draws(real.seed):
        ours, theirs = rng.permutation(len(made))[:size], rng.permutation(len(real.pool))[:size]
        distances.append(sliced_wasserstein(made.patches[ours], real.pool.patches[theirs], rng))
    to_training = nearest(made.small, real.training)
    precision, recall = precision_recall(
        real.features(real.pool, slice(size)), real.features(made, slice(size))
    )
    return {
        "name": name,
        "tiles": len(made),
        **_distance(distances),
        "precision": precision,
        "recall": recall,
        "colour": wasserstein(made.colours, real.pool.colours),
        "vessels": wasserstein(*_in_deviations(made.vessels, real.pool.vessels)),
        "nearest": float(np.median(to_training)),
        "nearest_share": float(np.median(to_training) / np.median(real.usual)),
        "copies": float(np.mean(to_training < np.quantile(real.usual, 0.01))),
    }


def floor(real: Reference) -> dict[str, Any]:
    """Computes the metrics between two halves of the training patients, a lower bound in practice:
    a prior does not know the eyes of the tiles that it is compared with.

    Means over ten draws of halves; None with a single patient.
    """
    pool, scores = real.pool, []
    patients = np.unique(pool.patients)
    for rng in _draws(real.seed) if len(patients) > 1 else ():
        first = rng.permutation(patients)[: len(patients) // 2]
        inside = np.isin(pool.patients, first)
        halves = [rng.permutation(np.flatnonzero(side)) for side in (inside, ~inside)]
        size = min(real.count, *map(len, halves))
        a, b = (half[:size] for half in halves)
        precision, recall = precision_recall(real.features(pool, a), real.features(pool, b))
        scores.append(
            {
                "swd": sliced_wasserstein(pool.patches[a], pool.patches[b], rng),
                "tiles": size,
                "precision": precision,
                "recall": recall,
                "colour": wasserstein(pool.colours[a], pool.colours[b]),
            }
        )
    blank = dict.fromkeys(("vessels", "nearest", "nearest_share", "copies"))
    if not scores:
        lacking = ("tiles", "swd", "swd_levels", "swd_interval", "precision", "recall", "colour")
        return {"name": FLOOR, **dict.fromkeys(lacking), **blank}
    means = {
        key: float(np.mean([f[key] for f in scores])) for key in ("precision", "recall", "colour")
    }
    tiles = int(np.mean([f["tiles"] for f in scores]))
    return {
        "name": FLOOR, "tiles": tiles, **_distance([f["swd"] for f in scores]), **means, **blank,
    }  # fmt: skip


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows as a text table with a legend of the metrics."""
    header = ("", "SWD", "95%", "finest", "coarsest", "precision", "recall", "colour", "vessels",
              "nearest", "copies")  # fmt: skip
    cells = [header]
    for row in rows:
        levels = row["swd_levels"] or (None,)
        interval = row["swd_interval"]
        cells.append(
            (
                row["name"],
                _number(row["swd"], "{:.3f}"),
                f"{interval[0]:.3f} .. {interval[1]:.3f}" if interval else "",
                _number(levels[0], "{:.3f}"),
                _number(levels[-1], "{:.2f}"),
                *(_number(row[key], "{:.3f}") for key in ("precision", "recall")),
                *(_number(row[key], "{:.2f}") for key in ("colour", "vessels", "nearest_share")),
                _number(row["copies"], "{:.1%}"),
            )
        )
    return "\n".join([
        align(cells),
        "SWD: sliced Wasserstein distance of Laplacian-pyramid patches to the training tiles, mean",
        "over levels, grey levels; finest and coarsest: of those levels. floor: between halves of",
        "the training patients. nearest: median distance to the nearest training tile, as a share",
        "of held-out tiles'; copies: share of tiles nearer than 99% of held-out tiles.",
    ])  # fmt: skip


def _draws(seed: int) -> Iterator[np.random.Generator]:
    return (np.random.default_rng([seed, draw]) for draw in range(DRAWS))


def _distance(distances: Sequence[np.ndarray]) -> dict[str, Any]:
    means = np.mean(distances, axis=1)
    return {
        "swd": float(means.mean()),
        "swd_levels": [float(value) for value in np.mean(distances, axis=0)],
        "swd_interval": [float(value) for value in np.percentile(means, [2.5, 97.5])],
    }


def _in_deviations(made: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.maximum(real.std(axis=0), 1e-12)
    return made / scale, real / scale


def _number(value: float | None, form: str) -> str:
    return "" if value is None or np.isnan(value) else form.format(value)
