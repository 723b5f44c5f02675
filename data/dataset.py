"""A built dataset: its shards, their records, and checks that it is complete."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable

import numpy as np

from vae.data import manifest, records, storage, thumbnails
from vae.data.errors import DataError, UsageError
from vae.data.examples import read_examples
from vae.data.fundus_tiles import NAME, VERSION
from vae.data.local_copy import local_copy
from vae.data.order import BalancedOrder, Order
from vae.data.storage import AnyPath

_INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A built dataset.

    Attributes:
      path: The directory of the shards; an `epath.Path` if it is in a bucket.
      shards: For each split, its files in order with the number of records in each.
      file_format: "tfrecord" or "array_record".
      metadata: Metadata written by the build (see `vae.data.fundus_tiles.builder`).
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
        """The number of tiles in each split."""
        return {split: sum(n for _, n in shards) for split, shards in self.shards.items()}

    @property
    def patients_known(self) -> bool:
        """True if the patients were known when the splits were made."""
        return bool(self.metadata["patients_known"])

    def photographs(self) -> list[manifest.PhotographRow]:
        """Returns the photographs of the tiles; [] if the dataset has no list of them."""
        path = self.path / manifest.PHOTOGRAPHS
        return manifest.read_photographs(path) if path.name in storage.names(self.path) else []

    def thumbnails(self) -> tuple[np.ndarray, dict[str, int]]:
        """Returns the thumbnails, uint8 [N, THUMBNAIL, THUMBNAIL, 3], and each one's index by id.

        Raises:
          DataError: The dataset has no thumbnails, or they are damaged.
        """
        if thumbnails.THUMBNAILS not in storage.names(self.path):
            raise DataError(
                f"{self.path} has no thumbnails of its photographs; cut the tiles with this "
                "version of `fundus-vae make-tiles` (it reuses finished tiles) and build the "
                "dataset again"
            )
        rows = {row.photograph: number for number, row in enumerate(self.photographs())}
        return thumbnails.open_thumbnails(self.path / thumbnails.THUMBNAILS, len(rows)), rows

    def source(self, split: str) -> records.RecordSource:
        """Returns the records of a split, opened once.

        Raises:
          UsageError: The dataset has no such split.
          DataError: A shard is missing, damaged or incomplete.
        """
        if split not in self.shards:
            raise UsageError(f"{self.path} has no split {split!r}; it has {', '.join(self.shards)}")
        if split not in self._sources:
            files, counts = zip(*self.shards[split], strict=True)
            self._sources[split] = records.open_source(files, counts=counts)
        return self._sources[split]

    def labels(self, split: str) -> np.ndarray:
        """Returns the label of every record of a split, str [N]; reads the whole split.

        Raises:
          UsageError: The dataset has no such split.
          DataError: A shard is missing or damaged.
        """
        source = self.source(split)
        found = []
        for start in range(0, len(source), 64):
            numbers = range(start, min(start + 64, len(source)))
            found += [example.text("label") for example in read_examples(source, numbers)]
        return np.array(found)

    def order(self, split: str, seed: int, balance: float = 0.0) -> Order:
        """Returns the order of training examples (`vae.data.order`); `balance` is in [0, 1]."""
        if balance:
            return BalancedOrder(self.labels(split), seed, balance)
        return Order(len(self.source(split)), seed)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of all records' lengths and checksums: changes if and only if the data do."""
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
    """Opens a dataset that `fundus-vae build` made.

    From a bucket (gs://bucket/folder), only the bytes of the requested records are read.

    Args:
      data_dir: The data directory given to `build`, or the directory of the shards.
      cache_dir: Local directory to copy the dataset to, unless a copy exists; "" for no copy.
      report: Called with a line of text when a copy is made or waited for.

    Raises:
      DataError: The dataset is missing, incomplete, of another version, or cannot be copied.
      UsageError: The kind of `data_dir`'s address is not supported.
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
    """Returns the directory of the shards, given it or the data directory of `build`."""
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
