"""Record files as random-access sources of serialized examples.

A TFRecord file is a sequence of

    length uint64 | masked crc32c(length) uint32 | payload | masked crc32c(payload) uint32

so the lengths of its records are all it takes to read any of them. They are kept, with the
checksums of the payloads, in an *index*: one small array per shard, made in a single pass that
verifies every checksum. An index that does not add up to the size of its shard is stale.
ArrayRecord files find their records themselves; theirs is needed only for the checksums.
"""

import hashlib
import os
import struct
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from data.errors import DataError

INDEX_DIR = "index"  # Beside the shards, and apart from them, so that `*tfrecord*` matches shards.
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _FOOTER.size
_INDEX_DTYPE = np.dtype([("length", "<u4"), ("crc", "<u4")])


def masked_crc32c(payload: bytes) -> int:
    """The CRC-32C of `payload` as TFRecords store it (rotated by 15 bits, plus a constant)."""
    crc = google_crc32c.value(payload)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_tfrecords(path: str | os.PathLike, payloads: Iterable[bytes]) -> None:
    """Writes a TFRecord file, byte for byte what `tf.io.TFRecordWriter` writes."""
    with open(path, "wb", buffering=1 << 20) as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + _FOOTER.pack(masked_crc32c(length)))
            file.write(payload)
            file.write(_FOOTER.pack(masked_crc32c(payload)))


def describe(record: bytes) -> str:
    """Names the tile and the photograph of a serialized example, damaged ones included.

    Returns:
      " (tile ..., photograph ...)", or "" where the record does not tell.
    """
    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
        names = {key: features[key].bytes_list.value[:1] for key in ("tile_id", "photograph")}
        parts = [f"{k.split('_')[0]} {v[0].decode()}" for k, v in names.items() if v]
    except (DecodeError, UnicodeDecodeError):
        return ""
    return f" ({', '.join(parts)})" if parts else ""


# --- Indexes -------------------------------------------------------------------------------------


def read_index(shard: str | os.PathLike) -> np.ndarray:
    """The index of a shard: from beside it, from the user's cache, or made now.

    Args:
      shard: A TFRecord or ArrayRecord file.

    Returns:
      Structured array [records] of `length` (bytes of the payload) and `crc` (masked crc32c).

    Raises:
      DataError: The shard is missing, truncated or damaged.
    """
    shard = Path(shard)
    if not shard.is_file():
        raise DataError(f"{shard}: missing; restore the file or build the dataset again")
    for path in (_beside(shard), _cached(shard)):
        index = _load_index(path, shard)
        if index is not None:
            return index
    index = scan(shard)
    _save_index(_cached(shard), index)
    return index


def write_index(shard: str | os.PathLike) -> np.ndarray:
    """Reads a shard from end to end, verifies it and writes its index beside it.

    Raises:
      DataError: The shard is truncated or damaged.
    """
    shard = Path(shard)
    index = scan(shard)
    _save_index(_beside(shard), index)
    return index


def scan(shard: Path) -> np.ndarray:
    """Makes the index of a shard in one pass that verifies every length and payload.

    Raises:
      DataError: Naming the shard, the record (counted from 0) and, where it can be read, the tile.
    """
    rows: list[tuple[int, int]] = []
    payloads = _array_record_payloads(shard) if _is_array_record(shard) else _tfrecords(shard)
    for payload, crc in payloads:
        rows.append((len(payload), crc))
    return np.array(rows, _INDEX_DTYPE)


def _tfrecords(shard: Path) -> Iterator[tuple[bytes, int]]:
    size = shard.stat().st_size
    end = 0
    with open(shard, "rb", buffering=1 << 20) as file:
        for number in range(size):  # Ends by `end == size`; a record has at least one byte.
            if end == size:
                return
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise _damaged(shard, number, "is cut short")
            length, length_crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc:
                raise _damaged(shard, number, "has a damaged length")
            end += length + _OVERHEAD
            payload = file.read(length)
            if end > size:
                raise _damaged(shard, number, "is cut short", payload)
            (crc,) = _FOOTER.unpack(file.read(_FOOTER.size))
            if masked_crc32c(payload) != crc:
                raise _damaged(shard, number, "does not match its checksum", payload)
            yield payload, crc


def _array_record_payloads(shard: Path) -> Iterator[tuple[bytes, int]]:
    with _open_array_record(shard) as source:
        for number in range(len(source)):
            payload = _read_array_record(source, number, shard, number)
            yield payload, masked_crc32c(payload)


def _damaged(shard: Path, record: int, what: str, payload: bytes = b"") -> DataError:
    return DataError(
        f"{shard}: record {record}{describe(payload)} {what}; "
        "restore the file or build the dataset again"
    )


def _is_array_record(shard: Path) -> bool:
    return ".array_record" in shard.name


def _beside(shard: Path) -> Path:
    return shard.parent / INDEX_DIR / f"{shard.name}.npy"


