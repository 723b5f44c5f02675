"""A built dataset: its shards, what they hold, and whether all of it is there."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable

import numpy as np

from vae.data import manifest, records, storage, thumbnails
from vae.data.errors import DataError, UsageError
from vae.data.fundus_tiles import NAME, VERSION
from vae.data.local_copy import local_copy
from vae.data.storage import AnyPath

_INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A built dataset.

    Attributes:
      path: The directory that holds the shards; an `epath.Path` in a bucket.
      shards: Per split, its files in order and the number of records in each.
      file_format: "tfrecord" or "array_record".
      metadata: What the build noted (see `vae.data.fundus_tiles.builder`).
    """

    path: AnyPath
    shards: dict[str, tuple[tuple[AnyPath, int], ...]]
    file_format: str
    metadata: dict
    _sources: dict[str, records.RecordSource] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def counts(self) -> dict[str, int]:
        """The number of tiles per split."""
        return {split: sum(n for _, n in shards) for split, shards in self.shards.items()}

    @property
    def patients_known(self) -> bool:
        """False where the splits were made without knowing whose tiles they are."""
        return bool(self.metadata["patients_known"])

    def photographs(self) -> list[manifest.PhotographRow]:
        """The photographs the tiles were cut from; [] where the build was not told."""
        path = self.path / manifest.PHOTOGRAPHS
        return manifest.read_photographs(path) if path.name in storage.names(self.path) else []

    def thumbnails(self) -> tuple[np.ndarray, dict[str, int]]:
        """Returns the thumbnails, uint8 [N, THUMBNAIL, THUMBNAIL, 3], and each photograph's row.

        Raises:
          DataError: The dataset has none, or they are damaged.
        """
        if thumbnails.THUMBNAILS not in storage.names(self.path):
            raise DataError(
                f"{self.path} has no thumbnails of its photographs; cut the tiles with "
                "`fundus-vae make-tiles` of this version (it continues what an earlier one "
                "finished), and build the dataset again"
            )
        rows = {row.photograph: number for number, row in enumerate(self.photographs())}
        return thumbnails.open_thumbnails(self.path / thumbnails.THUMBNAILS, len(rows)), rows

    def source(self, split: str) -> records.RecordSource:
        """The records of a split.

        Raises:
          UsageError: There is no such split.
          DataError: A shard is missing, damaged or incomplete.
        """
        if split not in self.shards:
            raise UsageError(f"{self.path} has no split {split!r}; it has {', '.join(self.shards)}")
        if split not in self._sources:
            files, counts = zip(*self.shards[split], strict=True)
            self._sources[split] = records.open_source(files, counts=counts)
        return self._sources[split]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hex digest of every record's length and checksum: changes if and only if data does."""
        digest = hashlib.sha256()
        for split in sorted(self.shards):
            index = self.source(split).index
            digest.update(f"{split}:{len(index)}\n".encode())
            digest.update(np.ascontiguousarray(index).tobytes())
        return digest.hexdigest()[:32]


def open_dataset(
    data_dir: str | os.PathLike,
    *,
    cache_dir: str | os.PathLike = "",
    report: Callable[[str], None] = print,
) -> Dataset:
    """Opens the dataset that `fundus-vae build` made.

    In a bucket (gs://bucket/folder) the records are read where they are, of each only its bytes.

    Args:
      data_dir: What `build` was given as its data directory, or the directory of the shards.
      cache_dir: Local directory to copy the dataset to first, unless it is there already; "" for
        none.
      report: Receives a line on a copy that is made or waited for.

    Raises:
      DataError: There is none, it is incomplete, another version built it, or it cannot be copied.
      UsageError: Nothing here reads from such a place.
    """
    path = _find(storage.as_path(data_dir))
    if cache_dir:
        path = local_copy(path, cache_dir, report=report)
    info = _read_json(path / _INFO, "version", "splits")
    if info["version"] != VERSION:
        raise DataError(
            f"{path} was built as version {info['version']} and this code reads {VERSION}; "
            "build it again"
        )
    metadata = _read_json(path / "metadata.json", "tiles", "patients_known")
    suffix = info.get("fileFormat", "tfrecord")
    present = storage.names(path)
    shards = {}
    for split in info["splits"]:
        try:
            counts, name = [int(count) for count in split["shardLengths"]], str(split["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path / _INFO, f"split {split}") from error
        files = [
            path / f"{NAME}-{name}.{suffix}-{i:05d}-of-{len(counts):05d}"
            for i in range(len(counts))
        ]
        missing = [str(file) for file in files if file.name not in present]
        if missing:
            raise DataError(
                f"{missing[0]}: missing ({len(missing)} of the {len(files)} shards of "
                f"{name}); restore it or build the dataset again"
            )
        shards[name] = tuple(zip(files, counts, strict=True))
    if not shards:
        raise DataError(f"{path}: an empty dataset; build it again")
    return Dataset(path, shards, suffix, metadata)


def _find(data_dir: AnyPath) -> AnyPath:
    """The directory of the shards."""
    for path in (data_dir, data_dir / NAME / VERSION):
        if _INFO in storage.names(path):
            return path
    versions = data_dir / NAME
    others = sorted(v for v in storage.names(versions) if _INFO in storage.names(versions / v))
    if others:
        raise DataError(
            f"{data_dir} holds version {', '.join(others)} and this code reads {VERSION}; "
            "build it again"
        )
    raise DataError(
        f"{data_dir}: no dataset here; make one with "
        f"`fundus-vae build --tiles TILES --data_dir {data_dir}`"
    )


def _read_json(path: AnyPath, *keys: str) -> dict:
    try:
        read = json.loads(storage.read_bytes(path))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(read, dict) or (lacking := [key for key in keys if key not in read]):
        raise _damaged(path, f"lacks {', '.join(lacking)}" if isinstance(read, dict) else "a list")
    return read


def _damaged(path: AnyPath, reason: str) -> DataError:
    return DataError(f"{path}: damaged ({reason}); build the dataset again with --overwrite")
