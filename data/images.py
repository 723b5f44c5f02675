"""Reading and writing pictures: any common file in, 8-bit sRGB out."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps

from data import dicom
from data.errors import DataError, UsageError
from data.files import write_beside

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".ppm", *dicom.SUFFIXES)

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_TIFF_BITS_PER_SAMPLE = 258
_PNG_BIT_DEPTH_AT = 24  # signature 8, chunk length 4, "IHDR" 4, width 4, height 4
# "P5" or "P6", width, height and largest value, with comments between them.
_WIDE_PNM = re.compile(rb"P([56])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s", re.DOTALL)


def list_images(root: str | os.PathLike) -> list[Path]:
    """The image files below `root`, sorted by path; hidden files and folders are skipped.

    Raises:
      DataError: `root` is no directory, or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; expected a folder of images")
    found = sorted(iterate_images(root))
    if not found:
        raise DataError(f"{root}: no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return found


def iterate_images(root: Path) -> Iterator[Path]:
    """The image files below `root` in no order; hidden files and folders are skipped.

    Raises:
      DataError: The name of one is not UTF-8.
    """
    visited = set()  # collections are often assembled from links: follow them, but not in circles
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            # The dot also skips macOS's "._photo.jpg" companions and our unfinished writes.
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                require_utf8(os.path.join(folder, name))
                yield Path(folder, name)


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
      DataError: The file cannot be read or is no complete image; the message names it.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return decode_image(encoded, str(path))


def decode_image(encoded: bytes, name: str) -> np.ndarray:
    """Decodes a picture to what a person would see on an sRGB screen.

    EXIF orientation is applied, grey becomes RGB, transparency is composited on black, CMYK is
    converted, 16 bits are scaled to 8 and an embedded colour profile is converted to sRGB. Of a
    DICOM file nothing but the picture is read.

    Args:
      encoded: The bytes of a file.
      name: What to call it in an error.

    Returns:
      uint8 `[H, W, 3]`, sRGB.

    Raises:
      DataError: The bytes are empty, truncated, damaged or no image.
    """
    if not encoded:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    if dicom.is_dicom(encoded):
        values, profile = dicom.decode_dicom(encoded, name)
        return np.array(_to_srgb(Image.fromarray(values), profile))
    try:
        if encoded.startswith(b"\xff\xd8"):
            # Damage inside a JPEG is a mere warning to Pillow, which gives a picture all the same.
            simplejpeg.decode_jpeg(encoded, strict=True)
        if (header := _WIDE_PNM.match(encoded)) and int(header[4]) > 255:
            return _decode_wide_pnm(header, encoded)
        with Image.open(io.BytesIO(encoded)) as opened:
            opened.load()  # reports truncated files, which OpenCV fills with grey in silence
            profile = opened.info.get("icc_profile")
            picture = _to_8_bit(opened, encoded)
            picture = ImageOps.exif_transpose(picture)
            picture = _over_black(picture)
            return np.array(_to_srgb(picture, profile))
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: is no image, or is damaged at its beginning") from error
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error...
        raise DataError(f"{name}: cannot be decoded: {error}") from error


def _to_8_bit(picture: Image.Image, encoded: bytes) -> Image.Image:
    """16-bit files scaled by 255/65535 (Pillow clips grey ones and cuts the low byte of others)."""
    bits = 8
    if picture.format == "PNG":
        bits = encoded[_PNG_BIT_DEPTH_AT]
    elif picture.format == "TIFF":
        bits = max(picture.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (8,)))
    elif picture.mode.startswith("I"):
        bits = 16
    if bits <= 8:
        return picture
    values = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise ValueError(f"{bits} bits a value; expected 8 or 16 bits, unsigned")
    values = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if values.ndim == 3:
        order = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}[values.shape[2]]
        values = cv2.cvtColor(values, order)
    scaled = Image.fromarray(values)
    scaled.info.update(picture.info)
    if exif := picture.getexif():
        scaled.info["exif"] = exif.tobytes()
    return scaled


def _decode_wide_pnm(header: re.Match, encoded: bytes) -> np.ndarray:
    """Binary PPM and PGM of two bytes a value: uint8 [H, W, 3].

    Pillow takes seconds over them, in a loop of Python, and OpenCV forgets their largest value.
    """
    width, height, top = (int(header[group]) for group in (2, 3, 4))
    channels = 3 if header[1] == b"6" else 1
    values = np.frombuffer(encoded, ">u2", height * width * channels, header.end())
    scaled = (np.minimum(values, top).astype(np.uint32) * 255 + top // 2) // top
    return np.broadcast_to(
        scaled.astype(np.uint8).reshape(height, width, channels), (height, width, 3)
    ).copy()


def _over_black(picture: Image.Image) -> Image.Image:
    """Composites transparency on black, the colour around a field of view."""
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, picture).convert("RGB")
    return picture


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        # A profile that is damaged or made for another kind of picture is ignored, as viewers do.
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            # Pixels that are sRGB already keep their exact values.
            if "sRGB" not in ImageCms.getProfileDescription(source):
                if picture.mode not in ("RGB", "L", "CMYK"):
                    picture = picture.convert("RGB")
                picture = ImageCms.profileToProfile(picture, source, _SRGB, outputMode="RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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
