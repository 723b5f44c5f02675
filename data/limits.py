"""Limits on the files that are read, asked before any memory is taken for them."""

import math
import os

from vae.data.errors import DataError, UsageError
from vae.data.files import require_regular

VARIABLE = "FUNDUS_VAE_MAX_MEGAPIXELS"
_DEFAULT_MEGAPIXELS = 100.0
# RGBA of 16 bits a value, without compression.
_BYTES_PER_PIXEL = 8


def max_pixels() -> int:
    """The largest number of pixels of one picture, from the environment or 100 million.

    Raises:
      UsageError: The environment variable is no positive number.
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
    """The largest number of bytes of one file, and of what a file inflates to."""
    return _BYTES_PER_PIXEL * max_pixels()


def require_pixels(width: int, height: int, name: str) -> None:
    """Refuses a picture of too many pixels. Call it before the picture is decoded.

    Args:
      width: Pixels in a row, as the header says.
      height: Rows, as the header says.
      name: The file, for the error.

    Raises:
      DataError: The picture is larger than the limit, or has no pixels.
    """
    if width < 1 or height < 1:
        raise DataError(f"{name}: its header says {width} x {height} pixels; expected at least one")
    if width * height > max_pixels():
        raise DataError(
            f"{name}: its header says {width} x {height} pixels; expected at most"
            f" {max_pixels() / 1e6:g} megapixels; set {VARIABLE} to read larger pictures"
        )


def require_bytes(count: int, name: str) -> None:
    """Refuses a file, or what it inflates to, if it has more bytes than a picture needs.

    Raises:
      DataError: There are more bytes than `max_bytes`.
    """
    if count > max_bytes():
        raise DataError(
            f"{name}: more than {max_bytes():,} bytes, too many for a picture of"
            f" {max_pixels() / 1e6:g} megapixels; set {VARIABLE} to read larger pictures"
        )


def read_file(path: str | os.PathLike) -> bytes:
    """Reads a whole regular file of at most `max_bytes` bytes.

    Raises:
      DataError: The file is missing, unreadable, too large, or no regular file.
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
        raise DataError(f"{path}: grew while it was read; expected a finished file")
    return content
