"""Thumbnails: the field of view of a photograph at low resolution; FOV circles of tiles."""

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from vae.data import schema, storage
from vae.data.errors import DataError
from vae.data.files import replacing
from vae.data.fov import FieldOfView

# Side of a thumbnail in pixels; half its side in radii of the field of view.
THUMBNAIL, MARGIN = 64, 1.1
# Next to photographs.csv: uint8 [photographs, THUMBNAIL, THUMBNAIL, 3] in the order of its rows.
THUMBNAILS = "thumbnails.npy"
_REMEDY = "delete it and cut again"


def centre_of(fov: FieldOfView, height: int, width: int) -> tuple[float, float, float]:
    """Returns the FOV circle of a photograph: row and column of the centre, and radius, in pixels.

    If the field of view is unknown: the middle of the photograph and half its longer side.
    """
    if fov.known:
        return fov.y, fov.x, fov.radius
    return (height - 1) / 2, (width - 1) / 2, max(height, width) / 2


def circle_of(
    fov: FieldOfView, height: int, width: int, y: float = 0.0, x: float = 0.0
) -> np.ndarray:
    """Returns the FOV circle of a photograph in the coordinates of a tile.

    Args:
      fov: Field of view of the photograph, in its pixels.
      height: Height of the photograph, pixels.
      width: Width of the photograph, pixels.
      y: First row of the tile in the photograph.
      x: First column of the tile in the photograph.

    Returns:
      float32 [3]: row and column of the centre relative to the tile's first pixel, and radius.
    """
    row, column, radius = centre_of(fov, height, width)
    return np.array([row - y, column - x, radius], np.float32)


def make_thumbnail(photograph: np.ndarray, fov: FieldOfView) -> np.ndarray:
    """Reduces the square with half-side `MARGIN` radii around the centre of the field of view.

    Args:
      photograph: uint8 [H, W, 3].
      fov: Field of view of the photograph.

    Returns:
      uint8 [THUMBNAIL, THUMBNAIL, 3], area means; black outside the field of view and outside the
      photograph.
    """
    height, width = photograph.shape[:2]
    row, column, radius = centre_of(fov, height, width)
    if fov.known:
        photograph = np.where(fov.mask(height, width)[..., None], photograph, np.uint8(0))
    reach = MARGIN * radius
    # Whole pixels: at usual sizes half a pixel is a hundredth of a thumbnail's pixel.
    top, left = round(row - reach + 0.5), round(column - reach + 0.5)
    side = max(1, round(2 * reach))
    square = np.zeros((side, side, 3), np.uint8)
    rows = slice(max(top, 0), min(top + side, height))
    columns = slice(max(left, 0), min(left + side, width))
    there = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    square[there] = photograph[rows, columns]
    method = cv2.INTER_AREA if side >= THUMBNAIL else cv2.INTER_LINEAR
    return cv2.resize(square, (THUMBNAIL, THUMBNAIL), interpolation=method)


def write_thumbnail(path: str | os.PathLike, thumbnail: np.ndarray) -> None:
    """Writes one thumbnail as a .npy file, to a temporary name and then renamed."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, thumbnail)


def pack_thumbnails(
    path: str | os.PathLike, files: Iterable[str | os.PathLike], count: int
) -> None:
    """Packs thumbnail files into one .npy file, written to a temporary name and then renamed.

    Args:
      path: The .npy file.
      files: Files written by `write_thumbnail`, in the order of the array.
      count: Number of files.

    Raises:
      DataError: A file cannot be read, or is not a thumbnail.
    """
    shape = (count, THUMBNAIL, THUMBNAIL, 3)
    with replacing(path) as unfinished:
        thumbnails = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for row, file in zip(thumbnails, files, strict=True):
            try:
                content = Path(file).read_bytes()
            except OSError as error:
                raise DataError(f"{file}: damaged ({error}); {_REMEDY}") from error
            thumbnail = schema.read_npy(content, file, np.uint8, shape[1:], remedy=_REMEDY)
            row[...] = thumbnail
        thumbnails.flush()


def open_thumbnails(path: storage.AnyPath, count: int) -> np.ndarray:
    """Opens the thumbnails of a dataset; a local file is memory-mapped.

    Args:
      path: The .npy file.
      count: Number of photographs.

    Returns:
      uint8 [count, THUMBNAIL, THUMBNAIL, 3].

    Raises:
      DataError: The file is damaged, or its shape or dtype does not match.
    """
    shape = (count, THUMBNAIL, THUMBNAIL, 3)
    try:
        if storage.is_remote(path):
            content = storage.read_bytes(path)
            return schema.read_npy(content, path, np.uint8, shape, remedy="build the dataset again")
        thumbnails = np.load(path, mmap_mode="r", allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # NumPy raises all kinds for a damaged header.
        raise DataError(f"{path}: damaged ({error}); build the dataset again") from error
    if thumbnails.shape != shape or thumbnails.dtype != np.uint8:
        raise DataError(
            f"{path}: holds {thumbnails.dtype} {list(thumbnails.shape)}, expected thumbnails of "
            f"{count} photographs; cut the tiles again and build"
        )
    return thumbnails
