"""A built dataset: its shards, their records, and checks that it is complete."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable

import numpy as np

from vae.data import manifest, records, schema, storage, thumbnails
from vae.data.errors import DataError, UsageError
from vae.data.examples import read_examples
from vae.data.fundus_tiles import NAME, VERSION
from vae.data.local_copy import local_copy
from vae.data.order import BalancedOrder, Order
from vae.data.splits import SPLITS
from vae.data.storage import AnyPath

_INFO = "dataset_info.json"
_METADATA = "metadata.json"
_REMEDY = "build the dataset again with --overwrite"
_DIGITS = schema.Kind("a number of records", lambda v: isinstance(v, str) and v.isdecimal())
_SIDE = schema.whole(1, 1 << 20)
_INFO_SCHEMA = {
    "version": schema.TEXT,
    "fileFormat": schema.one_of("tfrecord", "array_record"),
    "splits": [{"name": schema.one_of(*SPLITS), "shardLengths": [_DIGITS]}],
}
_METADATA_SCHEMA = {
    "tiles": schema.TEXT,
    "patients_known": schema.FLAG,
    "rejected": schema.whole(),
    "smallest": {"tile": schema.TEXT, "height": _SIDE, "width": _SIDE},
    "shards": {str: schema.TEXT},
    "files": {str: schema.TEXT},
}


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
        """Returns the photographs of the tiles; [] if the dataset has no list of them.

        Raises:
          DataError: The list is missing or damaged.
        """
        if manifest.PHOTOGRAPHS not in self.metadata["files"]:
            return []
        return manifest.read_photographs(self._verified(manifest.PHOTOGRAPHS))

    def thumbnails(self) -> tuple[np.ndarray, dict[str, int]]:
        """Returns the thumbnails, uint8 [N, THUMBNAIL, THUMBNAIL, 3], and each one's index by id.

        Raises:
          DataError: The dataset has no thumbnails, or they are damaged.
        """
        if thumbnails.THUMBNAILS not in self.metadata["files"]:
            raise DataError(
                f"{self.path} has no thumbnails of its photographs; cut the tiles with this "
                "version of `fundus-vae make-tiles` (it reuses finished tiles) and build the "
                "dataset again"
            )
        rows = {row.photograph: number for number, row in enumerate(self.photographs())}
        return thumbnails.open_thumbnails(self._verified(thumbnails.THUMBNAILS), len(rows)), rows

    def _verified(self, name: str) -> AnyPath:
        """Returns the path of a file next to the shards; raises DataError for another content."""
        path = self.path / name
        try:
            found = file_hash(path)
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        if found != self.metadata["files"][name]:
            raise _damaged(path, "its SHA-256 is not the one in metadata.json")
        return path

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
            hashes = [self.metadata["shards"][file.name] for file in files]
            self._sources[split] = records.open_source(files, counts=counts, hashes=hashes)
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
    info = schema.parse_json(_read(path / _INFO), path / _INFO, remedy=_REMEDY)
    if info.get("version") != VERSION:
        raise DataError(
            f"{path} was built as version {info.get('version')} and this code reads {VERSION}; "
            "build it again"
        )
    info = schema.check(
        {"fileFormat": "tfrecord"} | info, path / _INFO, _INFO_SCHEMA, remedy=_REMEDY
    )
    content = _read(path / _METADATA)
    metadata = schema.parse_sealed(content, path / _METADATA, _METADATA_SCHEMA, remedy=_REMEDY)
    suffix = info["fileFormat"]
    present = storage.names(path)
    shards = {}
    for split in info["splits"]:
        name, counts = split["name"], [int(count) for count in split["shardLengths"]]
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
    if {file.name for files in shards.values() for file, _ in files} != set(metadata["shards"]):
        raise _damaged(path / _INFO, f"its shards are not those in {_METADATA}")
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


def file_hash(path: AnyPath) -> str:
    """Returns the SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with storage.open_binary(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: AnyPath) -> bytes:
    try:
        return storage.read_bytes(path)
    except OSError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: AnyPath, reason: str) -> DataError:
    return DataError(f"{path}: damaged ({reason}); {_REMEDY}")
