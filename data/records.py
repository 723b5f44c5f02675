"""Record files as random-access sources of serialized examples.

Random access to a TFRecord file needs the lengths of its records. An *index* holds these lengths
and the payloads' checksums: a small array per shard, made in one pass that verifies every checksum.
A dataset names the hash of every shard's index, so that no index and no shard can be of another
build. ArrayRecord files have random access of their own; their index serves only the checksums.
"""

import concurrent.futures
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vae.data import schema, storage
from vae.data.errors import DataError, UsageError
from vae.data.files import replacing, require_regular
from vae.data.record_files import (
    HEADER,
    OVERHEAD,
    damaged,
    is_array_record,
    masked_crc32c,
    missing,
    open_array_records,
    read_array_record,
    scan,
)
from vae.data.storage import AnyPath, as_path, is_remote

INDEX_DIR = "index"  # Folder next to the shards: `*tfrecord*` must match shards only.
_INDEX_DTYPE = np.dtype([("length", "<u4"), ("crc", "<u4")])
_REQUESTS = 16  # Indexes fetched from a bucket at the same time.


def read_index(shard: str | os.PathLike, expected: str | None = None) -> np.ndarray:
    """Returns the index of a shard: the one next to it, else the cached one, else a new one.

    Args:
      shard: A TFRecord or ArrayRecord file, local or in a bucket. A new index goes to the cache.
      expected: `index_hash` of the index; indexes with another hash are not used.

    Returns:
      Structured array [records] of `length` (payload bytes) and `crc` (masked CRC-32C), uint32.

    Raises:
      DataError: The shard is missing, truncated, damaged, or holds other records than expected.
    """
    shard = as_path(shard)
    try:
        found = storage.entry(shard)
    except FileNotFoundError:
        raise missing(shard) from None
    cached = _cached(shard, found)
    for path in (_beside(shard), cached):
        index = _load_index(path, shard, found.size)
        if index is not None and expected in (None, index_hash(index)):
            return index
    index = _scan(shard)
    if expected not in (None, index_hash(index)):
        raise missing(shard, f"holds {len(index)} other records than the build wrote there")
    _save_index(cached, index)
    return index


def index_hash(index: np.ndarray) -> str:
    """Returns the SHA-256 of an index, which covers the lengths and checksums of all records."""
    return hashlib.sha256(np.ascontiguousarray(index).tobytes()).hexdigest()


def write_index(shard: str | os.PathLike) -> np.ndarray:
    """Reads a shard from end to end, verifies it, and writes its index next to it.

    Raises:
      DataError: The shard is truncated or damaged.
    """
    shard = Path(shard)
    index = _scan(shard)
    _save_index(_beside(shard), index)
    return index


def _scan(shard: AnyPath) -> np.ndarray:
    return np.array([(len(payload), crc) for payload, crc in scan(shard)], _INDEX_DTYPE)


def _beside(shard: AnyPath) -> AnyPath:
    return shard.parent / INDEX_DIR / f"{shard.name}.npy"


def _cached(shard: AnyPath, found: storage.Entry) -> Path:
    """Returns the cache path of a shard's index, named by the shard's path, size and tag."""
    key = f"{shard if is_remote(shard) else shard.resolve()}\n{found.size}\n{found.tag}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fundus-vae" / INDEX_DIR / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"


def _load_index(path: AnyPath, shard: AnyPath, size: int) -> np.ndarray | None:
    """Returns an index; None if it is missing or does not fit a shard of `size` bytes."""
    try:
        content = storage.read_bytes(path)
        index = schema.read_npy(content, path, _INDEX_DTYPE, [-1], remedy="remove it")
    except (OSError, DataError):
        return None
    if not is_array_record(shard):
        expected = int(index["length"].sum(dtype=np.int64)) + len(index) * OVERHEAD
        if expected != size:
            return None
    return index


