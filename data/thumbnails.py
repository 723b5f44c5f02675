"""Thumbnails: the field of view of a photograph in few pixels, and where a tile lies in it."""

import io
import os
from collections.abc import Iterable

import cv2
import numpy as np

from vae.data import storage
from vae.data.errors import DataError
from vae.data.files import replacing
from vae.data.fov import FieldOfView

# Side of a thumbnail in pixels, and half of it in radii of the field of view.
THUMBNAIL, MARGIN = 64, 1.1
# Beside photographs.csv, uint8 [photographs, THUMBNAIL, THUMBNAIL, 3] in the order of its rows.
THUMBNAILS = "thumbnails.npy"


def centre_of(fov: FieldOfView, height: int, width: int) -> tuple[float, float, float]:
    """Row and column of the centre of a photograph's field of view, and its radius, pixels.

    Where no field of view is known, the middle of the photograph and half its longer side.
    """
    if fov.known:
        return fov.y, fov.x, fov.radius
    return (height - 1) / 2, (width - 1) / 2, max(height, width) / 2


def circle_of(
    fov: FieldOfView, height: int, width: int, y: float = 0.0, x: float = 0.0
) -> np.ndarray:
    """Where the field of view lies as seen from a tile.

    Args:
      fov: Of the photograph, in its pixels.
      height: Of the photograph, pixels.
      width: Of the photograph, pixels.
      y: The tile's first row in the photograph.
      x: Its first column.

    Returns:
      float32 [3]: row and column of the centre in pixels of the tile, and the radius.
    """
    row, column, radius = centre_of(fov, height, width)
    return np.array([row - y, column - x, radius], np.float32)


def make_thumbnail(photograph: np.ndarray, fov: FieldOfView) -> np.ndarray:
    """Reduces the square of `MARGIN` radii around the centre of the field of view.

    Args:
      photograph: uint8 [H, W, 3].
      fov: Its field of view.

    Returns:
      uint8 [THUMBNAIL, THUMBNAIL, 3], means over areas; black outside the field of view and the
      photograph.
    """
    height, width = photograph.shape[:2]
    row, column, radius = centre_of(fov, height, width)
    if fov.known:
        photograph = np.where(fov.mask(height, width)[..., None], photograph, np.uint8(0))
    reach = MARGIN * radius
    # Whole pixels: half of one is a hundredth of a thumbnail's pixel in photographs of any use.
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
    """Writes one thumbnail as an array file, beside its place and then renamed."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, thumbnail)


def pack_thumbnails(
    path: str | os.PathLike, files: Iterable[str | os.PathLike], count: int
) -> None:
    """Writes thumbnails one after another into one array file, beside its place and then renamed.

    Args:
      path: The array file.
      files: Of `write_thumbnail`, in the order of the array.
      count: How many.

    Raises:
      DataError: One of them cannot be read, or is no thumbnail.
    """
    shape = (count, THUMBNAIL, THUMBNAIL, 3)
    with replacing(path) as unfinished:
        thumbnails = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for row, file in zip(thumbnails, files, strict=True):
            try:
                thumbnail = np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{file}: damaged ({error}); delete it and cut again") from error
            if thumbnail.shape != shape[1:] or thumbnail.dtype != np.uint8:
                raise DataError(
                    f"{file}: no thumbnail of {THUMBNAIL} pixels; delete it and cut again"
                )
            row[...] = thumbnail
        thumbnails.flush()


def open_thumbnails(path: storage.AnyPath, count: int) -> np.ndarray:
    """The thumbnails of a dataset; on this machine's disk they are read when they are looked at.

    Args:
      path: The array file.
      count: How many photographs there are.

    Returns:
      uint8 [count, THUMBNAIL, THUMBNAIL, 3].

    Raises:
      DataError: It is damaged, or of other photographs.
    """
    try:
        if storage.is_remote(path):
            thumbnails = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
        else:
            thumbnails = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged ({error}); build the dataset again") from error
    if thumbnails.shape != (count, THUMBNAIL, THUMBNAIL, 3) or thumbnails.dtype != np.uint8:
        raise DataError(
            f"{path}: holds {thumbnails.dtype} {list(thumbnails.shape)}, expected thumbnails of "
            f"{count} photographs; cut the tiles again and build"
        )
    return thumbnails
