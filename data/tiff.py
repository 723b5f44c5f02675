"""TIFF files, read as their tags state. An unsupported or ambiguous tag is refused by name.

tifffile undoes compression, planes and packing. This module interprets the values: white, palettes,
transparency, orientation.
"""

import io
import json
import math
from collections.abc import Iterator

import numpy as np
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC, TiffPage

from vae.data import jpeg, limits, pixels
from vae.data.errors import DataError, one_line
from vae.data.pixels import Picture

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLE_FORMATS = {2: "signed integers", 3: "floating point", 5: "complex", 6: "complex"}
_UNSIGNED, _UNDEFINED = 1, 4  # Old writers say "undefined" for unsigned.
_REDUCED, _MASK = 1, 4  # Bits of NewSubfileType.
_OLD_REDUCED = 2  # A value of SubfileType.
_ASSOCIATED, _UNASSOCIATED = 1, 2  # Values of ExtraSamples.
_CMYK_INKS = 1
_ICC_PROFILE = 34675
_JPEG = COMPRESSION.JPEG
# The decoders of these stop at the size that the tags state.
_COMPRESSIONS = (
    *(COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE),
    *(COMPRESSION.PACKBITS, COMPRESSION.ZSTD, COMPRESSION.LZMA, _JPEG),
    *(COMPRESSION.CCITTRLE, COMPRESSION.CCITTFAX3, COMPRESSION.CCITTFAX4),
)
_CHANNELS = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
_MAX_SAMPLES = 16
_MAX_PAGES = 100  # One full-size page and its reduced copies.
_YCBCR_COEFFICIENTS = (0.299, 0.587, 0.114)
_YCBCR_RANGES = (0, 255, 128, 255, 128, 255)


def is_tiff(encoded: bytes) -> bool:
    """Returns True if the bytes are a TIFF or BigTIFF file."""
    return encoded[:4] in _MAGIC


