"""Batches of tiles for this process, from a built dataset.

Records are read by random access, so the order is a pure function of the seed: global batch k has
the same rows in the same order for any number of processes, and k is the whole iterator state.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from vae.data import fov
from vae.data.cores import available_cores
from vae.data.dataset import Dataset, open_dataset
from vae.data.errors import DataError
from vae.data.examples import Example, read_examples
from vae.data.order import checked_rows, draw, permutation
from vae.data.thumbnails import THUMBNAIL

__all__ = ["Dataset", "eval_batches", "first_tiles", "open_dataset", "train_batches"]


def train_batches(
    dataset: Dataset,
    *,
    size: int,
    seed: int,
    batch_size: int,
    rows: Sequence[int] | None = None,
    start_step: int = 0,
    context: bool = False,
    labels: bool = False,
    balance: float = 0.0,
    split: str = "train",
    threads: int | None = None,
    prefetch: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns endless batches; batch k is a function of (seed, k).

    Every epoch is a new permutation of the split (without `balance`). An epoch may begin inside a
    batch: no tile is dropped. The crop of a larger tile is a function of the seed and the row's
    number since step 0.

    Args:
      dataset: From `open_dataset`.
      size: Height and width of the tiles, pixels.
      seed: Seed of the order and the crops.
      batch_size: Rows of a global batch.
      rows: Rows of each global batch that this process loads; None for all.
      start_step: Number of the first batch.
      context: Adds `thumbnail` and `fov_circle` of each tile's photograph.
      labels: Adds `label`.
      balance: From 0, where every tile is equally frequent, to 1, where every label is. Above 0
        the split is read once at the start, for the labels.
      split: Name of the split.
      threads: Decoding threads; None for one per core.
      prefetch: Number of batches decoded in advance; None for two more than the threads.

    Returns:
      Iterator of dicts: `image` uint8 [rows, size, size, 3] and `tile_id` str [rows]; with
      `context` also `thumbnail` uint8 [rows, THUMBNAIL, THUMBNAIL, 3] and `fov_circle` float32
      [rows, 3] (see `vae.data.thumbnails`); with `labels` also `label` str [rows].

    Raises:
      UsageError: The split does not exist, or `rows` are not rows of the batch.
      DataError: The dataset has no thumbnails, or its tiles are too small; from the iterator: a
        record is damaged, or its tile is too small.
    """
    source = dataset.source(split)
    _check_size(dataset, size)
    contexts = _Contexts(dataset) if context else None
    rows = checked_rows(rows, batch_size)
    order = dataset.order(split, seed, balance)

    def decode_batch(step: int) -> dict[str, np.ndarray]:
        images = np.empty((len(rows), size, size, 3), np.uint8)
        tile_ids, names, around = [], [], []
        positions = [step * batch_size + row for row in rows]
        examples = read_examples(source, [order.at(position) for position in positions])
        for image, position, example in zip(images, positions, examples, strict=True):
            y, x = _decode_into(example, image, f"{seed}:{position}")
            tile_ids.append(example.text("tile_id"))
            names.append(example.text("label"))
            if contexts:
                around.append(contexts.of(example, y, x))
        batch = {"image": images, "tile_id": np.array(tile_ids)} | _stacked(around)
        return batch | {"label": np.array(names)} if labels else batch

    # Each thread decodes a whole batch into one array: no copies, and little Python overhead.
    batches = grain.MapDataset.range(sys.maxsize).map(decode_batch)
    iterator = iter(batches.to_iter_dataset(_read_options(threads, prefetch)))
    iterator.set_state({"next_index": start_step})
    return iterator


