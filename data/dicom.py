"""DICOM files as pictures: the pixels and their colours, and nothing else of the header.

Only the elements that describe pixels are read. Names, dates and numbers of patients are never
parsed, so that none can reach an output, a log or an error.
"""

import io

import numpy as np

from data.errors import DataError

SUFFIXES = (".dcm", ".dicom")
# Elements by group and number, as the words are not needed before pydicom is.
_PIXELS = 0x0028  # The group that describes the picture; only those below are read of it.
_ELEMENTS = (
    *((_PIXELS, number) for number in (0x0002, 0x0004, 0x0006, 0x0008, 0x0010, 0x0011, 0x0100)),
    *((_PIXELS, number) for number in (0x0101, 0x0102, 0x0103, 0x2000)),
    *((_PIXELS, number) for number in (0x1101, 0x1102, 0x1103, 0x1201, 0x1202, 0x1203)),
    (0x0008, 0x0016),  # the kind of object
    (0x7FE0, 0x0001),
    (0x7FE0, 0x0002),
    (0x7FE0, 0x0010),  # the pixels
)
_COLOURS = (
    *("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"),
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
)


def is_dicom(encoded: bytes) -> bool:
    """Whether the bytes are a DICOM file: most have no suffix that says so."""
    return encoded[128:132] == b"DICM"


def decode_dicom(encoded: bytes, name: str) -> tuple[np.ndarray, bytes | None]:
    """Decodes the one picture of a DICOM file.

    Args:
      encoded: The bytes of the file.
      name: What to call it in an error.

    Returns:
      uint8 `[H, W]` or `[H, W, 3]`, full range, and its colour profile, if there is one.

    Raises:
      DataError: pydicom is not installed, or there is no picture, more than one, or one that
        cannot be decoded.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, pixel_array
    except ImportError:
        raise DataError(
            f"{name}: a DICOM file, which pydicom reads: pip install 'fundus-vae[dicom]'"
        ) from None
    try:
        dataset = pydicom.dcmread(io.BytesIO(encoded), specific_tags=list(_ELEMENTS))
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames != 1:
            raise DataError(f"{name}: holds {frames} frames; expected one picture a file")
        if "Rows" not in dataset:
            raise DataError(f"{name}: a DICOM file without a picture")
        colours = str(dataset.PhotometricInterpretation)
        if colours not in _COLOURS:
            raise DataError(f"{name}: colours {colours!r}, expected one of {', '.join(_COLOURS)}")
        stored = int(dataset.BitsStored)
        signed = bool(dataset.get("PixelRepresentation", 0))
        if stored > 16 or signed:
            kind = "signed" if signed else "unsigned"
            raise DataError(f"{name}: {stored} bits a value, {kind}; expected up to 16, unsigned")
        values = pixel_array(dataset)  # YBR becomes RGB
        if colours == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
            stored = 8 * values.dtype.itemsize
        elif colours == "MONOCHROME1":  # large values are dark
            values = (1 << stored) - 1 - values
    except DataError:
        raise
    except RuntimeError:  # of pydicom, where no decoder was found or all of them failed
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise DataError(
            f"{name}: cannot be decoded: {syntax}; pip install 'pylibjpeg[all]' may help, or "
            "convert the file"
        ) from None
    except Exception as error:  # pydicom and its decoders raise nearly everything
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name}: cannot be decoded: {reason or type(error).__name__}") from None
    top = (1 << stored) - 1
    scaled = (np.minimum(values, top).astype(np.uint32) * 255 + top // 2) // top
    return scaled.astype(np.uint8), dataset.get("ICCProfile")
