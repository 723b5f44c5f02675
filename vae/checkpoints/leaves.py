"""Leaves of trees by path, and differences of two trees."""

from collections.abc import Mapping
from typing import Any

import jax

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
