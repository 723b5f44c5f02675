"""Arithmetic on pixel values: to 8 bits, over black, the right way up."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from vae.data.errors import DataError


class Picture(NamedTuple):
    """Decoded pixels that are not sRGB yet.

    Attributes:
      values: uint8 `[H, W]` or `[H, W, C]`; full range.
      mode: Of the values, as Pillow names it: L, RGB, CMYK, LAB or YCbCr.
      profile: The ICC profile of the file, if there is one.
    """

    values: np.ndarray
    mode: str
    profile: bytes | None = None

    def image(self) -> Image.Image:
        """The pixels as a Pillow image."""
        height, width = self.values.shape[:2]
        return Image.frombytes(self.mode, (width, height), self.values.tobytes())


def scaled(values: np.ndarray, top: int) -> np.ndarray:
    """Scales values by 255 / `top`, rounded to the nearest.

    Args:
      values: Unsigned integers; values above `top` count as `top`.
      top: The value that is white, up to 65535.

    Returns:
      uint8 of the same shape; `values` itself where nothing changes.
    """
    if top == 255 and values.dtype == np.uint8:
        return values
    if values.dtype.itemsize > 1:
        values = np.minimum(values, top)
    table = (np.arange(top + 1, dtype=np.uint32) * 255 + top // 2) // top
    return table.astype(np.uint8)[values]


def over_black(colours: np.ndarray, alpha: np.ndarray, name: str) -> np.ndarray:
    """Composites a picture on black, the colour around a field of view.

    Args:
      colours: uint8 or uint16 `[H, W]` or `[H, W, C]`, not multiplied by `alpha`.
      alpha: Of the same type, `[H, W]`; the largest value is opaque.
      name: The file, for the error.

    Returns:
      As `colours`.

    Raises:
      DataError: Every pixel is transparent.
    """
    require_visible(alpha, name)
    top = np.iinfo(colours.dtype).max
    if alpha.min() == top:
        return colours
    if colours.ndim == 3:
        alpha = alpha[..., None]
    product = colours.astype(np.uint32) * alpha  # 65535 squared and a half of it still fit.
    return ((product + top // 2) // top).astype(colours.dtype)


def require_visible(alpha: np.ndarray, name: str) -> None:
    """Refuses a picture that its transparency hides.

    Raises:
      DataError: `alpha` is 0 everywhere.
    """
    if not alpha.any():
        raise DataError(
            f"{name}: its alpha channel is 0 everywhere, which hides the whole picture; save it"
            " without transparency"
        )


def upright(values: np.ndarray, orientation: int | None) -> np.ndarray:
    """Turns and mirrors a picture as the orientation tag of TIFF and EXIF asks for.

    Args:
      values: `[H, W]` or `[H, W, C]`.
      orientation: 1 to 8; other values count as 1, as viewers do.

    Returns:
      `[H, W]` or `[W, H]`, with channels where `values` has them.
    """
    if orientation in (5, 6, 7, 8):  # The first row of the file is a side of the picture.
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
