"""Pixel operations: conversion to 8 bits, compositing on black, and orientation."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from vae.data.errors import DataError


class Picture(NamedTuple):
    """Decoded pixels before conversion to sRGB.

    Attributes:
      values: uint8 `[H, W]` or `[H, W, C]`; full range.
      mode: Pillow's name for the colour space: L, RGB, CMYK, LAB or YCbCr.
      profile: ICC profile of the file, or None.
    """

    values: np.ndarray
    mode: str
    profile: bytes | None = None

    def image(self) -> Image.Image:
        """Returns the pixels as a Pillow image."""
        height, width = self.values.shape[:2]
        return Image.frombytes(self.mode, (width, height), self.values.tobytes())


def scaled(values: np.ndarray, top: int) -> np.ndarray:
    """Scales values by 255 / `top` and rounds to the nearest integer.

    Args:
      values: Unsigned integers; values above `top` count as `top`.
      top: The value of white, 1 to 65535.

    Returns:
      uint8 of the same shape; `values` itself if nothing changes.
    """
    if top == 255 and values.dtype == np.uint8:
        return values
    if values.dtype.itemsize > 1:
        values = np.minimum(values, top)
    table = (np.arange(top + 1, dtype=np.uint32) * 255 + top // 2) // top
    return table.astype(np.uint8)[values]


def over_black(colours: np.ndarray, alpha: np.ndarray, name: str) -> np.ndarray:
    """Composites a picture on black, the colour outside a field of view.

    Args:
      colours: uint8 or uint16 `[H, W]` or `[H, W, C]`, not multiplied by `alpha`.
      alpha: Same dtype, `[H, W]`; the largest value of the dtype is opaque.
      name: Name of the file, for the error.

    Returns:
      Same shape and dtype as `colours`.

    Raises:
      DataError: Every pixel is transparent.
    """
    require_visible(alpha, name)
    top = np.iinfo(colours.dtype).max
    if alpha.min() == top:
        return colours
    if colours.ndim == 3:
        alpha = alpha[..., None]
    product = colours.astype(np.uint32) * alpha  # 65535**2 + 65535 // 2 fits.
    return ((product + top // 2) // top).astype(colours.dtype)


def require_visible(alpha: np.ndarray, name: str) -> None:
    """Refuses a fully transparent picture.

    Raises:
      DataError: `alpha` is 0 everywhere.
    """
    if not alpha.any():
        raise DataError(
            f"{name}: its alpha channel is 0 everywhere, which hides the whole picture; save it"
            " without transparency"
        )


def upright(values: np.ndarray, orientation: int | None) -> np.ndarray:
    """Turns and mirrors a picture as its TIFF or EXIF orientation tag states.

    Args:
      values: `[H, W]` or `[H, W, C]`.
      orientation: 1 to 8; other values count as 1, as viewers do.

    Returns:
      `[H, W]` or `[W, H]`, with channels where `values` has them.
    """
    if orientation in (5, 6, 7, 8):  # The first row in the file is the left or right side.
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
