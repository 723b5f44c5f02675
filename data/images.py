"""Image reading and writing: decodes all common formats to 8-bit sRGB."""

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
from vae.data.errors import DataError, FundusError, UsageError, one_line
from vae.data.files import write_beside
from vae.data.pixels import Picture

# The formats that are read, also by `vae.data.finding` from folders.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".webp"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    *dicom.SUFFIXES,
)
# Pillow tries only these: some of its other formats start programs or have no signature.
_FORMATS = ("PNG", "BMP", "DIB", "GIF", "WEBP", "JPEG2000", "PPM")
_NO_MARK = "TGA"

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_SAME_COLOUR = 2  # Grey levels: rounding error of colour management on sRGB itself.
_ORIENTATION = 0x0112
_SRGB_GAMMA, _GAMMA_TOLERANCE = 1 / 2.2, 0.02
# "P5" or "P6", width, height and largest value, with comments between them.
_WIDE_PNM = re.compile(rb"P([56])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s", re.DOTALL)


def _silence() -> None:
    """Keeps the decoding libraries from writing to stderr.

    Their messages about a file either become the reason of its error or are of no use to the user.
    The filters are set once, because `warnings.catch_warnings` is not thread-safe.
    """
    for library in ("PIL", "pydicom", "tifffile", "imagecodecs"):
        logger = logging.getLogger(library)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{library}(\.|$)")


_silence()


def require_utf8(path: str) -> None:
    """Refuses a path that is not UTF-8 (from a disk of another encoding); CSV cannot store it.

    Raises:
      DataError: The path is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path!a}: this name is not UTF-8; rename the file or folder") from None


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture from a file; see `decode_image`.

    Returns:
      uint8 `[H, W, 3]`, sRGB.

    Raises:
      DataError: The file cannot be read, is not a regular file, is too large or is not a complete
        image; the message names it.
      UsageError: The limit in the environment is not a number.
    """
    return decode_image(limits.read_file(path), os.fspath(path))


def decode_image(encoded: bytes, name: str) -> np.ndarray:
    """Decodes a picture to the values that an sRGB screen would show.

    Applies the EXIF orientation, converts grey and CMYK to RGB, composites transparency on black,
    scales 16 bits to 8 and converts an embedded colour profile to sRGB. From a DICOM file, only the
    picture is read. Files with several pictures and fully transparent pictures are refused.

    Args:
      encoded: The bytes of a file.
      name: The file's name in an error; TGA files are recognised only by its suffix.

    Returns:
      uint8 `[H, W, 3]`, sRGB.

    Raises:
      DataError: The bytes are empty, truncated, damaged or not an image; or the picture is larger
        than the limit or has unsupported properties.
      UsageError: The limit in the environment is not a number.
    """
    if not encoded:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    try:
        return _to_srgb(_decode(encoded, name))
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: is no image, or is damaged at its beginning") from error
    except Image.DecompressionBombError as error:  # more than twice the limit
        megapixels = limits.max_pixels() / 1e6
        raise DataError(
            f"{name}: its header says more than {2 * megapixels:g} megapixels; expected at most"
            f" {megapixels:g}; set {limits.VARIABLE} to read larger pictures"
        ) from error
    except (FundusError, MemoryError):
        raise
    except Exception as error:  # the decoders raise many types
        reason = one_line(error) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded: {reason}") from error


