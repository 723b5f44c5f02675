"""One pass over a split: every tile once, for any number of processes and any padding."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vae.multihost import gather_names
from vae.sharding import local_rows, put_batch, replicate

# A batch of `vae.data.pipeline.eval_batches`.
Batch = Mapping[str, np.ndarray]
# A split that can be read more than once: each call starts a new pass.
Split = Callable[[], Iterable[Batch]]

NAMES = ("tile_id", "photograph", "patient", "label")


def map_over_split(
    batches: Iterable[Batch],
    mesh: Mesh,
    step: Callable[[Batch, Mapping[str, jax.Array], int], Mapping[str, jax.Array]],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Applies a device step to each batch and collects its results per tile.

    Args:
      batches: This process's rows of the global batches.
      mesh: Mesh with the axes data and fsdp.
      step: (batch of this process, its `image`, `fov`, `valid` on the mesh, position of the
        batch's first row in the split) -> arrays [B], replicated on every device.

    Returns:
      Columns of metrics, float64 [N], and of names, str [N], for the split's N tiles in its order;
      the same on every process. Padding rows of the last batch are dropped.
    """
    scores, names, positions = [], [], []
    pending: Mapping[str, jax.Array] = {}
    first_row = 0
    for batch in batches:
        placed = put_batch(mesh, {key: batch[key] for key in ("image", "fov", "valid")})
        current = {**step(batch, placed, first_row), "valid": replicate(mesh, placed["valid"])}
        # Results are read one batch late: the next batch is decoded and sent meanwhile.
        if pending:
            scores.append(jax.device_get(pending))
        pending = current
        names.append({key: batch[key] for key in NAMES})
        positions.append(first_row + local_rows(mesh, len(placed["valid"])))
        first_row += placed["valid"].shape[0]
    if not pending:
        return {}, {}
    scores.append(jax.device_get(pending))
    columns = _concatenate(scores)
    named = gather_names(_concatenate(names), np.concatenate(positions))
    valid = columns.pop("valid")
    return (
        {key: values[valid].astype(np.float64) for key, values in columns.items()},
        {key: values[valid] for key, values in named.items()},
    )


def _concatenate(parts: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