def _save_index(path: Path, index: np.ndarray) -> None:
    """Writes an index. Ignores errors: an index that is not stored is made again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, index)
    except OSError:
        return


class RecordSource:
    """Base class of the sources: the concatenated shards, with records addressed by number.

    Thread-safe and picklable; each process opens a file when it first reads it.

    Attributes:
      shards: The files, in order.
      index: Structured array [records], see `read_index`.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike],
        *,
        counts: Sequence[int] | None = None,
        hashes: Sequence[str] | None = None,
        verify: bool = True,
    ):
        """Reads or makes the index of every shard.

        Args:
          shards: The files.
          counts: Expected number of records of each shard; None accepts any.
          hashes: Expected `index_hash` of each shard; None accepts any.
          verify: Compares every record with its checksum when it is read (1 us per 20 kB).

        Raises:
          DataError: A shard is missing or damaged, or its records are not the expected ones.
        """
        self.shards = [as_path(shard) for shard in shards]
        indexes = _read_indexes(self.shards, hashes or [None] * len(self.shards))
        found = [len(index) for index in indexes]
        for shard, expected, count in zip(self.shards, counts or found, found, strict=True):
            if expected != count:
                raise missing(shard, f"holds {count} records, {expected} expected")
        self.index = np.concatenate([np.empty(0, _INDEX_DTYPE), *indexes])
        self._first = np.cumsum([0, *found])  # [shards + 1]: number of each shard's first record.
        self._verify = verify

    def __len__(self) -> int:
        return len(self.index)

    def locate(self, number: int) -> tuple[AnyPath, int]:
        """Returns the shard that holds record `number`, and the record's number in that shard."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.shards[shard], number - int(self._first[shard])

    def __getitem__(self, number: int) -> bytes:
        """Returns the payload of record `number`.

        Raises:
          DataError: It does not match its checksum; names the shard, record, tile and photograph.
        """
        return self._checked(number, self._read(number))

    def read_many(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Returns an iterator of the payloads of some records; raises as `__getitem__` does."""
        return (self[number] for number in numbers)

    def _checked(self, number: int, payload: bytes) -> bytes:
        if len(payload) != self.index["length"][number]:
            raise damaged(*self.locate(number), "is cut short", payload)
        if self._verify and masked_crc32c(payload) != self.index["crc"][number]:
            raise damaged(*self.locate(number), "does not match its checksum", payload)
        return payload

    def _read(self, number: int) -> bytes:
        raise NotImplementedError


def _read_indexes(shards: Sequence[AnyPath], hashes: Sequence[str | None]) -> list[np.ndarray]:
    if not any(map(is_remote, shards)):
        return list(map(read_index, shards, hashes))
    with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(read_index, shards, hashes))


class TFRecordSource(RecordSource):
    """The records of TFRecord shards.

    It reads with `pread`, which releases the interpreter lock while the disk works. A page fault in
    a memory map would keep the lock and block every other thread.
    """

    def __init__(self, shards: Sequence[str | os.PathLike], **kwargs):
        super().__init__(shards, **kwargs)
        sizes = self.index["length"].astype(np.int64) + OVERHEAD
        starts = np.cumsum(sizes) - sizes
        shard = np.repeat(np.arange(len(self.shards)), np.diff(self._first))
        at = self._first[:-1][shard]
        self._offsets = starts - starts[at] + HEADER.size if len(starts) else starts
        self._shard = shard.astype(np.int32)
        self._open()

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close, self._files)

    def _read(self, number: int) -> bytes:
        shard = int(self._shard[number])
        file = self._files.get(shard)
        if file is None:
            file = self._open_shard(shard)
        return os.pread(file, int(self.index["length"][number]), int(self._offsets[number]))

    def _open_shard(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                require_regular(self.shards[shard], "a shard of records", missing_ok=True)
                try:
                    self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
                except OSError as error:
                    raise DataError(f"{self.shards[shard]}: {error.strerror}") from error
            return self._files[shard]

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_files")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)


class RemoteTFRecordSource(TFRecordSource):
    """The records of TFRecord shards in a bucket, each read by one request for its bytes."""

    def _read(self, number: int) -> bytes:
        (payload,) = self._fetch([number])
        return payload

    def read_many(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Returns the payloads of some records; all requests run concurrently."""
        payloads = self._fetch(numbers)
        return (self._checked(*found) for found in zip(numbers, payloads, strict=True))

    def _fetch(self, numbers: Sequence[int]) -> list[bytes]:
        numbers = np.asarray(numbers, np.int64)
        starts = self._offsets[numbers]
        ends = starts + self.index["length"][numbers]
        shards = [self.shards[shard] for shard in self._shard[numbers]]
        payloads = storage.read_ranges(shards, starts.tolist(), ends.tolist())
        for number, payload in zip(numbers, payloads, strict=True):
            if isinstance(payload, Exception):
                shard, record = self.locate(int(number))
                reason = f"{type(payload).__name__}: {payload}"
                raise DataError(f"{shard}: record {record}: {reason}") from payload
        return payloads


class ArrayRecordSource(RecordSource):
    """The records of ArrayRecord shards."""

    def __init__(self, shards: Sequence[str | os.PathLike], **kwargs):
        super().__init__(shards, **kwargs)
        self._source = open_array_records(self.shards)

    def _read(self, number: int) -> bytes:
        return read_array_record(self._source, number, *self.locate(number))


def open_source(shards: Sequence[str | os.PathLike], **kwargs) -> RecordSource:
    """Returns the `RecordSource` for TFRecord or ArrayRecord shards, chosen by their names.

    Raises:
      UsageError: The shards are ArrayRecord files in a bucket.
    """
    shards = [as_path(shard) for shard in shards]
    remote = bool(shards) and is_remote(shards[0])
    if not shards or not is_array_record(shards[0]):
        return (RemoteTFRecordSource if remote else TFRecordSource)(shards, **kwargs)
    if remote:
        raise UsageError(
            f"{shards[0]}: ArrayRecord files are read from a disk only; copy them with "
            "--config.data.cache_dir=DIR, or build with --file_format=tfrecord"
        )
    return ArrayRecordSource(shards, **kwargs)
