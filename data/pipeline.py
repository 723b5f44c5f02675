"""From a built dataset to this host's batches of tiles.

Records are read at random, so the order is a pure function of the seed: global batch k holds the
same rows in the same order on any number of hosts, and nothing needs saving but k.
"""

import os
import zlib
from collections.abc import Iterator

import cv2
import grain
import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from data import fov, records
from data.dataset import Dataset, open_dataset
from data.errors import DataError, UsageError

__all__ = ["Dataset", "eval_batches", "first_tiles", "open_dataset", "train_batches"]


def train_batches(
    dataset: Dataset,
    *,
    size: int,
    seed: int,
    batch_size: int,
    rows: tuple[int, int] | None = None,
    start_step: int = 0,
    split: str = "train",
    threads: int | None = None,
    prefetch: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches; batch k is a function of (seed, k).

    Every epoch is a new permutation of the split and follows the one before without a gap, within
    a batch if need be. Tiles larger than `size` are cropped at random, keyed by the seed and the
    row's number since the start.

    Args:
      dataset: From `open_dataset`.
      size: Height and width of the tiles, pixels.
      seed: Of the order and the crops.
      batch_size: Rows of a global batch.
      rows: The rows [start, stop) of each global batch that this host wants; None for all. Must
        be one of the equal parts the batch divides into.
      start_step: Number of batches already taken.
      split: Which split.
      threads: Decoding threads; None for one a core.
      prefetch: Batches held ready; None for two a thread.

    Returns:
      Iterator of `image` uint8 [rows, size, size, 3] and `tile_id` str [rows].

    Raises:
      UsageError: `rows` are no equal part of the batch.
      DataError: From the iterator: a record is damaged or its tile too small.
    """
    source = dataset.source(split)
    _check_size(dataset, size)
    start, stop = rows or (0, batch_size)
    local = stop - start
    if local <= 0 or batch_size % local or start % local or stop > batch_size:
        raise UsageError(f"rows {start}:{stop} are no equal part of a batch of {batch_size}")

    def decode_batch(rows: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        images = np.empty((len(rows), size, size, 3), np.uint8)
        tile_ids = []
        for image, (position, number) in zip(images, rows, strict=True):
            features = _parse(source, number)
            _decode_into(image, features, (seed, position), source, number)
            tile_ids.append(_text(features, "tile_id"))
        return {"image": images, "tile_id": np.array(tile_ids)}

    batches = (
        grain.MapDataset.range(len(source))
        .shuffle(_order_seed(seed))
        .repeat()
        .map_with_index(lambda position, number: (position, number))
        # Endless, so nothing remains; rounded up, its length would not fit an index.
        .batch(local, drop_remainder=True, batch_fn=decode_batch)
        # Sliced after batching: the hosts' rows, put together, are the batch of a single host.
        .slice(slice(start // local, None, batch_size // local))
    )
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
    rows: tuple[int, int] | None = None,
    limit: int | None = None,
    threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Every tile of a split once, in the order of the files.

    Tiles larger than `size` are cropped where their id says, the same at every call.

    Args:
      dataset: From `open_dataset`.
      split: Which split.
      size: Height and width of the tiles, pixels.
      seed: Of the sample that `limit` takes.
      batch_size: Rows of a global batch.
      rows: The rows [start, stop) of each global batch that this host wants; None for all.
      limit: Takes a random sample of this many tiles; None takes all.
      threads: Decoding threads; None for one a core.

    Returns:
      Iterator of dicts of [rows] arrays: `image` uint8 [rows, size, size, 3], `fov` bool
      [rows, size, size] (inside the field of view), `valid` bool (False for the padding of the
      last batch: black images, empty names), `tile_id`, `photograph`, `patient`, `label` str.

    Raises:
      DataError: From the iterator: a record is damaged or its tile too small.
    """
    source = dataset.source(split)
    _check_size(dataset, size)
    start, stop = rows or (0, batch_size)
    numbers = np.arange(len(source))
    if limit is not None and limit < len(source):
        numbers = np.sort(np.random.default_rng(seed).permutation(len(source))[:limit])

    def decode_batch(batch: int) -> dict[str, np.ndarray]:
        mine = numbers[batch * batch_size : (batch + 1) * batch_size][start:stop]
        images = np.zeros((stop - start, size, size, 3), np.uint8)
        masks = np.zeros((stop - start, size, size), bool)
        names = {key: [""] * (stop - start) for key in _NAMES}
        for row, number in enumerate(mine):
            features = _parse(source, number)
            key = zlib.crc32(features["tile_id"].bytes_list.value[0])
            y, x = _decode_into(images[row], features, (key,), source, number)
            view, origin_y, origin_x = _geometry(features)
            masks[row] = fov.fov_mask(view, images[row], origin_y + y, origin_x + x)
            for key in _NAMES:
                names[key][row] = _text(features, key)
        valid = np.arange(stop - start) < len(mine)
        return {"image": images, "fov": masks, "valid": valid} | {
            key: np.array(values) for key, values in names.items()
        }

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
) -> Iterator[np.ndarray]:
    """The first `count` tiles that `train_batches` gives for this seed; all, if there are fewer.

    Returns:
      Iterator of uint8 [b, size, size, 3], b <= batch_size.
    """
    count = min(count, dataset.counts.get(split, 0))
    batches = train_batches(dataset, size=size, seed=seed, batch_size=batch_size, split=split)
    for done in range(0, count, batch_size):
        yield next(batches)["image"][: count - done]


