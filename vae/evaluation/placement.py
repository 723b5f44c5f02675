"""Between the hosts' numpy arrays and arrays over the whole mesh."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH = PartitionSpec(("data", "fsdp"))
WHOLE = PartitionSpec()


def place_whole(
    array: np.ndarray | jax.Array, mesh: Mesh, spec: PartitionSpec = WHOLE
) -> jax.Array:
    """An array that every host has -> the same over the mesh, by default whole on every device.

    One that lies over several hosts already stays as it is.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return array
    array = np.asarray(jax.device_get(array))
    with jax.transfer_guard("allow"):
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, spec), lambda index: array[index]
        )


def sum_over_hosts(values: np.ndarray) -> np.ndarray:
    """The sum over all hosts of float64 [n], the same on each."""
    if jax.process_count() == 1:
        return values
    # Float64 would be cut to float32 on the way; as bytes it travels whole.
    gathered = multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.uint8))
    return np.asarray(gathered).view(np.float64).sum(axis=0)


def gather_names(names: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The names of all hosts' rows, in the order of the rows.

    Args:
      names: Columns of str [n], this host's.
      rows: int [n], their rows; the hosts together have 0, 1, ... N-1, as many on each host.

    Returns:
      Columns of str [N], the same on every host.
    """
    if jax.process_count() == 1:
        order = np.argsort(rows)
        return {column: np.asarray(values)[order] for column, values in names.items()}
    order = np.argsort(_gather(rows.astype(np.int32)).reshape(-1))
    gathered = {}
    for column, values in names.items():
        encoded = np.char.encode(np.asarray(values, np.str_), "utf-8")
        # One width for all hosts: a gather needs equal shapes.
        width = int(_gather(np.array([encoded.dtype.itemsize], np.int32)).max())
        fixed = np.ascontiguousarray(encoded.astype(f"S{max(width, 1)}"))
        wide = np.ascontiguousarray(_gather(fixed.view(np.uint8).reshape(len(fixed), -1)))
        strings = wide.view(fixed.dtype).reshape(-1)
        gathered[column] = np.char.decode(strings, "utf-8")[order]
    return gathered


def _gather(values: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(values))
