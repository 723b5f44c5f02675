"""The tfds builder: examples, their features, and how they get into shards.

Built shard by shard from a list that is shuffled beforehand, so nothing is buffered or sorted on
the way: memory holds the list and a few tiles, and no temporary disk is needed.
"""

import collections
import concurrent.futures
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from data import manifest, record_files, records
from data.cores import available_cores
from data.errors import DataError
from data.fundus_tiles import VERSION
from data.fundus_tiles.collect import TileList, collect
from data.fundus_tiles.encoded import Encoded, prepare

SHARD_BYTES = 256 << 20
_LOOK_AHEAD = 32  # Tiles per worker that are read before they are written.
_STOP_AFTER = 100  # Rejected tiles to list before a build that is lost is given up.


class FundusTiles(tfds.core.ShardBasedBuilder):
    """Tiles of retinal fundus photographs.

    `data.fundus_tiles.build` is the usual way to it. `tfds build` works too:

        tfds build fundus_tiles --imports data.fundus_tiles.builder --manual_dir TILES

    Attributes:
      rejected: (tile, reason) of what the build left out, once it ran.
    """

    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The directory of tiles that `fundus-vae make-tiles` made."

    def __init__(
        self,
        *,
        tiles: TileList | None = None,
        max_rejected: float = 0.001,
        shard_bytes: int = SHARD_BYTES,
        workers: int | None = None,
        progress: Callable[[int], object] | None = None,
        **kwargs,
    ):
        """Takes what tfds builders take, and more.

        Args:
          tiles: From `collect`; None collects tfds's manual directory.
          max_rejected: Share of the tiles that may be left out as damaged.
          shard_bytes: About how large a shard is.
          workers: Threads that read and validate; None for one a core.
          progress: Called with the number of tiles just dealt with.
          **kwargs: `data_dir`, `file_format` and so on.
        """
        self._tiles = tiles
        self._shard_bytes = shard_bytes
        self._notes = _Notes(workers or available_cores(), progress, limit=max_rejected)
        super().__init__(**kwargs)

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """(tile, reason) of what the build left out, sorted by tile."""
        return sorted(self._notes.rejected)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Tiles of retinal fundus photographs and where they lie in them.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    **dict.fromkeys(("tile_id", "photograph", "patient", "label"), np.str_),
                    **dict.fromkeys(("y", "x", "photo_height", "photo_width"), np.int32),
                    **dict.fromkeys(("scale", "fov_x", "fov_y", "fov_radius"), np.float32),
                    **dict.fromkeys(("fov_top", "fov_bottom"), np.float32),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _example_writer(self) -> tfds.core.writer.ExampleWriter:
        return _ExampleWriter(self.info.file_format)

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator]]]:
        if self._tiles is None:
            self._tiles = collect(dl_manager.manual_dir)
        tiles = self._tiles
        self._notes.total = len(tiles)
        shards = {}
        for split, numbers in tiles.order().items():
            size = int(tiles.sizes[numbers].clip(min=0).sum())
            count = min(max(1, round(size / self._shard_bytes)), len(numbers))
            shards[split] = [
                _Shard(tiles.select(part), self._notes) for part in np.array_split(numbers, count)
            ]
        return shards

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        """Builds the shards, then what lies beside them, all in tfds's temporary directory."""
        super()._download_and_prepare(dl_manager, download_config)
        tiles, directory = self._tiles, Path(self.data_dir)
        written = {name: info.num_examples for name, info in self.info.splits.items()}
        # Counted, not taken from the list: on a cluster the workers' lists stay with the workers.
        rejected = len(tiles) - sum(written.values())
        if rejected > self._notes.limit * len(tiles):
            raise TooManyRejectedError(self.rejected, len(tiles), self._notes.limit)
        for split, count in written.items():
            if not count:
                raise DataError(f"{tiles.root}: every tile of split {split} is damaged")
        if tiles.photographs is not None:
            shutil.copyfile(tiles.photographs, directory / manifest.PHOTOGRAPHS)
        for info in self.info.splits.values():
            for path in info.filepaths:
                records.write_index(path)
        self.info.metadata.update(
            tiles=tiles.fingerprint(),
            patients_known=tiles.patients_known,
            rejected=rejected,
            smallest=self._notes.smallest,
        )


