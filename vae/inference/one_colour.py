"""Photographs of one colour: grey, red-free, angiograms.

Their pixels lie near one line through the origin of RGB. The measure is the root mean square
distance from the best such line over the standard deviation of brightness, in a reduced copy: haze,
darkness and low contrast change both alike. Of 145 photographs of five cameras and scikit-image's
retina, reduced to 700 pixels, it lies between

    as they are, a tenth as bright, or under veils that leave a fifth      0.15 and 0.98
    lit unevenly, as the worst of `vae.models.degradations`              0.08 and 0.38
    with half of their saturation, also a quarter as bright                0.09 and 0.53
    darkened by a gamma of 2.2                                             0.05 and 0.73
    with a quarter of their saturation: hardly colour                      0.04 and 0.28
    grey, or the green channel alone or as grey                            0
    grey, coded as JPEG of quality 50                                      0
    sepia, also a quarter as bright                                        0.00 and 0.02
    the green channel alone, coded as JPEG of quality 50                   0.02 and 0.06
    sepia, coded as JPEG of quality 50                                     0.02 and 0.07

At `SPREAD` no photograph above "hardly colour" is taken for one of one colour, and of those one of
146 is. Found are all of one colour but for tints coded at quality 50: of those 95% of the green
channels and 86% of sepia (at full size 100% and 93%). Not found are tints as dark as the errors of
JPEG's colours, and tints whose hue changes with brightness.
"""

import cv2
import numpy as np

from vae.data.fov import FieldOfView, fov_mask

NOTE = "one colour only (grey, red-free or angiogram): left as it is"
SPREAD = 0.05

# Side of the reduced copy in pixels: grain and the errors of JPEG's colours average out.
_SIDE = 16
# Grey levels by which pixels may miss the line in any case, for a picture without contrast.
_ROUNDING = 0.01


def is_one_colour(photograph: np.ndarray, fov: FieldOfView) -> bool:
    """Tells whether all colours in the field of view lie near one line through black.

    Args:
      photograph: uint8 [H, W, 3].
      fov: Its field of view; of an unknown one the lit region is looked at.

    Returns:
      False also where hardly a pixel is inside.
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
    """uint8 [H, W, ...] -> float32 [_SIDE, _SIDE, ...], means over areas."""
    # Whole values are kept for the larger step only: what they lose is averaged by the smaller one.
    for side, dtype in ((16 * _SIDE, np.uint8), (_SIDE, np.float32)):
        image = cv2.resize(image.astype(dtype), (side, side), interpolation=cv2.INTER_AREA)
    return image
