"""Limits on the size of files and pictures, checked before memory is allocated."""

import math
import os

from vae.data.errors import DataError, UsageError
from vae.data.files import require_regular

VARIABLE = "FUNDUS_VAE_MAX_MEGAPIXELS"
_DEFAULT_MEGAPIXELS = 100.0
# uncompressed RGBA of 16 bits per value
_BYTES_PER_PIXEL = 8


def max_pixels() -> int:
    """Returns the largest number of pixels of a picture, from the environment or 100 million.

    Raises:
      UsageError: The environment variable is not a positive number.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return int(_DEFAULT_MEGAPIXELS * 1e6)
    try:
        megapixels = float(text)
    except ValueError:
        megapixels = math.nan
    if not 0 < megapixels < math.inf:
        raise UsageError(f"{VARIABLE}={text}: expected a number of megapixels above 0, as 100")
    return int(megapixels * 1e6)


def max_bytes() -> int:
    """Returns the largest number of bytes of a file, compressed or decompressed."""
    return _BYTES_PER_PIXEL * max_pixels()


def require_pixels(width: int, height: int, name: str) -> None:
    """Refuses a picture with too many pixels. Call it before decoding.

    Args:
      width: Width in the header, pixels.
      height: Height in the header, pixels.
      name: The file's name in the error.

    Raises:
      DataError: The picture has more pixels than `max_pixels`, or none.
    """
    if width < 1 or height < 1:
        raise DataError(f"{name}: its header says {width} x {height} pixels; expected at least one")
    if width * height > max_pixels():
        raise DataError(
            f"{name}: its header says {width} x {height} pixels; expected at most"
            f" {max_pixels() / 1e6:g} megapixels; set {VARIABLE} to read larger pictures"
        )


def require_bytes(count: int, name: str) -> None:
    """Refuses a file, or decompressed data, with more bytes than a picture needs.

    Raises:
      DataError: `count` exceeds `max_bytes`.
    """
    if count > max_bytes():
        raise DataError(
            f"{name}: more than {max_bytes():,} bytes, too many for a picture of"
            f" {max_pixels() / 1e6:g} megapixels; set {VARIABLE} to read larger pictures"
        )


def read_file(path: str | os.PathLike) -> bytes:
    """Reads a whole regular file of at most `max_bytes` bytes.

    Raises:
      DataError: The file is missing, unreadable, too large, or not a regular file.
    """
    try:
        require_regular(path, "an image", missing_ok=True)
        size = os.path.getsize(path)
        require_bytes(size, os.fspath(path))
        with open(path, "rb") as file:
            content = file.read(size + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > size:
        raise DataError(f"{path}: grew while it was read; wait until it is complete")
    return content
