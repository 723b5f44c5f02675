"""Reading and writing pictures: any common file in, 8-bit sRGB out."""

import functools
import io
import logging
import os
import re
import warnings
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import Image, ImageCms

from vae.data import dicom, jpeg, jpeg2000, limits, pixels, png, tiff
from vae.data.errors import DataError, FundusError, UsageError
from vae.data.files import write_beside
from vae.data.pixels import Picture

# The kinds that are read; `vae.data.finding` takes the same from folders.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".webp"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    *dicom.SUFFIXES,
)
# Pillow tries no others: some of its formats start programs, others have no mark of their own.
_FORMATS = ("PNG", "BMP", "DIB", "GIF", "WEBP", "JPEG2000", "PPM")
_NO_MARK = "TGA"

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_SAME_COLOUR = 2  # Grey levels by which colour management rounds the colours of sRGB itself.
_ORIENTATION = 0x0112
_SRGB_GAMMA, _GAMMA_TOLERANCE = 1 / 2.2, 0.02
# "P5" or "P6", width, height and largest value, with comments between them.
_WIDE_PNM = re.compile(rb"P([56])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s", re.DOTALL)


def _silence() -> None:
    """Keeps the libraries that decode pictures from writing to the standard error.

    Their complaints on a file are either the reason of its error or of no use to a person. The
    filters are set once: `warnings.catch_warnings` is not safe where several threads decode.
    """
    for library in ("PIL", "pydicom", "tifffile", "imagecodecs"):
        logger = logging.getLogger(library)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{library}(\.|$)")


_silence()


def require_utf8(path: str) -> None:
    """Refuses a path that no table can hold, as of disks written under another encoding.

    Raises:
      DataError: It is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path!a}: this name is not UTF-8; rename the file or folder") from None


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads one picture as `decode_image` does.

    Returns:
      uint8 `[H, W, 3]`, sRGB.

    Raises:
      DataError: The file cannot be read, is no regular file, is too large or is no complete
        image; the message names it.
    """
    return decode_image(limits.read_file(path), os.fspath(path))