def _cached(shard: Path) -> Path:
    """Where the index of a shard in a read-only directory goes; named by what it stands for."""
    stat = shard.stat()
    key = f"{shard.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fundus-vae" / INDEX_DIR / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"


def _load_index(path: Path, shard: Path) -> np.ndarray | None:
    """An index, or None if there is none, or none that fits the shard as it is now."""
    try:
        index = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    if index.dtype != _INDEX_DTYPE or index.ndim != 1:
        return None
    if not _is_array_record(shard):
        size = int(index["length"].sum(dtype=np.int64)) + len(index) * _OVERHEAD
        if size != shard.stat().st_size:
            return None
    return index


def _save_index(path: Path, index: np.ndarray) -> None:
    """Writes beside and renames. An index that cannot be kept is made again the next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.save(file, index)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        return


# --- Sources -------------------------------------------------------------------------------------


class RecordSource:
    """Base of the sources: shards one after another, a record by its number among them all.

    Thread-safe and picklable; files are opened where and when they are first read.

    Attributes:
      shards: The files, in order.
      index: Structured array [records], see `read_index`.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike],
        *,
        counts: Sequence[int] | None = None,
        verify: bool = True,
    ):
        """Reads, or makes, the index of every shard.

        Args:
          shards: The files.
          counts: The number of records each must hold; None accepts what is there.
          verify: Whether to compare every record read with its checksum (1 us per 20 kB).

        Raises:
          DataError: A shard is missing, damaged, or holds another number of records.
        """
        self.shards = [Path(shard) for shard in shards]
        indexes = [read_index(shard) for shard in self.shards]
        found = [len(index) for index in indexes]
        for shard, expected, count in zip(self.shards, counts or found, found, strict=True):
            if expected != count:
                raise DataError(
                    f"{shard}: holds {count} records, {expected} expected; "
                    "restore the file or build the dataset again"
                )
        self.index = np.concatenate([np.empty(0, _INDEX_DTYPE), *indexes])
        self._first = np.cumsum([0, *found])  # [shards + 1] number of each shard's first record.
        self._verify = verify

    def __len__(self) -> int:
        return len(self.index)

    def locate(self, number: int) -> tuple[Path, int]:
        """The shard that holds record `number`, and the record's number within it."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.shards[shard], number - int(self._first[shard])

    def __getitem__(self, number: int) -> bytes:
        """The payload of record `number`.

        Raises:
          DataError: It does not match its checksum, naming shard, record, tile and photograph.
        """
        payload = self._read(number)
        if len(payload) != self.index["length"][number]:
            raise _damaged(*self.locate(number), "is cut short", payload)
        if self._verify and masked_crc32c(payload) != self.index["crc"][number]:
            raise _damaged(*self.locate(number), "does not match its checksum", payload)
        return payload

    def _read(self, number: int) -> bytes:
        raise NotImplementedError


class TFRecordSource(RecordSource):
    """The records of TFRecord shards.

    Read with `pread`, which lets go of the interpreter lock while the disk works; touching a page
    of a memory map that is not in memory would hold up every other thread.
    """

    def __init__(self, shards: Sequence[str | os.PathLike], **kwargs):
        super().__init__(shards, **kwargs)
        sizes = self.index["length"].astype(np.int64) + _OVERHEAD
        starts = np.cumsum(sizes) - sizes
        shard = np.repeat(np.arange(len(self.shards)), np.diff(self._first))
        at = self._first[:-1][shard]
        self._offsets = starts - starts[at] + _HEADER.size if len(starts) else starts
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


class ArrayRecordSource(RecordSource):
    """The records of ArrayRecord shards."""

    def __init__(self, shards: Sequence[str | os.PathLike], **kwargs):
        super().__init__(shards, **kwargs)
        self._source = _open_array_record(*self.shards)

    def _read(self, number: int) -> bytes:
        return _read_array_record(self._source, number, *self.locate(number))


def _open_array_record(*shards: Path):
    from array_record.python import array_record_data_source

    for shard in shards:
        try:
            array_record_data_source.ArrayRecordDataSource(str(shard))
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(
                f"{shard}: not a readable ArrayRecord file; "
                "restore the file or build the dataset again"
            ) from error
    return array_record_data_source.ArrayRecordDataSource([str(shard) for shard in shards])


def _read_array_record(source, number: int, shard: Path, record: int) -> bytes:
    try:
        return source[number]
    except (ValueError, RuntimeError, IndexError, OSError) as error:
        raise _damaged(shard, record, "cannot be read") from error


def open_source(shards: Sequence[str | os.PathLike], **kwargs) -> RecordSource:
    """The source for TFRecord or ArrayRecord shards, told by their names; see `RecordSource`."""
    shards = [Path(shard) for shard in shards]
    kind = ArrayRecordSource if shards and _is_array_record(shards[0]) else TFRecordSource
    return kind(shards, **kwargs)
