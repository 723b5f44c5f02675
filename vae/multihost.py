"""Communication of the processes of a run: printing, broadcasting, summing, gathering."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def say(line: str) -> None:
    """Prints a line, on the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def agreed(flag: bool) -> bool:
    """Returns the first process's flag on all of them, so that they stop at the same step."""
    return bool(by_first_process(lambda: flag, np.array(flag)))


def by_first_process(compute: Callable[[], Any], like: Any) -> Any:
    """Computes a tree of arrays on the first process; all processes get the same bits.

    Args:
      compute: Called on the first process only.
      like: The shapes and dtypes of its result.
    """
    if jax.process_index() == 0:
        result = jax.tree.map(np.asarray, compute())
    else:
        result = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return result if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(result)


def sum_over_processes(values: np.ndarray) -> np.ndarray:
    """Returns the sum of float64 [n] over all processes, the same on each process."""
    if jax.process_count() == 1:
        return values
    # JAX would convert float64 to float32, so the values are sent as bytes.
    gathered = _gather(np.ascontiguousarray(values).view(np.uint8))
    return gathered.view(np.float64).sum(axis=0)


def gather_names(names: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Gathers the names of all processes' rows, in the order of the rows.

    Args:
      names: Columns of str [n] of this process.
      rows: int [n], row numbers, with the same n on each process; together they are 0, ... N-1.

    Returns:
      Columns of str [N], the same on every process.
    """
    if jax.process_count() == 1:
        order = np.argsort(rows)
        return {column: np.asarray(values)[order] for column, values in names.items()}
    order = np.argsort(_gather(rows.astype(np.int32)).reshape(-1))
    gathered = {}
    for column, values in names.items():
        encoded = np.char.encode(np.asarray(values, np.str_), "utf-8")
        # All processes use one string width, because a gather needs equal shapes.
        width = int(_gather(np.array([encoded.dtype.itemsize], np.int32)).max())
        fixed = np.ascontiguousarray(encoded.astype(f"S{max(width, 1)}"))
        wide = np.ascontiguousarray(_gather(fixed.view(np.uint8).reshape(len(fixed), -1)))
        strings = wide.view(fixed.dtype).reshape(-1)
        gathered[column] = np.char.decode(strings, "utf-8")[order]
    return gathered


def _gather(values: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(values))
