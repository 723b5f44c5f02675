"""Leaves of trees by their paths, and where two trees differ."""

from collections.abc import Mapping
from typing import Any

import jax

from vae.sharding import path_name


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path: `params/encoder/stage0/block0/conv1/kernel`, `pca/fit/mean`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def differences(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that is missing, unknown or of another shape.

    Args:
      stored: What is known of each leaf, its shape for instance, by path.
      expected: Likewise.
    """
    return [
        f"{name}: {stored.get(name, 'absent')} stored, {expected.get(name, 'none')} expected"
        for name in sorted(stored.keys() | expected.keys())
        if stored.get(name) != expected.get(name)
    ]