_NAMES = ("tile_id", "photograph", "patient", "label")


def _order_seed(seed: int) -> int:
    """Grain numbers its epochs from the seed, so 1 would begin with the second epoch of 0."""
    return zlib.crc32(f"order:{seed}".encode())


def _check_size(dataset: Dataset, size: int) -> None:
    """Refuses tiles that are too small before the run has taken hours to meet the first."""
    smallest = dataset.metadata.get("smallest")
    if smallest and min(smallest["height"], smallest["width"]) < size:
        raise _too_small(smallest["tile"], smallest["height"], smallest["width"], size)


def _too_small(tile: str, height: int, width: int, size: int) -> DataError:
    return DataError(
        f"tile {tile} is {height}x{width} and the config wants {size}x{size}; cut larger tiles "
        f"or set the config's size to {min(height, width)} or less"
    )


def _read_options(threads: int | None, prefetch: int | None) -> grain.ReadOptions:
    threads = threads or len(os.sched_getaffinity(0))
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch or 2 * threads)


# --- Examples ------------------------------------------------------------------------------------


def _parse(source: records.RecordSource, number: int):
    """The features of a record: a mapping of name to `Feature` message."""
    record = source[number]
    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        shard, row = source.locate(number)
        raise DataError(f"{shard}: record {row} is no example; build the dataset again") from error


def _decode_into(
    out: np.ndarray,
    features,
    key: tuple[int, ...],
    source: records.RecordSource,
    number: int,
) -> tuple[int, int]:
    """Decodes a tile into `out` uint8 [size, size, 3], cropped where `key` says if larger.

    Returns:
      The origin (y, x) of the crop, pixels of the tile.
    """
    size = out.shape[0]
    encoded = np.frombuffer(features["image"].bytes_list.value[0], np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)  # [H, W, 3], BGR
    if image is None:
        shard, row = source.locate(number)
        raise DataError(
            f"{shard}: record {row} (tile {_text(features, 'tile_id')}, photograph "
            f"{_text(features, 'photograph')}) holds no image; build the dataset again"
        )
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise _too_small(_text(features, "tile_id"), height, width, size)
    y = x = 0
    if (height, width) != (size, size):
        y, x = np.random.default_rng(key).integers((height - size + 1, width - size + 1))
    cv2.cvtColor(image[y : y + size, x : x + size], cv2.COLOR_BGR2RGB, dst=out)
    return int(y), int(x)


def _text(features, key: str) -> str:
    return features[key].bytes_list.value[0].decode()


def _geometry(features) -> tuple[fov.FieldOfView, int, int]:
    """The field of view of the tile's photograph, and the tile's origin (y, x) in it."""
    circle = (
        features[f"fov_{name}"].float_list.value[0]
        for name in ("x", "y", "radius", "top", "bottom")
    )
    y, x = (features[name].int64_list.value[0] for name in ("y", "x"))
    return fov.FieldOfView(*circle), y, x
