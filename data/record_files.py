"""Record files: TFRecord is read and written here, ArrayRecord through its package.

A TFRecord file is a sequence of

    length uint64 | masked crc32c(length) uint32 | payload | masked crc32c(payload) uint32

in little-endian order.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import google_crc32c
from array_record.python import array_record_data_source
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from vae.data import storage
from vae.data.errors import DataError
from vae.data.storage import AnyPath

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
OVERHEAD = HEADER.size + FOOTER.size  # Bytes of a record without its payload.
_WAY_OUT = "restore the file or build the dataset again"


def masked_crc32c(payload: bytes) -> int:
    """Returns a payload's CRC-32C as TFRecords store it: rotated by 15 bits, plus a constant."""
    crc = google_crc32c.value(payload)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_tfrecords(path: str | os.PathLike, payloads: Iterable[bytes]) -> None:
    """Writes a TFRecord file with the same bytes as `tf.io.TFRecordWriter`."""
    with open(path, "wb", buffering=1 << 20) as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + FOOTER.pack(masked_crc32c(length)))
            file.write(payload)
            file.write(FOOTER.pack(masked_crc32c(payload)))


def describe(record: bytes) -> str:
    """Names the tile and the photograph of a serialized example, which may be damaged.

    Returns:
      " (tile ..., photograph ...)", or "" if neither can be read.
    """
    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
        names = {key: features[key].bytes_list.value[:1] for key in ("tile_id", "photograph")}
        parts = [f"{k.split('_')[0]} {v[0].decode()}" for k, v in names.items() if v]
    except (DecodeError, UnicodeDecodeError):
        return ""
    return f" ({', '.join(parts)})" if parts else ""


def is_array_record(shard: AnyPath) -> bool:
    """Returns True if the name is that of an ArrayRecord shard."""
    return ".array_record" in shard.name


def scan(shard: AnyPath) -> Iterator[tuple[bytes, int]]:
    """Reads a shard from end to end and verifies every length and payload.

    Yields:
      Payload and its masked CRC-32C.

    Raises:
      DataError: Names the shard, the damaged record (from 0) and, if it can be read, the tile.
    """
    return _array_records(shard) if is_array_record(shard) else _tfrecords(shard)


def _tfrecords(shard: AnyPath) -> Iterator[tuple[bytes, int]]:
    size = storage.entry(shard).size
    end = 0
    with storage.open_binary(shard) as file:
        for number in range(size):  # Enough: a record has at least one byte.
            if end == size:
                return
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                raise damaged(shard, number, "is cut short")
            length, length_crc = HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc:
                raise damaged(shard, number, "has a damaged length")
            end += length + OVERHEAD
            payload = file.read(length)
            if end > size:
                raise damaged(shard, number, "is cut short", payload)
            (crc,) = FOOTER.unpack(file.read(FOOTER.size))
            if masked_crc32c(payload) != crc:
                raise damaged(shard, number, "does not match its checksum", payload)
            yield payload, crc


def _array_records(shard: Path) -> Iterator[tuple[bytes, int]]:
    with open_array_records([shard]) as source:
        for number in range(len(source)):
            payload = read_array_record(source, number, shard, number)
            yield payload, masked_crc32c(payload)


def open_array_records(shards: list[Path]) -> array_record_data_source.ArrayRecordDataSource:
    """Opens ArrayRecord shards as one sequence of payloads.

    Raises:
      DataError: A shard cannot be read; the message names it.
    """
    for shard in shards:
        try:
            array_record_data_source.ArrayRecordDataSource(str(shard))
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(f"{shard}: not a readable ArrayRecord file; {_WAY_OUT}") from error
    return array_record_data_source.ArrayRecordDataSource([str(shard) for shard in shards])


def read_array_record(
    source: array_record_data_source.ArrayRecordDataSource, number: int, shard: Path, record: int
) -> bytes:
    """Returns payload `number` of a source; `shard` and `record` name it in errors."""
    try:
        return source[number]
    except (ValueError, RuntimeError, IndexError, OSError) as error:
        raise damaged(shard, record, "cannot be read") from error


def damaged(shard: AnyPath, record: int, what: str, payload: bytes = b"") -> DataError:
    """Returns the error for a damaged record, with its tile and photograph if they can be read."""
    return DataError(f"{shard}: record {record}{describe(payload)} {what}; {_WAY_OUT}")


def missing(shard: AnyPath, what: str = "missing") -> DataError:
    """Returns the error for a missing or incomplete shard."""
    return DataError(f"{shard}: {what}; {_WAY_OUT}")
