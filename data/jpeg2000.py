"""JPEG 2000 files: recognition, and reading of the header before decoding."""

import struct
from typing import NamedTuple

_CODESTREAM = b"\xff\x4f\xff\x51"  # markers SOC and SIZ; SIZ must follow SOC
_BOX = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_SIZES = struct.Struct(">HHIIIIIIIIH")  # after SIZ: length, capabilities, sizes, components


class Header(NamedTuple):
    """Properties of a JPEG 2000 picture.

    Attributes:
      width: In pixels.
      height: In pixels.
      bits: Bits per value, the maximum over components.
      signed: True if a component has signed values.
      channels: Number of components.
    """

    width: int
    height: int
    bits: int
    signed: bool
    channels: int


def is_jpeg2000(encoded: bytes) -> bool:
    """Returns True if the bytes are a JPEG 2000 file or a bare codestream."""
    return encoded.startswith((_CODESTREAM, _BOX))


def header(encoded: bytes) -> Header | None:
    """Reads the header of the codestream; returns None if there is no codestream."""
    at = encoded.find(_CODESTREAM)
    try:
        _, _, right, bottom, left, top, *_, count = _SIZES.unpack_from(encoded, at + 4)
        depths = encoded[at + 42 : at + 42 + 3 * count : 3]
    except struct.error:
        return None
    if at < 0 or not depths:
        return None
    bits = max((depth & 0x7F) + 1 for depth in depths)
    signed = any(depth & 0x80 for depth in depths)
    return Header(right - left, bottom - top, bits, signed, count)