def decode_tiff(encoded: bytes, name: str) -> Picture:
    """Decodes the one full-size picture of a TIFF file and ignores its reduced copies.

    Transparent pixels are composited on black. Extra samples that no tag describes are ignored for
    RGB, and refused for grey, because they may be further colours.

    Args:
      encoded: The bytes of the file.
      name: Name of the file, for errors.

    Returns:
      The upright picture, of mode L, RGB, CMYK or LAB.

    Raises:
      DataError: There is no full-size picture or several, the value of a tag is not supported,
        the picture is too large, or the file is damaged.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(encoded)) as file:
            page = _full_page(file, name)
            _require_readable(page, name)
            _require_whole(page, encoded, name)
            return _picture(page, _samples(page), name)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # The decoders raise many types.
        reason = one_line(error) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded: {reason}") from error


def _full_page(file: tifffile.TiffFile, name: str) -> TiffPage:
    found = []
    if (pages := len(file.pages)) > _MAX_PAGES:
        raise DataError(f"{name}: holds {pages} TIFF pages; expected one picture per file")
    for number in range(pages):
        page = file.pages.get(number)
        kind = int(page.tags.valueof("NewSubfileType") or 0)
        if kind & _MASK:
            raise DataError(f"{name}: TIFF tag NewSubfileType {kind}, a mask; expected a picture")
        if not kind & _REDUCED and page.tags.valueof("SubfileType") != _OLD_REDUCED:
            found.append(page)
    planes = len(found)
    if planes == 1:
        planes = _planes_behind(file, found[0])
    if planes != 1:
        raise DataError(
            f"{name}: holds {planes} full-size TIFF pages; expected one picture per file; if the"
            " pages are colour channels, save one RGB page"
        )
    return found[0]


def _planes_behind(file: tifffile.TiffFile, page: TiffPage) -> int:
    """Returns the number of planes in a page; ImageJ and tifffile store several in one."""
    if page.imagedepth > 1:
        return page.imagedepth
    if file.is_imagej:
        return int((file.imagej_metadata or {}).get("images", 1))
    if page.is_shaped:
        shape = json.loads(page.shaped_description).get("shape", page.shape)
        return max(1, math.prod(shape) // math.prod(page.shape))
    return 1


def _require_readable(page: TiffPage, name: str) -> None:
    """Refuses unsupported tags before memory is allocated for pixels."""
    limits.require_pixels(page.imagewidth, page.imagelength, name)
    if page.is_tiled:
        limits.require_pixels(page.tilewidth, page.tilelength, name)
    bits = page.tags.valueof("BitsPerSample") or 1
    depths = set(bits) if isinstance(bits, tuple) else {bits}
    if len(depths) > 1 or not 1 <= page.bitspersample <= 16:
        raise _refused(name, "BitsPerSample", bits, "1 to 16, the same for all samples")
    formats = page.tags.valueof("SampleFormat") or _UNSIGNED
    for value in set(formats) if isinstance(formats, tuple) else {formats}:
        if value not in (_UNSIGNED, _UNDEFINED):
            found = f"{value} ({_SAMPLE_FORMATS.get(value, 'unknown')})"
            raise _refused(name, "SampleFormat", found, "1 (unsigned integers)")
    if page.compression not in _COMPRESSIONS:
        expected = ", ".join(value.name for value in _COMPRESSIONS)
        raise _refused(name, "Compression", _named(page.compression), expected)
    photometric = page.photometric
    if photometric not in _CHANNELS:
        expected = ", ".join(value.name for value in _CHANNELS)
        raise _refused(name, "PhotometricInterpretation", _named(photometric), expected)
    channels = _CHANNELS[photometric]
    samples, colour = page.samplesperpixel, PHOTOMETRIC(photometric).name
    if not channels <= samples <= _MAX_SAMPLES:
        raise _refused(name, "SamplesPerPixel", samples, f"{channels} for {colour}")
    extra = _extra_samples(page)
    if channels == 1 and any(kind not in (_ASSOCIATED, _UNASSOCIATED) for kind in extra):
        expected = f"1 for {colour}, or RGB if these are colours"
        raise _refused(name, "SamplesPerPixel", samples, expected)
    if photometric == PHOTOMETRIC.SEPARATED:
        inks = page.tags.valueof("InkSet") or _CMYK_INKS
        if inks != _CMYK_INKS:
            raise _refused(name, "InkSet", inks, "1 (CMYK)")
    if photometric == PHOTOMETRIC.CIELAB and page.bitspersample != 8:
        raise _refused(name, "BitsPerSample", page.bitspersample, "8 for CIELAB")
    if photometric == PHOTOMETRIC.YCBCR and page.compression != _JPEG:
        _require_plain_ycbcr(page, name)


def _require_plain_ycbcr(page: TiffPage, name: str) -> None:
    if page.bitspersample != 8:
        raise _refused(name, "BitsPerSample", page.bitspersample, "8 for YCBCR")
    if page.is_subsampled:
        found = page.tags.valueof("YCbCrSubSampling") or "missing, which means (2, 2)"
        raise _refused(name, "YCbCrSubSampling", found, "(1, 1), or JPEG compression")
    for tag, expected in (
        ("YCbCrCoefficients", _YCBCR_COEFFICIENTS),
        ("ReferenceBlackWhite", _YCBCR_RANGES),
    ):
        if found := page.tags.valueof(tag):
            values = [top / bottom for top, bottom in zip(found[::2], found[1::2], strict=True)]
            if not np.allclose(values, expected, atol=1e-3):
                raise _refused(name, tag, values, expected)


def _extra_samples(page: TiffPage) -> tuple[int, ...]:
    """Returns the ExtraSamples kind of each sample after the colours; 0 if no tag states it."""
    count = page.samplesperpixel - _CHANNELS[page.photometric]
    kinds = tuple(int(kind) for kind in page.extrasamples)
    return (kinds + (0,) * count)[:count]


def _require_whole(page: TiffPage, encoded: bytes, name: str) -> None:
    """Refuses missing strips, and JPEG strips that are too large or damaged.

    tifffile fills missing strips with zeros, and its JPEG decoder fills damage with grey.
    """
    for start, data in _stored(page, encoded):
        if not data:
            raise ValueError(f"a strip or tile at byte {start} is missing")
        if page.compression == _JPEG:
            tables = page.jpegtables
            strip = tables[:-2] + data[2:] if tables else data
            limits.require_pixels(*(jpeg.header(strip) or (0, 0))[:2], name)
            if page.bitspersample == 8:
                jpeg.whole(strip)


def _stored(page: TiffPage, encoded: bytes) -> Iterator[tuple[int, bytes]]:
    expected = math.prod(page.chunked)
    places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(places) < expected:
        raise ValueError(f"{expected} strips or tiles expected, {len(places)} found")
    for start, count in places[:expected]:
        whole = start > 0 and start + count <= len(encoded)
        if page.compression != _JPEG:
            count = min(count, 1)  # One byte shows that the data exists.
        yield start, encoded[start : start + count] if whole else b""


def _samples(page: TiffPage) -> np.ndarray:
    """Returns all samples as stored: uint8 or uint16 `[H, W, samples]`."""
    values = page.asarray(squeeze=False, maxworkers=1)  # [samples | 1, 1, H, W, 1 | samples].
    values = np.moveaxis(values[:, 0, ..., 0], 0, 2) if values.shape[0] > 1 else values[0, 0]
    return values.astype(np.uint8) if values.dtype == bool else values


def _picture(page: TiffPage, samples: np.ndarray, name: str) -> Picture:
    photometric = page.photometric
    channels, top = _CHANNELS[photometric], (1 << page.bitspersample) - 1
    colours = samples[..., 0] if channels == 1 else samples[..., :channels]
    if photometric == PHOTOMETRIC.PALETTE:
        colours = _colour_map(page)[np.minimum(colours, top)]
    else:
        colours = pixels.scaled(colours, top)
    if photometric == PHOTOMETRIC.MINISWHITE:
        colours = 255 - colours
    colours = np.ascontiguousarray(colours)
    if photometric == PHOTOMETRIC.YCBCR and page.compression != _JPEG:
        colours = np.array(Picture(colours, "YCbCr").image().convert("RGB"))

    for number, kind in enumerate(_extra_samples(page), start=channels):
        if kind not in (_ASSOCIATED, _UNASSOCIATED):
            continue
        if photometric in (PHOTOMETRIC.CIELAB, PHOTOMETRIC.SEPARATED):
            raise _refused(name, "ExtraSamples", kind, f"none for {PHOTOMETRIC(photometric).name}")
        alpha = pixels.scaled(samples[..., number], top)
        if kind == _UNASSOCIATED:
            colours = pixels.over_black(colours, alpha, name)
        else:  # The stored colours are already composited on black.
            pixels.require_visible(alpha, name)
        break
    colours = pixels.upright(colours, page.tags.valueof("Orientation"))
    modes = {PHOTOMETRIC.SEPARATED: "CMYK", PHOTOMETRIC.CIELAB: "LAB"}
    mode = modes.get(photometric, "L" if colours.ndim == 2 else "RGB")
    profile = page.tags.valueof(_ICC_PROFILE)
    return Picture(colours, mode, bytes(profile) if profile else None)


def _colour_map(page: TiffPage) -> np.ndarray:
    """Returns the palette: uint8 `[2 ** bits, 3]`."""
    colours = np.asarray(page.tags.valueof("ColorMap", ()))
    if colours.size != 3 << page.bitspersample:
        raise ValueError(
            f"TIFF tag ColorMap of {colours.size} values, expected {3 << page.bitspersample}"
        )
    colours = colours.reshape(3, -1).T
    # Writers scale 8-bit values by 256 or 257; some do not scale them.
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _named(value: int) -> str:
    return f"{int(value)} ({value.name})" if hasattr(value, "name") else str(value)


def _refused(name: str, tag: str, found: object, expected: object) -> DataError:
    return DataError(
        f"{name}: TIFF tag {tag} is {found}; expected {expected}; convert the file to RGB of 8 or"
        " 16 bits"
    )
