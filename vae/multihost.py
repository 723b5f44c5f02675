"""Several processes that run one program: who speaks, and what the first of them decides."""

from collections.abc import Callable
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
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


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
