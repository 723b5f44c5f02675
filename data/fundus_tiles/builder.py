"""The tfds builder: examples, their features, and how they get into shards.

Built shard by shard from a list that is shuffled beforehand, so nothing is buffered or sorted on
the way: memory holds the list and a few tiles, and no temporary disk is needed.
"""

import collections
import concurrent.futures
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data import manifest, records
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
        self._max_rejected = max_rejected
        self._shard_bytes = shard_bytes
        self._reader = _Reader(workers or len(os.sched_getaffinity(0)), progress)
        super().__init__(**kwargs)

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """(tile, reason) of what the build left out, sorted by tile."""
        return sorted(self._reader.rejected)

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
        tiles, reader = self._tiles, self._reader
        reader.allowed = int(self._max_rejected * len(tiles))
        shards = {}
        for split, numbers in tiles.order().items():
            size = int(tiles.sizes[numbers].clip(min=0).sum())
            count = min(max(1, round(size / self._shard_bytes)), len(numbers))
            shards[split] = [
                _Shard(tiles.root, [tiles.paths[n] for n in part], tiles, part, reader)
                for part in np.array_split(numbers, count)
            ]
        return shards

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        """Builds the shards, then what lies beside them, all in tfds's temporary directory."""
        super()._download_and_prepare(dl_manager, download_config)
        tiles, directory = self._tiles, Path(self.data_dir)
        written = {name: info.num_examples for name, info in self.info.splits.items()}
        # Counted, not taken from the list: on a cluster the workers' lists stay with the workers.
        rejected = len(tiles) - sum(written.values())
        if rejected > self._max_rejected * len(tiles):
            raise TooManyRejectedError(self.rejected, rejected, len(tiles), self._max_rejected)
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
            smallest=self._reader.smallest,
        )


class TooManyRejectedError(DataError):
    """More tiles are damaged than the build may leave out.

    Attributes:
      rejected: (tile, reason) of those found so far.
    """

    def __init__(self, rejected: list[tuple[str, str]], count: int, total: int, limit: float):
        shown = "; ".join(f"{tile}: {reason}" for tile, reason in rejected[:3])
        super().__init__(
            f"{count} of {total} tiles are damaged, more than --max_rejected {limit:g} allows: "
            f"{shown}{'; ...' if count > 3 else ''}; restore or remove them, or raise the limit"
        )
        self.rejected = rejected


class _ExampleWriter(tfds.core.writer.ExampleWriter):
    """Writes TFRecords without tensorflow; other formats as tfds does."""

    def write(self, path, examples):
        if self.file_format == tfds.core.FileFormat.TFRECORD:
            records.write_tfrecords(path, (serialized for _, serialized in examples))
            return None
        return super().write(path, examples)


@dataclasses.dataclass
class _Reader:
    """Reads and validates tiles, and remembers what it met."""

    workers: int
    progress: Callable[[int], object] | None = None
    allowed: int = 0
    rejected: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    smallest: dict = dataclasses.field(default_factory=dict)