class TooManyRejectedError(DataError):
    """More tiles are damaged than the build may leave out.

    Attributes:
      rejected: (tile, reason) of those found so far.
    """

    def __init__(self, rejected: list[tuple[str, str]], total: int, limit: float):
        shown = "; ".join(f"{tile}: {reason}" for tile, reason in sorted(rejected)[:3])
        super().__init__(
            f"{len(rejected)} of {total} tiles are damaged or missing, more than --max_rejected "
            f"{limit:g} allows ({shown}{'; ...' if len(rejected) > 3 else ''}); restore or remove "
            "them, or raise the limit"
        )
        self.rejected = sorted(rejected)


class _ExampleWriter(tfds.core.writer.ExampleWriter):
    """Writes TFRecords without tensorflow, other formats as tfds does; always the same bytes."""

    def write(self, path, examples):
        examples = ((key, _in_order(serialized)) for key, serialized in examples)
        if self.file_format == tfds.core.FileFormat.TFRECORD:
            record_files.write_tfrecords(path, (serialized for _, serialized in examples))
            return None
        return super().write(path, examples)


def _in_order(serialized: bytes) -> bytes:
    """The example with its features sorted: protobuf leaves their order to chance in each process,
    and a dataset built again of the same tiles would look like another one."""
    example = tf_example_pb2.Example.FromString(serialized)
    return example.SerializeToString(deterministic=True)


@dataclasses.dataclass
class _Notes:
    """What was met on the way, shared by the shards of a build.

    Attributes:
      workers: Threads that read and validate.
      progress: Called with the number of tiles just dealt with.
      total: Tiles of the build.
      limit: Share of them that may be rejected.
      rejected: (tile, reason).
      smallest: The tile with the shortest side: its id, height and width.
    """

    workers: int
    progress: Callable[[int], object] | None
    total: int = 0
    limit: float = 0.0
    rejected: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    smallest: dict[str, str | int] = dataclasses.field(default_factory=dict)

    def note(self, tile: str, height: int, width: int) -> None:
        found = self.smallest
        if not found or min(height, width) < min(found["height"], found["width"]):
            self.smallest = {"tile": tile, "height": height, "width": width}


class _Shard:
    """The examples of one shard."""

    def __init__(self, tiles: TileList, notes: _Notes):
        self._tiles = tiles
        self._notes = notes

    def __call__(self) -> Iterator[tuple[int, dict]]:
        """Yields the examples; threads read and validate the tiles, a bounded number ahead."""
        tiles, notes = self._tiles, self._notes
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(notes.workers) as pool:
            try:
                for number in range(len(tiles) + notes.workers * _LOOK_AHEAD):
                    if number < len(tiles):
                        pending.append(pool.submit(self._read, number))
                    if number >= notes.workers * _LOOK_AHEAD and pending:
                        done = number - notes.workers * _LOOK_AHEAD
                        yield from self._example(done, pending.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, number: int) -> Encoded:
        path = self._tiles.root / self._tiles.paths[number]
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise DataError(error.strerror or str(error)) from error
        return prepare(encoded)

    def _example(self, number: int, read: concurrent.futures.Future) -> Iterator[tuple[int, dict]]:
        """Yields the example, or nothing where the tile had to be rejected."""
        notes, example = self._notes, self._tiles.example(number)
        if notes.progress:
            notes.progress(1)
        try:
            encoded = read.result()
        except DataError as error:
            notes.rejected.append((self._tiles.paths[number], str(error)))
            if len(notes.rejected) > max(notes.limit * notes.total, _STOP_AFTER):
                raise TooManyRejectedError(notes.rejected, notes.total, notes.limit) from None
            return
        notes.note(example["tile_id"], encoded.height, encoded.width)
        yield number, example | {"image": _ReadOnce(encoded.data)}


class _ReadOnce:
    """Bytes that are let go when read: tfds keeps a shard's examples until the shard is done."""

    def __init__(self, data: bytes):
        self._data = data

    def read(self) -> bytes:
        data, self._data = self._data, b""
        return data
