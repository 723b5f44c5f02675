"""PNG files: chunks and pixels."""

import struct
from collections.abc import Iterator

import imagecodecs
import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OF_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type ")
_END = b"\0\0\0\0IEND\xaeB`\x82"


def size(encoded: bytes) -> tuple[int, int] | None:
    """Returns width and height from the header; None if the file ends before them."""
    return struct.unpack_from(">II", encoded, 16) if len(encoded) >= 24 else None


def chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the type, the start and the end (exclusive) in bytes of each complete chunk."""
    at = len(SIGNATURE)
    while at + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        stop = at + 12 + length
        if stop > len(encoded):
            return
        yield kind, at, stop
        if kind == b"IEND":
            return
        at = stop


def may_be_turned(encoded: bytes) -> bool:
    """Returns True if a chunk may hold an orientation: EXIF, or XMP or EXIF in a text."""
    return any(
        kind == b"eXIf" or encoded.startswith(_TEXTS, start + 8)
        for kind, start, _ in chunks(encoded)
    )


def decode(encoded: bytes) -> np.ndarray:
    """Decodes the pixels. Palettes and depths below 8 bits become 8 bits, transparency an alpha.

    Other chunks are withheld from libpng, which would print warnings about them to stderr.

    Args:
      encoded: The bytes of a file whose size is known to be within the limits.

    Returns:
      uint8 or uint16 `[H, W]` or `[H, W, C]`: grey, grey and alpha, RGB, or RGBA.

    Raises:
      RuntimeError: The pixels are truncated or damaged.
    """
    kept = [encoded[start:stop] for kind, start, stop in chunks(encoded) if kind in _OF_PIXELS]
    return imagecodecs.png_decode(b"".join((SIGNATURE, *kept, _END)))
