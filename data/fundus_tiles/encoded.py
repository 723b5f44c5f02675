"""Encoded tiles: validation and removal of metadata.

8-bit RGB JPEG and PNG files keep their pixels bit for bit: only segments that may identify people,
cameras or software are removed. All other files are decoded and encoded again as PNG.
"""

import dataclasses
import struct
import zlib

from PIL import ExifTags, Image

from vae.data import jpeg, png
from vae.data.errors import DataError
from vae.data.images import decode_image, encode_image, is_srgb_gamma, require_encoded_size

_PNG_KEPT = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT"}
_PNG_RECODED = {b"iCCP", b"tRNS", b"eXIf", b"cICP", b"acTL"}  # Colour, alpha, EXIF, animation.

_COM, _APP0, _APP1, _APP2, _APP14 = 0xFE, 0xE0, 0xE1, 0xE2, 0xEE
_APPS = set(range(0xE0, 0xF0)) | {_COM}


class _Recode(Exception):
    """The file must be decoded and encoded again, because it is not plain 8-bit RGB."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tile ready to be stored: `data` is a JPEG or PNG file of 8-bit RGB without metadata."""

    data: bytes
    height: int
    width: int


def prepare(encoded: bytes) -> Encoded:
    """Validates a tile by decoding it, and removes its metadata.

    The chunks of a PNG must match their checksums. A JPEG has no checksums: it must reach its end
    marker and decode without any warning; other decoders continue and fill the rest with grey.
    These checks find all truncated JPEGs and nearly all with 512 bytes lost or overwritten, but
    only 10% to 20% of single flipped bits. A flipped bit usually leaves a valid JPEG of a slightly
    different picture, which cannot be detected without the original file.

    Args:
      encoded: The bytes of an image file.

    Raises:
      DataError: The bytes are empty, truncated, damaged or not an image.
    """
    require_encoded_size(encoded, "the tile")
    try:
        if encoded.startswith(b"\xff\xd8"):
            kept = _strip_jpeg(encoded)
        elif encoded.startswith(png.SIGNATURE):
            kept = _strip_png(encoded)
        else:
            raise _Recode
    except _Recode:
        image = decode_image(encoded, "the tile")
        return Encoded(encode_image(image, ".png"), *image.shape[:2])
    except (ValueError, struct.error, IndexError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is truncated"
        raise DataError(f"damaged: {reason}") from error
    try:
        if kept.startswith(png.SIGNATURE):
            image = png.decode(kept)
        else:
            image, kept = jpeg.decode(kept)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"damaged: {error}") from error
    return Encoded(kept, *image.shape[:2])


def _strip_jpeg(encoded: bytes) -> bytes:
    """Returns the JPEG with only the segments that decoding needs."""
    kept = []
    for segment in jpeg.segments(encoded):
        marker, body = segment.marker, segment.body
        if marker in jpeg.SOF and (encoded[body] != 8 or encoded[body + 5] != 3):
            raise _Recode  # Grey, CMYK or 12 bits.
        if marker == _APP1 and _turned(encoded[body : segment.stop]):
            raise _Recode
        if marker == _APP2 and encoded.startswith(b"ICC_PROFILE", body):
            raise _Recode
        # Adobe's segment states the colour transform, JFIF the pixel density.
        needed = (marker == _APP0 and encoded.startswith(b"JFIF", body)) or (
            marker == _APP14 and encoded.startswith(b"Adobe", body)
        )
        if marker not in _APPS or needed:
            kept.append(encoded[segment.start : segment.data_stop])
    stripped = b"".join(kept)
    return encoded if len(stripped) == len(encoded) else stripped


def _turned(app1: bytes) -> bool:
    """Returns True if an EXIF segment asks for the picture to be turned or mirrored."""
    if not app1.startswith(b"Exif\0\0"):
        return False
    exif = Image.Exif()
    try:
        exif.load(app1)
        return exif.get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # A damaged EXIF counts as none, as in viewers.
        return False


def _strip_png(encoded: bytes) -> bytes:
    """Returns the PNG with only the chunks that decoding needs."""
    kept = [png.SIGNATURE]
    kind, view = b"", memoryview(encoded)
    for kind, start, stop in png.chunks(encoded):
        (crc,) = struct.unpack_from(">I", encoded, stop - 4)
        if zlib.crc32(view[start + 4 : stop - 4]) != crc:
            raise ValueError(f"checksum of its {kind.decode('latin-1')} chunk is wrong")
        if kind == b"IHDR":
            depth, colour = struct.unpack_from("BB", encoded, start + 16)
            if (depth, colour) != (8, 2):
                raise _Recode  # Grey, palette, alpha or 16 bits.
        if kind in _PNG_RECODED:
            raise _Recode
        if kind == b"gAMA":
            (gamma,) = struct.unpack_from(">I", encoded, start + 8)
            if not is_srgb_gamma(gamma / 1e5):
                raise _Recode
        if kind in _PNG_KEPT:
            kept.append(encoded[start:stop])
    if kind != b"IEND":
        raise ValueError("it is truncated: no IEND chunk")
    stripped = b"".join(kept)
    return encoded if len(stripped) == len(encoded) else stripped
