"""The training split decoded into memory, and training batches given as indices into it."""

import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from vae.data.cores import available_cores
from vae.data.dataset import Dataset
from vae.data.errors import DataError
from vae.data.examples import read_examples
from vae.data.order import Order, checked_rows


def whole_split(
    dataset: Dataset, *, size: int, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes all tiles of the training split into memory, in the order of the files.

    Args:
      dataset: From `open_dataset`.
      size: Height and width of every tile in pixels.
      threads: Number of decoding threads; None for one per core.

    Returns:
      The tiles, uint8 [N, size, size, 3], and their `tile_id`s, str [N].

    Raises:
      DataError: A record is damaged, or its tile has another size.
    """
    source = dataset.source("train")
    images = np.empty((len(source), size, size, 3), np.uint8)

    def decode(chunk: int) -> list[str]:
        numbers = range(chunk, min(chunk + 64, len(source)))
        names = []
        for number, example in zip(numbers, read_examples(source, numbers), strict=True):
            tile = example.decode()
            names.append(example.text("tile_id"))
            if tile.shape != images.shape[1:]:
                raise DataError(
                    f"tile {names[-1]} is {tile.shape[0]}x{tile.shape[1]}; tiles held in memory "
                    f"must be {size}x{size}; set --config.data.on_device=False"
                )
            images[number] = tile
        return names

    with concurrent.futures.ThreadPoolExecutor(threads or available_cores()) as pool:
        names = list(pool.map(decode, range(0, len(source), 64)))
    return images, np.array(list(itertools.chain.from_iterable(names)))


def numbered_batches(
    tile_ids: np.ndarray,
    order: Order,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    start_step: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of `train_batches` as indices into `whole_split`, without end.

    Args:
      tile_ids: The ids of all tiles, str [N].
      order: From `Dataset.order`.
      batch_size: Number of rows of a global batch.
      rows: The rows of each global batch that this process needs; None for all.
      start_step: Number of batches already taken.

    Yields:
      Dicts with `number`, int32 [rows], and `tile_id`, str [rows].
    """
    rows = checked_rows(rows, batch_size)
    for step in itertools.count(start_step):
        numbers = np.array([order.at(step * batch_size + row) for row in rows], np.int32)
        yield {"number": numbers, "tile_id": tile_ids[numbers]}
