"""Sharding over the mesh ("data", "fsdp"): batches over both axes, large leaves over "fsdp"."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")

# The first match applies. "fsdp" shards the largest divisible dimension; "replicate" shards none.
RULES = (
    (r"(^|/)(pca|latent_mean|latent_var|step)(/|$)", "replicate"),
    (r".*", "fsdp"),
)


def path_name(path: tuple) -> str:
    """Converts a tree path to text, for example `linear/analysis`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Makes the mesh over the devices of all processes; data = -1 is the device count / fsdp."""
    data = jax.device_count() // fsdp if data == -1 else data
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a complete copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of rows over all devices: both mesh axes divide the batch."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def partition(path: str, shape: tuple[int, ...], fsdp: int, min_size: int) -> PartitionSpec:
    """Returns the partition of one leaf.

    Args:
      path: Path in the train state, for example `params/encoder/stage0/block0/conv1/kernel`.
      shape: Shape of the leaf.
      fsdp: Size of the mesh's "fsdp" axis.
      min_size: Leaves with fewer values are replicated: gathering them costs more than it saves.

    Returns:
      The partition. A large leaf without a divisible dimension is replicated, with a warning.
    """
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    if rule == "replicate" or fsdp == 1 or np.prod(shape, dtype=np.int64) < min_size:
        return PartitionSpec()
    dimensions = [(size, -i) for i, size in enumerate(shape) if size % fsdp == 0]
    if not dimensions:
        logging.warning("%s %s has no dimension that %d divides: replicated", path, shape, fsdp)
        return PartitionSpec()
    axis = -max(dimensions)[1]
    return PartitionSpec(*[None] * axis, "fsdp")


def tree_sharding(tree, mesh: Mesh, min_size: int):
    """Returns the sharding of every leaf of an abstract or real tree, by `partition`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, partition(path_name(path), leaf.shape, mesh.shape["fsdp"], min_size)
        ),
        tree,
    )


def device_bytes(tree, sharding) -> int:
    """Returns the bytes per device of a tree of abstract or real arrays with given shardings."""
    return sum(
        leaf.dtype.itemsize * int(np.prod(where.shard_shape(leaf.shape)))
        for leaf, where in zip(jax.tree.leaves(tree), jax.tree.leaves(sharding), strict=True)
    )


def largest_leaves(tree, sharding, count: int = 6) -> str:
    """Formats a report of a state's size per device and of its largest parameters.

    Args:
      tree: A train state, abstract or real, whose `params` are listed.
      sharding: Result of `tree_sharding` for the same tree.
      count: Number of parameters to list.

    Returns:
      A line for the state, and a line per parameter: path, shape, partition, MB, MB per device.
    """
    whole = sum(leaf.dtype.itemsize * leaf.size for leaf in jax.tree.leaves(tree))
    held = device_bytes(tree, sharding)
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(tree.params),
        jax.tree.leaves(sharding.params),
        strict=True,
    )
    largest = sorted(leaves, key=lambda entry: -entry[0][1].size)[:count]
    rows = [("parameter", "shape", "partition", "MB", "MB a device")] + [
        (
            path_name(path),
            " x ".join(map(str, leaf.shape)),
            ", ".join(str(axis) for axis in where.spec) or "replicated",
            f"{leaf.dtype.itemsize * leaf.size / 1e6:.1f}",
            f"{device_bytes(leaf, where) / 1e6:.1f}",
        )
        for (path, leaf), where in largest
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    total = f"state: {whole / 1e6:,.1f} MB, of which a device holds {held / 1e6:,.1f} MB"
    return "\n".join([total, *lines])


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch that this process feeds, int [b], ascending.

    They are read from the sharding, because the process index does not determine the position of
    its devices in the mesh. On a TPU slice the devices need not be adjacent.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    spans = sorted({index[0].indices(batch_size)[:2] for index in indices.values()})
    return np.concatenate([np.arange(start, stop) for start, stop in spans])


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays over all devices from this process's rows."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Places arrays that every process holds on the devices of a sharding.

    Arrays that are already distributed over several processes are returned unchanged.
    """

    def placed(array: np.ndarray | jax.Array) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return array
        array = np.asarray(jax.device_get(array))
        with jax.transfer_guard("allow"):
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(placed, tree)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Replicates arrays of any sharding on every device. All processes must call it together."""
    return _replicate(mesh)(tree)


@functools.lru_cache(maxsize=16)
def _replicate(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