def decode_image(encoded: bytes, name: str) -> np.ndarray:
    """Decodes a picture to what a person would see on an sRGB screen.

    EXIF orientation is applied, grey becomes RGB, transparency is composited on black, CMYK is
    converted, 16 bits are scaled to 8 and an embedded colour profile is converted to sRGB. Of a
    DICOM file nothing but the picture is read. Files of several pictures are refused, and so are
    pictures that hide behind an alpha of 0 everywhere.

    Args:
      encoded: The bytes of a file.
      name: The file, for an error. TGA files are known by the end of this name only.

    Returns:
      uint8 `[H, W, 3]`, sRGB.

    Raises:
      DataError: The bytes are empty, truncated, damaged or no image, the picture is larger than
        the limit, or has properties that are not read here.
      UsageError: The limit in the environment is no number.
    """
    if not encoded:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    try:
        return _to_srgb(_decode(encoded, name))
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: is no image, or is damaged at its beginning") from error
    except Image.DecompressionBombError as error:  # Of more than twice the limit.
        megapixels = limits.max_pixels() / 1e6
        raise DataError(
            f"{name}: its header says more than {2 * megapixels:g} megapixels; expected at most"
            f" {megapixels:g}; set {limits.VARIABLE} to read larger pictures"
        ) from error
    except (FundusError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded: {reason}") from error


def _decode(encoded: bytes, name: str) -> Picture:
    if dicom.is_dicom(encoded):
        return dicom.decode_dicom(encoded, name)
    if tiff.is_tiff(encoded):
        return tiff.decode_tiff(encoded, name)
    if (header := _WIDE_PNM.match(encoded)) and int(header[4]) > 255:
        return _decode_wide_pnm(header, encoded, name)
    # Pillow refuses twice its own limit, which must not be below ours.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.max_pixels())
    if encoded.startswith(b"\xff\xd8"):
        return _decode_jpeg(encoded, name)
    formats = (*_FORMATS, _NO_MARK) if name.lower().endswith(".tga") else _FORMATS
    with Image.open(io.BytesIO(encoded), formats=formats) as opened:
        limits.require_pixels(*opened.size, name)
        if (frames := getattr(opened, "n_frames", 1)) > 1:
            raise DataError(f"{name}: holds {frames} frames; expected one picture a file")
        profile = opened.info.get("icc_profile")
        if opened.format == "PNG":
            kinds = {kind for kind, _, _ in png.chunks(encoded)}
            _require_png_colours(opened, kinds, name)
            values = _flat(png.decode(encoded), name)
            # Pillow decodes all pixels to look for an orientation behind them.
            turned = png.may_be_turned(encoded)
            orientation = opened.getexif().get(_ORIENTATION) if turned else None
        else:
            values = _wide_jpeg2000(opened, encoded, name)
            if values is None:
                opened.load()  # Reports truncated files.
                values = _narrow_values(opened, encoded, name)
            orientation = opened.getexif().get(_ORIENTATION)
        values = pixels.upright(values, orientation)
        return Picture(values, _mode(values), profile)


def _decode_jpeg(encoded: bytes, name: str) -> Picture:
    """Decodes the pixels with simplejpeg, which is strict, and reads the metadata with Pillow.

    Of a JPEG with further pictures behind it (MPO: previews, depth) the first is the photograph.
    """
    if not (header := jpeg.header(encoded)):
        raise DataError(f"{name}: cannot be decoded: a JPEG file without a frame header")
    limits.require_pixels(header.width, header.height, name)
    if header.channels == 4:
        encoded, values = jpeg.whole(encoded), None
    else:
        values, encoded = jpeg.decode(encoded, grey=header.channels == 1)
    with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as opened:
        profile = opened.info.get("icc_profile")
        orientation = opened.getexif().get(_ORIENTATION)
        if values is None:
            opened.load()
            values = np.array(opened)
    values = pixels.upright(values, orientation)
    return Picture(values, _mode(values), profile)


def _mode(values: np.ndarray) -> str:
    return "L" if values.ndim == 2 else {3: "RGB", 4: "CMYK"}[values.shape[2]]


def _require_png_colours(opened: Image.Image, kinds: set[bytes], name: str) -> None:
    """Refuses PNG chunks that say of the values what only a colour profile can undo here.

    Raises:
      DataError: A cICP chunk, or without a profile a gAMA chunk of another gamma than sRGB's.
    """
    if b"cICP" in kinds:
        raise DataError(f"{name}: PNG chunk cICP is not read; expected sRGB or an ICC profile")
    gamma = opened.info.get("gamma")
    if gamma is None or kinds & {b"sRGB", b"iCCP"}:
        return
    if not is_srgb_gamma(gamma):
        raise DataError(
            f"{name}: PNG chunk gAMA is {gamma:g}; expected {_SRGB_GAMMA:.5f} (sRGB) or an ICC"
            " profile"
        )


def is_srgb_gamma(gamma: float) -> bool:
    """Says if the number of a gAMA chunk stands for the curve of sRGB."""
    return abs(gamma - _SRGB_GAMMA) <= _GAMMA_TOLERANCE


def _wide_jpeg2000(opened: Image.Image, encoded: bytes, name: str) -> np.ndarray | None:
    """Decodes JPEG 2000 of more than 8 bits a value, which Pillow cuts.

    Returns:
      uint8 `[H, W]` or `[H, W, 3]` over black, or None for another picture.
    """
    if opened.format != "JPEG2000" or not (header := jpeg2000.header(encoded)):
        return None
    if header.signed or header.bits > 16 or header.channels > 4:
        kind = "signed" if header.signed else "unsigned"
        raise DataError(
            f"{name}: JPEG 2000 of {header.channels} channels of {header.bits} bits, {kind};"
            " expected up to 4 of up to 16 bits, unsigned"
        )
    if header.bits <= 8:
        return None
    top = (1 << header.bits) - 1
    values = imagecodecs.jpeg2k_decode(encoded)
    if values.ndim == 3 and values.shape[2] in (2, 4):  # Alpha needs values of full range.
        values = ((values.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
        return _flat(values, name)
    return pixels.scaled(values, top)


def _flat(values: np.ndarray, name: str) -> np.ndarray:
    """Composites on black where there is alpha, and scales to 8 bits.

    Args:
      values: uint8 or uint16 `[H, W]` or `[H, W, C]`: grey, grey and alpha, RGB, or RGBA.
      name: The file, for an error.

    Returns:
      uint8 `[H, W]` or `[H, W, 3]`.
    """
    top = np.iinfo(values.dtype).max
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values = pixels.over_black(values[..., :-1], values[..., -1], name)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    return pixels.scaled(values, top)


def _narrow_values(opened: Image.Image, encoded: bytes, name: str) -> np.ndarray:
    """The values of a picture of 8 bits or less: uint8 `[H, W]` or `[H, W, 3]` over black."""
    if opened.mode.startswith(("I", "F")):
        raise DataError(
            f"{name}: {opened.format} of Pillow's mode {opened.mode}; expected values of 8 bits,"
            " or of 16 bits in PNG, TIFF, PGM, PPM or JPEG 2000"
        )
    if opened.mode in ("L", "RGB") and "transparency" not in opened.info:
        return np.array(opened)
    if not (opened.has_transparency_data or opened.mode in ("RGBa", "La")):
        return np.array(opened.convert("L" if opened.mode == "1" else "RGB"))
    values = np.array(opened.convert("RGBA"))
    colours, alpha = values[..., :3], values[..., 3]
    # The fourth byte of these formats is unused more often than not.
    unused = (opened.format in ("BMP", "DIB") and not alpha.any()) or (
        opened.format == "TGA" and not encoded[17] & 15
    )
    return np.ascontiguousarray(colours) if unused else pixels.over_black(colours, alpha, name)


def _decode_wide_pnm(header: re.Match, encoded: bytes, name: str) -> Picture:
    """Decodes binary PPM and PGM of two bytes a value.

    Pillow takes seconds over them, in a loop of Python, and OpenCV forgets their largest value.
    """
    width, height, top = (int(header[group]) for group in (2, 3, 4))
    limits.require_pixels(width, height, name)
    if top > 65535:
        raise DataError(f"{name}: its largest value is {top}; expected at most 65535")
    shape = (height, width, 3) if header[1] == b"6" else (height, width)
    values = np.frombuffer(encoded, ">u2", int(np.prod(shape)), header.end()).reshape(shape)
    return Picture(pixels.scaled(values, top), "RGB" if len(shape) == 3 else "L")


def _to_srgb(picture: Picture) -> np.ndarray:
    """Converts to sRGB: uint8 `[H, W, 3]`. Pixels that are sRGB already keep their values."""
    if picture.profile and (transform := _to_srgb_transform(picture.profile, picture.mode)):
        return np.array(ImageCms.applyTransform(picture.image(), transform))
    if picture.mode == "RGB":
        return picture.values
    if picture.mode == "L":
        return np.repeat(picture.values[..., None], 3, axis=2)
    return np.array(picture.image().convert("RGB"))


@functools.lru_cache(maxsize=8)
def _to_srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB.

    Returns:
      None where the transform changes no colour by more than rounding does, and for a profile
      that is damaged or made for another kind of picture, which viewers ignore.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode not in ("RGB", "L"):
        return transform
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3)
    if mode == "L":
        colours = np.ascontiguousarray(colours[..., 0])
    converted = np.array(ImageCms.applyTransform(Picture(colours, mode).image(), transform))
    colours = colours.reshape(*colours.shape[:2], -1)  # Grey compares with all three channels.
    change = np.abs(converted.astype(int) - colours).max()
    return transform if change > _SAME_COLOUR else None


def require_encoded_size(encoded: bytes, name: str) -> None:
    """Refuses a PNG or JPEG file of too many pixels by its header; others pass.

    Raises:
      DataError: The picture is larger than the limit.
    """
    size = None
    if encoded.startswith(png.SIGNATURE):
        size = png.size(encoded)
    elif encoded.startswith(b"\xff\xd8"):
        size = jpeg.header(encoded)
    if size:
        limits.require_pixels(*size[:2], name)


def encode_image(image: np.ndarray, suffix: str, quality: int = 95) -> bytes:
    """Encodes uint8 `[H, W, 3]` RGB as PNG or as JPEG without chroma subsampling (4:4:4).

    Args:
      image: uint8 `[H, W, 3]`.
      suffix: ".png", ".jpg" or ".jpeg".
      quality: JPEG quality, 1 to 100.

    Raises:
      UsageError: Another suffix.
    """
    if suffix.lower() == ".png":
        options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    elif suffix.lower() in (".jpg", ".jpeg"):
        options = [
            *(cv2.IMWRITE_JPEG_QUALITY, quality),
            *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        ]
    else:
        raise UsageError(f"cannot write {suffix!r}; expected .png, .jpg or .jpeg")
    _, encoded = cv2.imencode(suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return encoded.tobytes()


def write_image(path: str | os.PathLike, image: np.ndarray, quality: int = 95) -> int:
    """Writes uint8 `[H, W, 3]` RGB as PNG or 4:4:4 JPEG, without metadata; never half a file.

    Returns:
      The size of the file in bytes.
    """
    path = Path(path)
    encoded = encode_image(image, path.suffix, quality)
    write_beside(path, encoded)
    return len(encoded)
