"""Detection of photographs of one colour: grey, red-free, angiograms.

Their pixels lie near one line through the origin of RGB. The measure is the root mean square
distance from the best such line over the standard deviation of brightness, in a reduced copy. Haze,
darkness and low contrast change both by the same factor. The measure lies in these ranges for 145
photographs of five cameras and scikit-image's retina, reduced to 700 pixels:

    unchanged, at a tenth of the brightness, or veiled to a fifth          0.15 to 0.98
    uneven light, the worst of `vae.models.degradations`                   0.08 to 0.38
    half of the saturation, also at a quarter of the brightness            0.09 to 0.53
    darkened by a gamma of 2.2                                             0.05 to 0.73
    a quarter of the saturation: hardly colour                             0.04 to 0.28
    grey, or the green channel alone or as grey                            0
    grey, coded as JPEG of quality 50                                      0
    sepia, also at a quarter of the brightness                             0.00 to 0.02
    the green channel alone, coded as JPEG of quality 50                   0.02 to 0.06
    sepia, coded as JPEG of quality 50                                     0.02 to 0.07

With the threshold `SPREAD`, no photograph in the rows above "hardly colour" counts as one colour,
and one of 146 in that row does. All photographs of one colour are detected except tints coded at
quality 50: 95% of the green channels and 86% of sepia are (at full size 100% and 93%). Tints as
dark as the errors of JPEG's colours and tints whose hue changes with brightness are not detected.
"""

import cv2
import numpy as np

from vae.data.fov import FieldOfView, fov_mask

NOTE = "one colour only (grey, red-free or angiogram): left as it is"
SPREAD = 0.05

# Side of the reduced copy in pixels: averaging removes grain and the errors of JPEG's colours.
_SIDE = 16
# Allowance for the distance from the line, grey levels, for an image without contrast.
_ROUNDING = 0.01


def is_one_colour(photograph: np.ndarray, fov: FieldOfView) -> bool:
    """Tests if all colours in the field of view lie near one line through black.

    Args:
      photograph: uint8 [H, W, 3].
      fov: Its field of view; if it is unknown, the lit region is used.

    Returns:
      True for one colour; False also if almost no pixel is inside.
    """
    inside = fov_mask(fov, photograph)
    small = _reduced(np.where(inside[..., None], photograph, np.uint8(0)))
    whole = _reduced(np.where(inside, np.uint8(255), np.uint8(0))) == 255
    pixels = small[whole].astype(np.float64)
    if len(pixels) < 2:
        return False
    *off_line, _ = np.linalg.eigvalsh(pixels.T @ pixels / len(pixels))
    contrast = np.linalg.eigvalsh(np.cov(pixels, rowvar=False))[-1]
    return bool(np.sum(off_line) <= SPREAD**2 * contrast + _ROUNDING**2)


def _reduced(image: np.ndarray) -> np.ndarray:
    """Averages uint8 [H, W, ...] over areas: float32 [_SIDE, _SIDE, ...]."""
    # The first, larger step keeps integers only: the second step averages their rounding errors.
    for side, dtype in ((16 * _SIDE, np.uint8), (_SIDE, np.float32)):
        image = cv2.resize(image.astype(dtype), (side, side), interpolation=cv2.INTER_AREA)
    return image
