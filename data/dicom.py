"""Decoding of DICOM files.

Only the elements that describe pixels and colours are parsed. Names, dates and numbers of patients
are never parsed, so they cannot reach an output, a log or an error.
"""

import io
import re
import struct
import zlib
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np

from vae.data import jpeg, jpeg2000, limits, pixels
from vae.data.errors import DataError
from vae.data.pixels import Picture

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SUFFIXES = (".dcm", ".dicom")
# Elements are given by group and number: looking up keywords would import pydicom.
_PIXELS = 0x0028  # The group that describes the picture.
_ELEMENTS = (
    *((_PIXELS, number) for number in (0x0002, 0x0004, 0x0006, 0x0008, 0x0010, 0x0011, 0x0100)),
    *((_PIXELS, number) for number in (0x0101, 0x0102, 0x0103, 0x2000)),
    *((_PIXELS, number) for number in (0x1101, 0x1102, 0x1103, 0x1201, 0x1202, 0x1203)),
    *((_PIXELS, number) for number in (0x1050, 0x1051, 0x1056)),  # the window
    *((_PIXELS, number) for number in (0x1052, 0x1053)),  # intercept and slope
    *((_PIXELS, number) for number in (0x3000, 0x3002, 0x3006, 0x3010)),  # lookup tables
    (0x2050, 0x0010),
    (0x2050, 0x0020),  # the shape of the presentation table
    (0x0008, 0x0016),  # the kind of object
    (0x7FE0, 0x0001),
    (0x7FE0, 0x0002),
    (0x7FE0, 0x0010),  # the pixels
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", *_GREY, "PALETTE COLOR")
_META, _IDENTIFYING = 0x0002, 0x0008  # A file begins with one of these groups.
_VR = re.compile(rb"[A-Z]{2}")
_LONGEST_FIRST_VALUE = 1024
# JPEG baseline and extended: decoded by libjpeg, which warns of damaged data.
_LIBJPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")


def is_dicom(encoded: bytes) -> bool:
    """Recognises a DICOM file by the mark "DICM" or, without a preamble, by its first elements.

    Args:
      encoded: The file, or at least its first 132 bytes.
    """
    return encoded[128:132] == b"DICM" or _begins_with_element(encoded)


def _begins_with_element(encoded: bytes) -> bool:
    """Looks for a little-endian element followed by one of the same or a later group."""
    if len(encoded) < 16:
        return False
    group, number, kind, short = struct.unpack_from("<HH2sH", encoded)
    (length,) = struct.unpack_from("<I", encoded, 4)
    if group not in (_META, _IDENTIFYING):
        return False
    if _VR.fullmatch(kind):
        if kind in (b"OB", b"UN"):
            (length,), end = struct.unpack_from("<I", encoded, 8), 12
        else:
            length, end = short, 8
    else:
        end = 8
    end += length
    if length > _LONGEST_FIRST_VALUE or end + 4 > len(encoded):
        return False
    following = struct.unpack_from("<HH", encoded, end)
    return (group, number) < following and following[0] in (_META, _IDENTIFYING, 0x0010)


def decode_dicom(encoded: bytes, name: str) -> Picture:
    """Decodes a DICOM file of one picture to the values that a viewer shows.

    Grey values pass through the modality table or rescaling, the first VOI table or else the first
    window, and the presentation shape. Palettes are applied.

    Args:
      encoded: The bytes of the file.
      name: The file's name in an error.

    Returns:
      The picture: mode L or RGB, 8 bits.

    Raises:
      DataError: pydicom is not installed; or the file has no picture or several; or the picture is
        too large or cannot be decoded.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise DataError(
            f"{name}: a DICOM file, which pydicom reads: pip install 'fundus-vae[dicom]'"
        ) from None
    try:
        dataset = _read(encoded, name)
        stored = _require_readable(dataset, name)
        values = _stored_values(dataset, name)
        colours = dataset.PhotometricInterpretation
        # The mapping is pointwise, so it is computed once as a table of all stored values.
        if colours == "PALETTE COLOR":
            values = _palette(dataset, stored)[np.minimum(values, (1 << stored) - 1)]
        elif colours in _GREY:
            values = _grey_levels(dataset, stored, name)[np.minimum(values, (1 << stored) - 1)]
        else:
            values = pixels.scaled(values, (1 << stored) - 1)
    except (DataError, MemoryError):
        raise
    except RuntimeError:  # pydicom found no decoder, or all failed
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise DataError(
            f"{name}: cannot be decoded: {syntax}; pip install 'pylibjpeg[all]' may help, or "
            "convert the file"
        ) from None
    except Exception as error:  # pydicom and its decoders raise many types
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name}: cannot be decoded: {reason or type(error).__name__}") from None
    mode = "L" if values.ndim == 2 else "RGB"
    return Picture(np.ascontiguousarray(values), mode, dataset.get("ICCProfile"))


def _read(encoded: bytes, name: str) -> "Dataset":
    """Parses the elements that describe pixels; sets the transfer syntax if the file lacks it."""
    import pydicom
    from pydicom import uid
    from pydicom.filereader import read_dataset

    stream = io.BytesIO(encoded)
    stream.seek(132 if encoded[128:132] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != _META)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        # pydicom would inflate it without a limit.
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            stream.read(), limits.max_bytes() + 1
        )
        limits.require_bytes(len(inflated), name)
        dataset = read_dataset(io.BytesIO(inflated), False, True, specific_tags=_tags())
        dataset.file_meta = pydicom.dataset.FileMetaDataset(meta)
        return dataset
    stream.seek(0)
    dataset = pydicom.dcmread(stream, specific_tags=_tags(), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _tags() -> list:
    from pydicom.tag import Tag

    return [Tag(element) for element in _ELEMENTS]


def _require_readable(dataset: "Dataset", name: str) -> int:
    """Raises DataError, before pixels are decoded, unless the file has one picture of a known kind.

    Returns:
      The number of bits of a stored value, 1 to 16.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"{name}: holds {frames} frames; expected one picture a file")
    if "Rows" not in dataset or "PixelData" not in dataset:
        raise DataError(f"{name}: a DICOM file without a picture")
    limits.require_pixels(int(dataset.Columns), int(dataset.Rows), name)
    colours = str(dataset.PhotometricInterpretation)
    if colours not in _COLOURS:
        raise DataError(f"{name}: colours {colours!r}, expected one of {', '.join(_COLOURS)}")
    samples = 1 if colours in (*_GREY, "PALETTE COLOR") else 3
    if dataset.SamplesPerPixel != samples:
        raise DataError(
            f"{name}: (0028,0002) Samples per Pixel is {dataset.SamplesPerPixel}; expected"
            f" {samples} for {colours}"
        )
    stored = int(dataset.BitsStored)
    signed = bool(dataset.get("PixelRepresentation", 0))
    if not 1 <= stored <= 16 or signed:
        kind = "signed" if signed else "unsigned"
        raise DataError(f"{name}: {stored} bits a value, {kind}; expected up to 16, unsigned")
    high = dataset.get("HighBit", stored - 1)
    if high != stored - 1:
        raise DataError(f"{name}: (0028,0102) High Bit is {high}; expected {stored - 1}")
    dataset.PixelRepresentation = 0
    return stored


