"""Where arrays live: the mesh ("data", "fsdp"), the batch over both, large leaves over "fsdp"."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")

# First match wins. "fsdp": the largest dimension that divides; "replicate": everywhere whole.
RULES = (
    (r"(^|/)(pca|latent_mean|latent_var|step)(/|$)", "replicate"),
    (r".*", "fsdp"),
)


def path_name(path: tuple) -> str:
    """A tree path as text: `linear/analysis`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """The mesh over all devices of all hosts; data = -1 takes what fsdp leaves."""
    data = jax.device_count() // fsdp if data == -1 else data
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices: both axes of the mesh carry examples."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def partition(path: str, shape: tuple[int, ...], fsdp: int, min_size: int) -> PartitionSpec:
    """How one leaf is cut.

    Args:
      path: Its place in the state, `params/encoder/stage0/block0/conv1/kernel`.
      shape: Its shape.
      fsdp: Size of the mesh's "fsdp" axis.
      min_size: Leaves with fewer values are replicated: gathering them costs more than it saves.

    Returns:
      The partition; a large leaf of which no dimension divides is replicated, and reported.
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
    """The sharding of every leaf of an abstract (or real) tree, by `partition`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, partition(path_name(path), leaf.shape, mesh.shape["fsdp"], min_size)
        ),
        tree,
    )


def device_bytes(tree, sharding) -> int:
    """What each device holds of a tree of abstract (or real) arrays with their shardings, bytes."""
    return sum(
        leaf.dtype.itemsize * int(np.prod(where.shard_shape(leaf.shape)))
        for leaf, where in zip(jax.tree.leaves(tree), jax.tree.leaves(sharding), strict=True)
    )


def largest_leaves(tree, sharding, count: int = 6) -> str:
    """A report of where a state goes: what a device holds, and the parameters that weigh most.

    Args:
      tree: A state, abstract or real, whose `params` are listed.
      sharding: Of `tree_sharding`, for the same tree.
      count: How many parameters.

    Returns:
      A line for the whole, and one for each parameter: path, shape, partition, megabytes a device.
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
    """The rows of a global batch that this process feeds: ascending, int [b].

    Read from the sharding, for a process number says nothing about where its devices stand in the
    mesh: on a TPU slice they need not even stand together.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    spans = sorted({index[0].indices(batch_size)[:2] for index in indices.values()})
    return np.concatenate([np.arange(start, stop) for start, stop in spans])


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows -> global arrays over all devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has -> the same over the devices of a sharding.

    One that lies over several processes already stays as it is.
    """

    def placed(array: np.ndarray | jax.Array) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return array
        array = np.asarray(jax.device_get(array))
        with jax.transfer_guard("allow"):
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(placed, tree)


def whole(mesh: Mesh, tree: Any) -> Any:
    """Arrays in any sharding -> whole on every device. All processes call it together."""
    return _whole(mesh)(tree)


@functools.lru_cache(maxsize=16)
def _whole(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
