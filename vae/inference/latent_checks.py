"""Checks of latents on disk: refuses arrays that are far larger in memory than in their files.

Stores hold plain values with checksums and without compression, so an array is as large as its
files. Anything else was not written here: a compressed chunk of a few megabytes can expand to
gigabytes.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, VLenUTF8Codec

from vae.data.errors import DataError
from vae.data.files import require_regular

_CODECS = (BytesCodec, Crc32cCodec, VLenUTF8Codec)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LENGTH = 4  # Bytes of a text's length, and of the number of texts in a chunk.


def check_files(path: Path) -> None:
    """Refuses a store that holds a file that is not a regular file, for example a named pipe.

    Raises:
      DataError: There is such a file; the message names it.
    """
    expected = "a part of what `fundus-vae encode` wrote"
    if not path.is_dir():
        require_regular(path, "what `fundus-vae encode` wrote")
        return
    for folder, _, names in os.walk(path):
        for name in names:
            require_regular(os.path.join(folder, name), expected)


def check_array(path: Path, name: str, array: zarr.Array) -> None:
    """Refuses an array of a zarr store that is compressed, cut, or larger than its files.

    Args:
      path: Path of the store.
      name: Name of the array in it, for example "256x256/mean".
      array: The opened array; its values are not read.

    Raises:
      DataError: The array is refused; the message names it.
    """
    for codec in array.metadata.codecs:
        if not isinstance(codec, _CODECS):
            raise DataError(
                f"{path}: {name} is coded by {type(codec).__name__}; expected bytes with checksums,"
                " as `fundus-vae encode` writes them; encode again"
            )
    files = [
        os.path.join(folder, file)
        for folder, _, names in os.walk(path / name / "c")
        for file in names
    ]
    # zarr reads a missing chunk as zeros.
    if (lost := array.nchunks - len(files)) > 0:
        raise DataError(f"{path}: {lost} chunks of {name} are missing; encode again")
    sizes = [os.path.getsize(file) for file in files]
    texts = array.metadata.dtype.to_native_dtype().kind not in "iuf"
    value = _LENGTH if texts else array.dtype.itemsize
    # All chunks are whole, also the last one.
    chunk = 0 if texts or not array.size else value * math.prod(array.chunks)
    needs, has = max(value * array.size, chunk), sum(sizes)
    if needs > has:
        raise DataError(
            f"{path}: {name} of shape {list(array.shape)} takes {needs:,} bytes, and its files hold"
            f" {has:,}; encode again"
        )
    if texts:
        for file, size in zip(files, sizes, strict=True):
            with open(file, "rb") as opened:
                count = int.from_bytes(opened.read(_LENGTH), "little")
            if _LENGTH * (count + 1) > size:
                raise DataError(
                    f"{path}: a chunk of {name} says that it holds {count:,} texts in {size:,}"
                    " bytes; encode again"
                )


def check_npz(path: Path) -> None:
    """Refuses an .npz file with an array that is compressed or larger than its part of the file.

    Raises:
      DataError: An array is refused; the message names it.
      zipfile.BadZipFile, ValueError, OSError: The file is not an .npz file, or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path}: {member.filename} is compressed; expected arrays as they are, as "
                    "`fundus-vae encode` writes them; encode again"
                )
            with archive.open(member) as file:
                shape, dtype = _header(file, member.filename)
            needs = math.prod(shape) * dtype.itemsize
            if needs > member.file_size:
                raise DataError(
                    f"{path}: {member.filename} of shape {list(shape)} takes {needs:,} bytes, and "
                    f"its part of the file has {member.file_size:,}; encode again"
                )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise DataError(f"{path}: its parts are larger than the file; encode again")


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the shape and dtype in the header of an array in an .npz file.

    Raises:
      ValueError: The header is damaged.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name} is of version {version}")
    try:
        shape, _, dtype = _HEADERS[version](file)
    except Exception as error:  # NumPy reads headers as Python, which can raise many errors.
        raise ValueError(f"{name} has no valid array header: {error}") from error
    return shape, dtype
