"""Leaves of trees by path, differences of two trees, and their hash."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vae.sharding import path_name


def by_path(tree: Any) -> dict[str, Any]:
    """Maps paths to leaves: `params/encoder/stage0/block0/conv1/kernel`, `pca/fit/mean`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def from_paths(leaves: Mapping[str, Any], like: Any) -> Any:
    """Inverts `by_path`: returns a tree of the structure of `like`, whose leaves are not used."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in by_path(like)])


def differences(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Returns a line for each leaf that is missing, unknown or different.

    Args:
      stored: Path -> properties of a stored leaf, for example its shape.
      expected: Path -> the same properties of the expected leaf.
    """
    return [
        f"{name}: {stored.get(name, 'absent')} stored, {expected.get(name, 'none')} expected"
        for name in sorted(stored.keys() | expected.keys())
        if stored.get(name) != expected.get(name)
    ]


def tensors_hash(tensors: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of arrays, 64 hex digits: names, dtypes, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(jax.device_get(tensors[name]), order="C")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def non_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Returns the names of floating-point arrays with infinite or NaN values."""
    return [
        name
        for name, array in tensors.items()
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(np.asarray(array)).all()
    ]