def convert_image(image: Image.Image, name: str) -> np.ndarray:
    """Converts a Pillow image to uint8 `[H, W, 3]`, sRGB, as `decode_image` does a file.

    Raises:
      DataError: It has more than 8 bits per value, or every pixel is transparent.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{name}: Pillow's mode {image.mode} has more than 8 bits a value; expected uint8 "
            "values, or the path of the file"
        )
    values = np.array(image) if image.mode == "CMYK" else _narrow_values(image, b"", name)
    values = pixels.upright(values, image.getexif().get(_ORIENTATION))
    return _to_srgb(Picture(values, _mode(values), image.info.get("icc_profile")))


def _decode(encoded: bytes, name: str) -> Picture:
    if dicom.is_dicom(encoded):
        return dicom.decode_dicom(encoded, name)
    if tiff.is_tiff(encoded):
        return tiff.decode_tiff(encoded, name)
    if (header := _WIDE_PNM.match(encoded)) and int(header[4]) > 255:
        return _decode_wide_pnm(header, encoded, name)
    # Pillow refuses pictures above twice its own limit, so its limit must not be below ours.
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
            # Pillow decodes all pixels to search for an orientation stored after them.
            turned = png.may_be_turned(encoded)
            orientation = opened.getexif().get(_ORIENTATION) if turned else None
        else:
            values = _wide_jpeg2000(opened, encoded, name)
            if values is None:
                opened.load()  # raises on truncated files
                values = _narrow_values(opened, encoded, name)
            orientation = opened.getexif().get(_ORIENTATION)
        values = pixels.upright(values, orientation)
        return Picture(values, _mode(values), profile)


def _decode_jpeg(encoded: bytes, name: str) -> Picture:
    """Decodes the pixels with simplejpeg (strict) and reads the metadata with Pillow.

    If further pictures follow (MPO: previews, depth maps), only the first is decoded.
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
    """Refuses PNG chunks that describe colours other than sRGB without an ICC profile.

    Raises:
      DataError: There is a cICP chunk, or a gAMA chunk of a gamma other than sRGB's and no profile.
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
    """Returns True if the value of a gAMA chunk is that of sRGB, 1 / 2.2, within 0.02."""
    return abs(gamma - _SRGB_GAMMA) <= _GAMMA_TOLERANCE


def _wide_jpeg2000(opened: Image.Image, encoded: bytes, name: str) -> np.ndarray | None:
    """Decodes JPEG 2000 of more than 8 bits per value, which Pillow would truncate.

    Returns:
      uint8 `[H, W]` or `[H, W, 3]` composited on black; None for any other picture.
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
    if values.ndim == 3 and values.shape[2] in (2, 4):  # compositing needs full range
        values = ((values.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
        return _flat(values, name)
    return pixels.scaled(values, top)


def _flat(values: np.ndarray, name: str) -> np.ndarray:
    """Composites on black if there is alpha, and scales to 8 bits.

    Args:
      values: uint8 or uint16 `[H, W]` or `[H, W, C]`: grey, grey and alpha, RGB, or RGBA.
      name: The file's name in an error.

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
    """Returns the values of a picture of up to 8 bits: uint8 `[H, W]` or `[H, W, 3]` on black."""
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
    # The fourth byte of these formats is usually unused.
    unused = (opened.format in ("BMP", "DIB") and not alpha.any()) or (
        opened.format == "TGA" and encoded and not encoded[17] & 15
    )
    return np.ascontiguousarray(colours) if unused else pixels.over_black(colours, alpha, name)


def _decode_wide_pnm(header: re.Match, encoded: bytes, name: str) -> Picture:
    """Decodes binary PPM and PGM with two bytes per value.

    Pillow takes seconds in a Python loop, and OpenCV ignores the largest value in the header.
    """
    width, height, top = (int(header[group]) for group in (2, 3, 4))
    limits.require_pixels(width, height, name)
    if top > 65535:
        raise DataError(f"{name}: its largest value is {top}; expected at most 65535")
    shape = (height, width, 3) if header[1] == b"6" else (height, width)
    values = np.frombuffer(encoded, ">u2", int(np.prod(shape)), header.end()).reshape(shape)
    return Picture(pixels.scaled(values, top), "RGB" if len(shape) == 3 else "L")


def _to_srgb(picture: Picture) -> np.ndarray:
    """Converts to sRGB, uint8 `[H, W, 3]`; pixels in sRGB keep their values."""
    if picture.profile and (transform := _to_srgb_transform(picture.profile, picture.mode)):
        return np.array(ImageCms.applyTransform(picture.image(), transform))
    if picture.mode == "RGB":
        return picture.values
    if picture.mode == "L":
        return np.repeat(picture.values[..., None], 3, axis=2)
    return np.array(picture.image().convert("RGB"))


@functools.lru_cache(maxsize=8)
def _to_srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform from an ICC profile to sRGB.

    Returns:
      The transform; None if it changes no colour by more than rounding, or if the profile is
      damaged or made for another colour space, because viewers ignore such profiles.
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
    colours = colours.reshape(*colours.shape[:2], -1)  # grey broadcasts to three channels
    change = np.abs(converted.astype(int) - colours).max()
    return transform if change > _SAME_COLOUR else None


def require_encoded_size(encoded: bytes, name: str) -> None:
    """Refuses a PNG or JPEG file whose header states too many pixels; accepts other files.

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
    """Encodes a picture as PNG or as JPEG without chroma subsampling (4:4:4).

    Args:
      image: uint8 `[H, W, 3]`, RGB.
      suffix: ".png", ".jpg" or ".jpeg".
      quality: JPEG quality, 1 to 100.

    Raises:
      UsageError: The suffix is another.
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
    """Writes uint8 `[H, W, 3]` RGB as PNG or 4:4:4 JPEG, atomically and without metadata.

    Returns:
      The size of the file in bytes.
    """
    path = Path(path)
    encoded = encode_image(image, path.suffix, quality)
    write_beside(path, encoded)
    return len(encoded)
