"""Photographs of one colour: grey, red-free, angiograms."""

import cv2
import numpy as np

from data.fov import FieldOfView, fov_mask

NOTE = "one colour only (grey, red-free or angiogram): left as it is"

# Side of the reduced copy in pixels: grain and the errors of JPEG's colours average out.
_SIDE = 32
# Of the deviation along the line, the largest deviation from it.
_SPREAD = 0.04


def is_one_colour(photograph: np.ndarray, fov: FieldOfView) -> bool:
    """Tells whether all colours in the field of view lie near one line in RGB.

    Args:
      photograph: uint8 [H, W, 3].
      fov: Its field of view; of an unknown one the lit region is looked at.
    """
    inside = fov_mask(fov, photograph)
    small = _reduced(np.where(inside[..., None], photograph, np.uint8(0)))
    whole = _reduced(np.where(inside, np.uint8(255), np.uint8(0))) == 255
    if np.count_nonzero(whole) < 2:
        return False
    # Variances along the line of the best fit, and across it.
    *across, along = np.linalg.eigvalsh(np.cov(small[whole].astype(np.float64), rowvar=False))
    return float(np.sum(np.maximum(across, 0))) <= _SPREAD**2 * along


def _reduced(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, ...] -> float32 [_SIDE, _SIDE, ...], means over areas."""
    # Whole values are kept for the larger step only: what they lose is averaged by the smaller one.
    for side, dtype in ((8 * _SIDE, np.uint8), (_SIDE, np.float32)):
        image = cv2.resize(image.astype(dtype), (side, side), interpolation=cv2.INTER_AREA)
    return image
