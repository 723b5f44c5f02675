"""The view of a photograph, its whole field of view in few pixels, and where a tile lies in it."""

import io
import os
from collections.abc import Iterable

import cv2
import numpy as np

from vae.data import storage
from vae.data.errors import DataError
from vae.data.files import replacing
from vae.data.fov import FieldOfView

# Side of a view in pixels, and half of it in radii of the field of view.
VIEW, MARGIN = 64, 1.1
# Beside photographs.csv, uint8 [photographs, VIEW, VIEW, 3] in the order of its rows.
VIEWS = "views.npy"


def centre_of(fov: FieldOfView, height: int, width: int) -> tuple[float, float, float]:
    """Row and column of the centre of a photograph's field of view, and its radius, pixels.

    Where no field of view is known, the middle of the photograph and half its longer side.
    """
    if fov.known:
        return fov.y, fov.x, fov.radius
    return (height - 1) / 2, (width - 1) / 2, max(height, width) / 2


def place_of(
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


def photograph_view(photograph: np.ndarray, fov: FieldOfView) -> np.ndarray:
    """The square of `MARGIN` radii around the centre of the field of view, in `VIEW` pixels a side.

    Args:
      photograph: uint8 [H, W, 3].
      fov: Its field of view.

    Returns:
      uint8 [VIEW, VIEW, 3], means over areas; black outside the field of view and the photograph.
    """
    height, width = photograph.shape[:2]
    row, column, radius = centre_of(fov, height, width)
    if fov.known:
        photograph = np.where(fov.mask(height, width)[..., None], photograph, np.uint8(0))
    reach = MARGIN * radius
    # Whole pixels: half of one is a hundredth of a view's pixel in photographs of any use.
    top, left = round(row - reach + 0.5), round(column - reach + 0.5)
    side = max(1, round(2 * reach))
    square = np.zeros((side, side, 3), np.uint8)
    rows = slice(max(top, 0), min(top + side, height))
    columns = slice(max(left, 0), min(left + side, width))
    there = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    square[there] = photograph[rows, columns]
    method = cv2.INTER_AREA if side >= VIEW else cv2.INTER_LINEAR
    return cv2.resize(square, (VIEW, VIEW), interpolation=method)


def write_view(path: str | os.PathLike, view: np.ndarray) -> None:
    """Writes one view as an array file, beside its place and then renamed."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, view)


def pack_views(path: str | os.PathLike, files: Iterable[str | os.PathLike], count: int) -> None:
    """Writes views one after another into one array file, beside its place and then renamed.

    Args:
      path: The array file.
      files: Of `write_view`, in the order of the array.
      count: How many.

    Raises:
      DataError: One of them cannot be read, or is no view.
    """
    shape = (count, VIEW, VIEW, 3)
    with replacing(path) as unfinished:
        views = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for row, file in zip(views, files, strict=True):
            try:
                view = np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{file}: damaged ({error}); delete it and cut again") from error
            if view.shape != shape[1:] or view.dtype != np.uint8:
                raise DataError(f"{file}: no view of {VIEW} pixels; delete it and cut again")
            row[...] = view
        views.flush()


def open_views(path: storage.AnyPath, count: int) -> np.ndarray:
    """The views of a dataset; on this machine's disk they are read when they are looked at.

    Args:
      path: The array file.
      count: How many photographs there are.

    Returns:
      uint8 [count, VIEW, VIEW, 3].

    Raises:
      DataError: It is damaged, or of other photographs.
    """
    try:
        if storage.is_remote(path):
            views = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
        else:
            views = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged ({error}); build the dataset again") from error
    if views.shape != (count, VIEW, VIEW, 3) or views.dtype != np.uint8:
        raise DataError(
            f"{path}: holds {views.dtype} {list(views.shape)}, expected views of {count} "
            "photographs; cut the tiles again and build"
        )
    return views
