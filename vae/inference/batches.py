"""Which images go through a model together.

A sum of floats depends in its last digit on how many rows a matrix has. Commands that should agree
to the last grey level therefore cut what they are given into the same batches.
"""

from collections.abc import Iterator, Sequence

from vae.data.failures import Failure
from vae.data.inputs import Item
from vae.inference.model import MAX_BATCH, MAX_PIXELS

TILE_PIXELS = MAX_PIXELS // 4  # Larger images go through one by one.


def item_batches(items: Iterator[Item | Failure]) -> Iterator[list[Item] | list[Failure]]:
    """Neighbouring tiles of one size together; photographs, and failures, alone."""
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
    """The batches of `item_batches`, found again among the items of one size.

    Args:
      numbers: Ascending, the place of each item among all inputs.
      pixels: Of an image.

    Yields:
      Ranges (start, stop) of places in `numbers`.
    """
    largest = MAX_BATCH if pixels <= TILE_PIXELS else 1
    start = 0
    for stop in range(1, len(numbers) + 1):
        neighbours = stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1
        if not neighbours or stop - start == largest:
            yield start, stop
            start = stop