def _stored_values(dataset: "Dataset", name: str) -> np.ndarray:
    """Returns the stored values: `[H, W]` or RGB `[H, W, 3]`, uint8 or uint16."""
    from pydicom import uid
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        if syntax == uid.RLELossless:  # pydicom would unpack it without a limit.
            kind = f"u{dataset.BitsAllocated // 8}"
            count = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
            size = count * (dataset.BitsAllocated // 8)
            frame = imagecodecs.dicomrle_decode(frame, f"<{kind}", out=size)
            if len(frame) != size:
                raise ValueError(f"{len(frame)} bytes of pixels, expected {size}")
            dataset.PixelData = bytes(frame) + b"\0" * (size % 2)
            dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
            dataset.PlanarConfiguration = 1
        else:
            codec = jpeg2000 if jpeg2000.is_jpeg2000(frame) else jpeg
            found = tuple(codec.header(frame) or ())[:2]
            if found != (dataset.Columns, dataset.Rows):
                raise DataError(
                    f"{name}: its compressed picture is {' x '.join(map(str, found)) or 'of no'}"
                    f" known size, expected {dataset.Columns} x {dataset.Rows} as in its header"
                )
            if syntax in _LIBJPEG and dataset.BitsStored == 8:
                jpeg.whole(frame)
    return pixel_array(dataset)  # YBR becomes RGB


def _grey_levels(dataset: "Dataset", stored: int, name: str) -> np.ndarray:
    """Returns the displayed grey level of each stored value: uint8 `[2 ** stored]`."""
    from pydicom.pixels import apply_rescale, apply_windowing

    values = np.arange(1 << stored)
    low, high = 0, values[-1]
    if dataset.get("ModalityLUTSequence"):
        values, high = _look_up(values, *_table_of(dataset, dataset.ModalityLUTSequence[0]))
    elif "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        values = apply_rescale(values, dataset)
        low, high = values[0], values[-1]
    if dataset.get("VOILUTSequence"):
        table = _table_of(dataset, dataset.VOILUTSequence[0])
        low, (values, high) = 0, _look_up(np.rint(values).astype(np.int64), *table)
    elif dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        values = apply_windowing(values, dataset)  # Its output has the range low to high.
    else:
        low, high = min(low, high), max(low, high)
    if low == high:
        raise DataError(f"{name}: (0028,1053) Rescale Slope is 0; expected another number")
    levels = np.floor((values - low) * (255 / (high - low)) + 0.5)
    levels = np.clip(levels, 0, 255).astype(np.uint8)
    return 255 - levels if _inverted(dataset, name) else levels


def _inverted(dataset: "Dataset", name: str) -> bool:
    """Returns True if large values are dark."""
    colours = dataset.PhotometricInterpretation
    if dataset.get("PresentationLUTSequence"):
        raise DataError(
            f"{name}: (2050,0010) Presentation LUT Sequence is not read; expected (2050,0020)"
            " Presentation LUT Shape or neither"
        )
    shape = dataset.get("PresentationLUTShape") or ""
    if shape not in ("", "IDENTITY", "INVERSE") or (shape, colours) == ("IDENTITY", "MONOCHROME1"):
        raise DataError(
            f"{name}: (2050,0020) Presentation LUT Shape is {shape!r} with {colours}; expected"
            " IDENTITY with MONOCHROME2, INVERSE, or none"
        )
    return colours == "MONOCHROME1" or shape == "INVERSE"


def _palette(dataset: "Dataset", stored: int) -> np.ndarray:
    """Returns the RGB colour of each stored value: uint8 `[2 ** stored, 3]`."""
    channels = []
    for colour in ("Red", "Green", "Blue"):
        if f"{colour}PaletteColorLookupTableData" not in dataset:
            raise ValueError(f"no {colour} Palette Color Lookup Table Data; segmented is not read")
        descriptor = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value
        data = dataset[f"{colour}PaletteColorLookupTableData"].value
        values = np.arange(1 << stored)
        values, top = _look_up(values, *_table(dataset, descriptor, data))
        channels.append(pixels.scaled(values.astype(np.uint16), top))
    return np.stack(channels, axis=-1)


def _table_of(dataset: "Dataset", item: "Dataset") -> tuple[np.ndarray, int, int]:
    return _table(dataset, item.LUTDescriptor, item.LUTData)


def _table(dataset: "Dataset", descriptor, data) -> tuple[np.ndarray, int, int]:
    """Returns a lookup table: its entries, the first value that it maps, and its bits per entry."""
    count, first, bits = (int(value) for value in descriptor)
    count = count or 1 << 16
    if not 1 <= bits <= 16:
        raise ValueError(f"a lookup table of {bits} bits per entry; expected 1 to 16")
    if isinstance(data, bytes):
        little = dataset.original_encoding[1] is not False
        # Entries of 8 bits may be stored in 16 bits each, which the length of the table shows.
        wide = len(data) >= 2 * count
        data = np.frombuffer(data, ("<u2" if little else ">u2") if wide else np.uint8)
    entries = np.atleast_1d(np.asarray(data))[:count]
    if len(entries) < count:
        raise ValueError(f"a lookup table of {len(entries)} entries; expected {count}")
    return entries, first, bits


def _look_up(
    values: np.ndarray, entries: np.ndarray, first: int, bits: int
) -> tuple[np.ndarray, int]:
    """Maps values by a table; values beyond its ends get the first or last entry.

    Returns:
      The mapped values, int64, and their upper bound 2 ** bits - 1.
    """
    top = (1 << bits) - 1
    mapped = entries[np.clip(values - first, 0, len(entries) - 1)]
    return np.minimum(mapped.astype(np.int64), top), top