def eval_batches(
    dataset: Dataset,
    split: str,
    *,
    size: int,
    seed: int,
    batch_size: int,
    rows: Sequence[int] | None = None,
    context: bool = False,
    limit: int | None = None,
    threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns every tile of a split once, in the order of the files.

    Tiles larger than `size` are cropped at a place that is a function of their id.

    Args:
      dataset: From `open_dataset`.
      split: Name of the split.
      size: Height and width of the tiles, pixels.
      seed: Seed of the sample that `limit` takes.
      batch_size: Rows of a global batch.
      rows: Rows of each global batch that this process loads; None for all.
      context: Adds `thumbnail` and `fov_circle`, as `train_batches` does.
      limit: Takes a random sample of this many tiles; None takes all.
      threads: Decoding threads; None for one per core.

    Returns:
      Iterator of dicts: `image` uint8 [rows, size, size, 3]; `fov` bool [rows, size, size], True
      inside the field of view; `valid` bool [rows], False for the padding of the last batch (black
      images, empty names); `tile_id`, `photograph`, `patient` and `label` str [rows].

    Raises:
      UsageError: The split does not exist.
      DataError: As `train_batches`.
    """
    source = dataset.source(split)
    _check_size(dataset, size)
    rows = range(batch_size) if rows is None else rows
    contexts = _Contexts(dataset) if context else None
    numbers = np.arange(len(source))
    if limit is not None and limit < len(source):
        numbers = np.sort(permutation(len(source), f"{seed}:{split}")[:limit])

    def decode_batch(batch: int) -> dict[str, np.ndarray]:
        images = np.zeros((len(rows), size, size, 3), np.uint8)
        masks = np.zeros((len(rows), size, size), bool)
        names = {key: [""] * len(rows) for key in _NAMES}
        around = [_NOWHERE] * len(rows) if contexts else []
        positions = batch * batch_size + np.asarray(rows)
        valid = positions < len(numbers)
        wanted = numbers[positions[valid]].tolist()
        for row, example in zip(np.flatnonzero(valid), read_examples(source, wanted), strict=True):
            y, x = _decode_into(example, images[row], example.text("tile_id"))
            geometry, origin_y, origin_x = example.geometry()
            masks[row] = fov.fov_mask(geometry, images[row], origin_y + y, origin_x + x)
            for key in _NAMES:
                names[key][row] = example.text(key)
            if contexts:
                around[row] = contexts.of(example, y, x)
        return (
            {"image": images, "fov": masks, "valid": valid}
            | {key: np.array(values) for key, values in names.items()}
            | _stacked(around)
        )

    batches = grain.MapDataset.range(-(-len(numbers) // batch_size)).map(decode_batch)
    return iter(batches.to_iter_dataset(_read_options(threads, None)))


def first_tiles(
    dataset: Dataset,
    *,
    size: int,
    seed: int,
    count: int = 1024,
    split: str = "train",
    batch_size: int = 64,
    balance: float = 0.0,
) -> Iterator[np.ndarray]:
    """Yields the first `count` tiles of `train_batches` for these arguments; at most one epoch.

    Yields:
      uint8 [b, size, size, 3], b <= batch_size.
    """
    count = min(count, dataset.counts.get(split, 0))
    batches = train_batches(
        dataset, size=size, seed=seed, batch_size=batch_size, split=split, balance=balance
    )
    with contextlib.closing(batches):
        for done in range(0, count, batch_size):
            yield next(batches)["image"][: count - done]


# Thumbnail and FOV circle of the padding in the last batch.
_NOWHERE = (np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8), np.array([0, 0, 1], np.float32))


class _Contexts:
    """Thumbnail and FOV circle of the photograph around each tile."""

    def __init__(self, dataset: Dataset):
        self._thumbnails, self._rows = dataset.thumbnails()

    def of(self, example: Example, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the thumbnail, and the FOV circle in pixels from row y, column x of the tile."""
        photograph = example.text("photograph")
        if photograph not in self._rows:
            raise DataError(
                f"tile {example.text('tile_id')}: its photograph {photograph} has no thumbnail"
            )
        return self._thumbnails[self._rows[photograph]], example.circle(y, x)


def _stacked(around: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    if not around:
        return {}
    thumbnails, circles = zip(*around, strict=True)
    return {"thumbnail": np.stack(thumbnails), "fov_circle": np.stack(circles)}


_NAMES = ("tile_id", "photograph", "patient", "label")


def _check_size(dataset: Dataset, size: int) -> None:
    """Refuses tiles that are too small at the start, not hours later at the first of them."""
    smallest = dataset.metadata["smallest"]
    if min(smallest["height"], smallest["width"]) < size:
        raise _too_small(smallest["tile"], smallest["height"], smallest["width"], size)


def _too_small(tile: str, height: int, width: int, size: int) -> DataError:
    return DataError(
        f"tile {tile} is {height}x{width} and the config wants {size}x{size}; cut larger tiles "
        f"or set the config's size to {min(height, width)} or less"
    )


def _read_options(threads: int | None, prefetch: int | None) -> grain.ReadOptions:
    threads = threads or available_cores()
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch or threads + 2)


def _decode_into(example: Example, out: np.ndarray, key: str) -> tuple[int, int]:
    """Decodes a tile into `out` uint8 [size, size, 3]; `key` places the crop of a larger one.

    Returns:
      Row and column of the crop's origin in the tile, pixels.
    """
    image = example.decode()
    size, (height, width) = len(out), image.shape[:2]
    if min(height, width) < size:
        raise _too_small(example.text("tile_id"), height, width, size)
    y = x = 0
    if height > size or width > size:
        drawn = draw(key)
        y, x = drawn % (height - size + 1), (drawn >> 32) % (width - size + 1)
    out[...] = image[y : y + size, x : x + size]
    return y, x


def paired(
    clean: Iterable[dict[str, np.ndarray]], masked: Iterable[dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """Joins batches of tiles with batches of the same tiles masked, from two datasets.

    Yields:
      The batches of `clean`, with `image` uint8 [b, size, size, 6]: the tile, then its masked form.

    Raises:
      DataError: The tile names of the datasets differ; the message names the first such pair.
    """
    for batch, other in zip(clean, masked, strict=True):
        for name, mask_name in zip(batch["tile_id"], other["tile_id"], strict=True):
            if name != mask_name:
                raise DataError(
                    f"data.masked_dir: tile {mask_name} stands where {name} is expected; build "
                    "both datasets from trees with the same names and the same splits"
                )
        yield batch | {"image": np.concatenate([batch["image"], other["image"]], axis=-1)}
