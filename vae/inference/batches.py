"""Batches of images for one call of a model, and the padding of the last batch.

The last digit of a float sum depends on the number of rows of the matrix. Commands whose outputs
must agree to the last grey level therefore use the same batches.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vae.data.failures import Failure
from vae.data.inputs import Item

# Upper limits of a batch: images, and pixels in total.
MAX_BATCH = 16
MAX_PIXELS = 1 << 20
TILE_PIXELS = MAX_PIXELS // 4  # A larger image is a batch by itself.


def item_batches(items: Iterator[Item | Failure]) -> Iterator[list[Item] | list[Failure]]:
    """Groups neighbouring tiles of one size; photographs and failures stay alone."""
    batch: list[Item] = []
    for item in items:
        tile = isinstance(item, Item) and item.image.shape[0] * item.image.shape[1] <= TILE_PIXELS
        fits = tile and batch and batch[0].image.shape == item.image.shape
        if batch and not (fits and len(batch) < MAX_BATCH):
            yield batch
            batch = []
        if tile:
            batch.append(item)
        else:
            yield [item]
    if batch:
        yield batch


def batch_bounds(numbers: Sequence[int], pixels: int) -> Iterator[tuple[int, int]]:
    """Finds the batches of `item_batches` among the items of one image size.

    Args:
      numbers: Index of each item among all inputs, ascending.
      pixels: Pixels of one image.

    Yields:
      Ranges (start, stop) of indices into `numbers`.
    """
    largest = MAX_BATCH if pixels <= TILE_PIXELS else 1
    start = 0
    for stop in range(1, len(numbers) + 1):
        neighbours = stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1
        if not neighbours or stop - start == largest:
            yield start, stop
            start = stop


def batch_size(pixels: int) -> int:
    """Returns the largest power of two of images of `pixels` pixels that fit in one batch."""
    fit = min(MAX_BATCH, max(1, MAX_PIXELS // pixels))
    return 1 << (fit.bit_length() - 1)


def filled(rows: Any, size: int) -> Any:
    """Repeats the last row of each array [n, ...], 1 <= n <= size, in a tree: [size, ...]."""
    return jax.tree.map(
        lambda a: np.concatenate([a, np.repeat(a[-1:], size - len(a), axis=0)]), rows
    )


def in_batches(
    function: Callable[..., Any], *inputs: np.ndarray, size: int, fixed: bool = False
) -> Any:
    """Applies a function of arrays [n, ...] to arrays [N, ...] in batches of few different sizes.

    Args:
      function: Returns a tree of arrays [n, ...]; must be traceable if N may be 0.
      inputs: Arrays with the same number of rows, N.
      size: Largest number of rows of a batch.
      fixed: True pads the last batch to `size`; False pads it to a power of two.

    Returns:
      A tree of numpy arrays [N, ...].
    """
    count = len(inputs[0])
    if not count:
        shapes = (jax.ShapeDtypeStruct(rows.shape, rows.dtype) for rows in inputs)
        outputs = jax.eval_shape(function, *shapes)
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), outputs)
    parts = []
    for start in range(0, count, size):
        kept = min(size, count - start)
        wanted = size if fixed else 1 << (kept - 1).bit_length()
        batch = filled(tuple(rows[start : start + size] for rows in inputs), wanted)
        outputs = jax.device_get(function(*batch))
        parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[:kept], outputs))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
