"""The tfds builder: examples, features and the writing of shards.

The list of tiles is shuffled first and then written shard by shard, so examples are neither
buffered nor sorted. Memory holds the list and a few tiles; no temporary disk space is needed.
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from vae.data import manifest, record_files, records, storage
from vae.data.dataset import file_hash
from vae.data.errors import DataError
from vae.data.fov import FIELDS
from vae.data.fundus_tiles import VERSION, on_beam
from vae.data.fundus_tiles.collect import TileList, collect
from vae.data.fundus_tiles.shards import Notes, Shard, TooManyRejectedError
from vae.data.schema import sealed
from vae.data.thumbnails import THUMBNAILS

SHARD_BYTES = 256 << 20


class FundusTiles(tfds.core.ShardBasedBuilder):
    """Tiles of retinal fundus photographs.

    The usual entry is `vae.data.fundus_tiles.build`. `tfds build` works too:

        tfds build fundus_tiles --imports vae.data.fundus_tiles.builder --manual_dir TILES

    For Apache Beam add `--beam_pipeline_options=runner=...`.
    """

    VERSION = tfds.core.Version(VERSION)
    # By default tfds searches a folder named after this module; a checkout has none.
    pkg_dir_path = epath.Path(__file__).parent
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
        """Creates the builder.

        Args:
          tiles: From `collect`; None collects tfds's manual directory.
          max_rejected: Largest accepted share of damaged tiles, 0 to 1.
          shard_bytes: Approximate size of a shard.
          workers: Threads that read and validate; None for one per core.
          progress: Called with the number of newly processed tiles.
          **kwargs: Arguments of tfds builders: `data_dir`, `file_format` and others.
        """
        self._tiles = tiles
        self._shard_bytes = shard_bytes
        self._notes = Notes(workers, progress, limit=max_rejected)
        super().__init__(**kwargs)

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """(tile, reason) of each tile that the build left out, sorted by tile."""
        return sorted(self._notes.rejected)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Tiles of retinal fundus photographs and where they lie in them.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    **dict.fromkeys(("tile_id", "photograph", "patient", "label"), np.str_),
                    **dict.fromkeys(("y", "x", "photo_height", "photo_width"), np.int32),
                    "scale": np.float32,
                    **{f"fov_{name}": np.float32 for name in FIELDS},
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
                Shard(tiles.select(part), self._notes) for part in np.array_split(numbers, count)
            ]
        return shards

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        """Builds the shards and the files next to them, all in tfds's temporary directory."""
        config = download_config
        beams = config is not None and bool(config.beam_runner or config.beam_options)
        if beams:
            self._write_on_beam(dl_manager, config)
        else:
            super()._download_and_prepare(dl_manager, config)
        tiles, directory = self._tiles, Path(self.data_dir)
        written = {name: info.num_examples for name, info in self.info.splits.items()}
        rejected = len(tiles) - sum(written.values())  # Counted, so that no loss goes unnoticed.
        if rejected > self._notes.limit * len(tiles):
            raise TooManyRejectedError(self.rejected, len(tiles), self._notes.limit)
        for split, count in written.items():
            if not count:
                raise DataError(f"{tiles.root}: every tile of split {split} is damaged")
        if tiles.photographs is not None:
            photographs = storage.read_bytes(tiles.photographs)
            (directory / manifest.PHOTOGRAPHS).write_bytes(photographs)
            beside = tiles.photographs.parent
            if THUMBNAILS in storage.names(beside):
                storage.download(beside / THUMBNAILS, directory / THUMBNAILS)
        # With Beam the workers write the indexes.
        index = records.read_index if beams else records.write_index
        shards = [Path(path) for info in self.info.splits.values() for path in info.filepaths]
        self.info.metadata.update(
            sealed(
                {
                    "tiles": tiles.fingerprint(),
                    "patients_known": tiles.patients_known,
                    "rejected": rejected,
                    "smallest": self._notes.smallest,
                    "shards": {path.name: records.index_hash(index(path)) for path in shards},
                    "files": {
                        name: file_hash(directory / name)
                        for name in (manifest.PHOTOGRAPHS, THUMBNAILS)
                        if (directory / name).exists()
                    },
                }
            )
        )

    def _write_on_beam(self, dl_manager, config: tfds.download.DownloadConfig) -> None:
        """Writes the same shards as tfds does, by Beam's workers."""
        features = self.info.features
        serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
        writer = tfds.core.writer.ShardWriter(features, serializer, self._example_writer())
        shards = {}
        for split, parts in self._shard_iterators_per_split(dl_manager).items():
            template = self._get_filename_template(split_name=split)
            paths = template.sharded_filepaths(len(parts))
            shards[split] = list(zip(parts, paths, strict=True))
        lengths = on_beam.write_shards(
            shards,
            writer,
            self._notes,
            runner=config.beam_runner,
            options=config.beam_options,
        )
        infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths[split],
                num_bytes=sum(os.path.getsize(path) for _, path in parts),
                filename_template=self._get_filename_template(split_name=split),
            )
            for split, parts in shards.items()
        ]
        self.info.set_splits(tfds.core.splits.SplitDict(infos))


class _ExampleWriter(tfds.core.writer.ExampleWriter):
    """Writer of TFRecords without tensorflow, and of other formats by tfds; deterministic."""

    def write(self, path, examples):
        examples = ((key, _in_order(serialized)) for key, serialized in examples)
        if self.file_format == tfds.core.FileFormat.TFRECORD:
            record_files.write_tfrecords(path, (serialized for _, serialized in examples))
            return None
        try:
            return super().write(path, examples)
        except RuntimeError as error:  # ArrayRecord's error for a full disk
            raise OSError(errno.EIO, str(error).partition(";")[0]) from error


def _in_order(serialized: bytes) -> bytes:
    """Returns the example with sorted features.

    Protobuf's own order differs between processes, and a second build would have other bytes.
    """
    example = tf_example_pb2.Example.FromString(serialized)
    return example.SerializeToString(deterministic=True)
