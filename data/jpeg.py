"""JPEG files: segments, header, and strict decoding that refuses damaged files."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg

SOI, EOI, SOS, TEM = 0xD8, 0xD9, 0xDA, 0x01
# Frame headers, also of JPEG-LS. C4, C8 and CC are tables, extensions, arithmetic conditioning.
SOF = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_RESTARTS = set(range(0xD0, 0xD8))
# A marker is 0xFF, possibly repeated, and a code. 0xFF 0x00 is a stuffed data byte.
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
# Restart markers are part of the entropy-coded data.
_END_OF_DATA = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_CHANNELS = {"GRAY": 1, "CMYK": 4, "YCCK": 4}
_STRAY = "extraneous bytes before marker"  # A warning of libjpeg.


class Segment(NamedTuple):
    """One segment of a JPEG file and the entropy-coded data that follows it; byte offsets.

    Attributes:
      marker: The code after 0xFF.
      start: Offset of the marker's 0xFF.
      body: First byte after the marker and the length.
      stop: First byte after the segment.
      data_stop: First byte after the entropy-coded data; `stop` if there is none.
    """

    marker: int
    start: int
    body: int
    stop: int
    data_stop: int


class Header(NamedTuple):
    """Width and height in pixels, and the number of channels."""

    width: int
    height: int
    channels: int


def segments(encoded: bytes) -> Iterator[Segment]:
    """Yields the segments up to the end-of-image marker; skips stray bytes between them.

    Raises:
      ValueError: The file ends within a segment, or before its end-of-image marker.
    """
    at = 0
    while found := _MARKER.search(encoded, at):
        marker, start, body = found[1][0], found.end() - 2, found.end()
        stop = data_stop = body
        if marker not in _RESTARTS | {SOI, EOI, TEM}:
            if body + 2 > len(encoded):
                break
            stop = data_stop = body + struct.unpack_from(">H", encoded, body)[0]
            body += 2
            if not body <= stop <= len(encoded):
                break
        if marker == SOS:
            if not (end := _END_OF_DATA.search(encoded, stop)):
                break
            data_stop = end.start()
        yield Segment(marker, start, body, stop, data_stop)
        if marker == EOI:
            return
        at = data_stop
    raise ValueError("it is truncated: no end-of-image marker")


def header(encoded: bytes) -> Header | None:
    """Reads the frame header; returns None if there is none.

    If libjpeg can decode the file, the size is the one for which libjpeg allocates memory.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
        return Header(width, height, _CHANNELS.get(space.upper(), 3))
    except (ValueError, KeyError):
        pass  # Lossless JPEG, JPEG-LS, unusual subsampling, or no JPEG.
    try:
        for segment in segments(encoded):
            if segment.marker in SOF:
                height, width, channels = struct.unpack_from(">HHB", encoded, segment.body + 1)
                return Header(width, height, channels)
    except (ValueError, struct.error):
        pass
    return None


def whole(encoded: bytes) -> bytes:
    """Returns a JPEG file with the same pixels that decodes without a warning.

    libjpeg only warns of damaged data and fills the rest of the picture with grey. This function
    removes stray bytes between segments and zeros after the entropy-coded data; the result must
    decode without a warning. Other bytes after the entropy-coded data are refused, because a
    decoder that loses its place in damaged data leaves such bytes, too.

    Args:
      encoded: The bytes of a file whose size is within the limits.

    Returns:
      The mended bytes; `encoded` itself if nothing was removed.

    Raises:
      ValueError: The file is truncated or damaged.
    """
    try:
        simplejpeg.decode_jpeg(encoded, strict=True)
        return encoded
    except ValueError as error:
        if _STRAY not in str(error):
            raise
        complaint = error
    for strip_zeros in (False, True):
        mended = _without_stray_bytes(encoded, strip_zeros)
        try:
            simplejpeg.decode_jpeg(mended, strict=True)
            return mended
        except ValueError:
            continue
    raise complaint


def decode(encoded: bytes, grey: bool = False) -> tuple[np.ndarray, bytes]:
    """Decodes a grey or colour JPEG file as strictly as `whole`.

    Args:
      encoded: The bytes of a file whose size is within the limits.
      grey: Decodes to one channel.

    Returns:
      uint8 `[H, W, 3]` RGB, or `[H, W]` if `grey`, and the bytes that were decoded.

    Raises:
      ValueError: The file is truncated or damaged.
    """
    space = "GRAY" if grey else "RGB"
    try:
        values = simplejpeg.decode_jpeg(encoded, colorspace=space, strict=True)
    except ValueError:
        encoded = whole(encoded)
        values = simplejpeg.decode_jpeg(encoded, colorspace=space, strict=True)
    return (values[..., 0] if grey else values), encoded


def _without_stray_bytes(encoded: bytes, strip_zeros: bool) -> bytes:
    kept = []
    for segment in segments(encoded):
        kept.append(encoded[segment.start : segment.stop])
        data = encoded[segment.stop : segment.data_stop]
        if strip_zeros:
            stripped = data.rstrip(b"\0")
            # Keep the zero of the stuffed byte 0xFF 0x00.
            data = data[: len(stripped) + 1] if stripped.endswith(b"\xff") else stripped
        kept.append(data)
    return b"".join(kept)
