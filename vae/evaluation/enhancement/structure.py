"""Measures of kept and invented anatomy: vessels, and small bright and dark spots."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from skimage import filters, measure

# Standard deviations of vessel profiles, in pixels of a photograph of about 1,000 pixels.
SIGMAS = (1, 1.5, 2)
# Second derivatives of green, in [0, 1], below this value count as noise. It is fixed, because the
# default follows the image and would find vessels in pure noise.
FRANGI_GAMMA = 0.01
# Share of the strongest pixels of a clean photograph that count as vessels.
STRONGEST = 0.06
# Pixels by which a vessel may move.
SLACK = 2
# Lesions: diameters in pixels, and least contrast in grey levels of green.
LARGEST, SMALLEST, CONTRAST = 8, 2, 10


@dataclasses.dataclass(frozen=True)
class Structure:
    """Vessels and small spots of a clean photograph.

    Attributes:
      vesselness: float64 [H, W].
      inside: bool [H, W], the field of view without a margin at its edge.
      threshold: Vesselness above which a pixel belongs to a vessel.
      lesions: (rows, columns, bright, contrast in grey levels) of each small spot.
    """

    vesselness: np.ndarray
    inside: np.ndarray
    threshold: float
    lesions: list[tuple[np.ndarray, np.ndarray, bool, float]]


def vesselness(image: np.ndarray, sigmas: Sequence[float] = SIGMAS) -> np.ndarray:
    """Computes vesselness (Frangi et al., 1998) of green, where vessels are darkest.

    uint8 [H, W, 3] -> float64 [H, W].
    """
    green = image[..., 1] / 255
    return filters.frangi(green, sigmas=sigmas, black_ridges=True, gamma=FRANGI_GAMMA)


def find_structure(clean: np.ndarray, fov: np.ndarray) -> Structure:
    """Finds the vessels and lesions of a clean photograph.

    Args:
      clean: uint8 [H, W, 3].
      fov: bool [H, W], field of view.
    """
    size = int(4 * max(SIGMAS)) + 1
    inside = cv2.erode(fov.astype(np.uint8), np.ones((size, size), np.uint8)) > 0
    ridges = vesselness(clean)
    threshold = float(np.quantile(ridges[inside], 1 - STRONGEST)) if inside.any() else 0.0
    vessels = _grown(_long(ridges > threshold), SLACK)
    lesions = []
    for bright in (True, False):
        hat = _top_hat(clean, bright)
        spots = measure.label((hat > CONTRAST) & inside & ~vessels)
        for region in measure.regionprops(spots):
            round_ = region.eccentricity < 0.9
            if round_ and SMALLEST <= region.equivalent_diameter_area <= LARGEST:
                rows, columns = region.coords.T
                lesions.append((rows, columns, bright, float(hat[rows, columns].max())))
    return Structure(ridges, inside, threshold, lesions)


def compare_structure(structure: Structure, image: np.ndarray) -> dict[str, float]:
    """Compares an image with the structure of the clean photograph.

    Args:
      structure: Structure of the clean photograph.
      image: uint8 [H, W, 3].

    Returns:
      `vesselness`: correlation with the clean photograph's; `false_vessels`: share of the
      non-vessel pixels detected as vessel; `missed_vessels`: share of the vessel pixels no longer
      detected; `lesions_kept`: median contrast of the spots, relative to the clean photograph. NaN
      where there is nothing to compare.
    """
    ridges, inside, threshold = vesselness(image), structure.inside, structure.threshold
    nan = float("nan")
    if not inside.any() or threshold <= 0:
        return dict.fromkeys(STRUCTURE_METRICS, nan)
    a, b = structure.vesselness[inside], ridges[inside]
    correlation = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
    was, now = structure.vesselness > threshold, ridges > threshold
    nowhere = inside & ~_grown(structure.vesselness > threshold / 2, SLACK)
    vessels = inside & was
    hats = {bright: _top_hat(image, bright) for bright in (True, False)}
    kept = [
        float(hats[bright][rows, columns].max()) / contrast
        for rows, columns, bright, contrast in structure.lesions
    ]
    return {
        "vesselness": correlation,
        "false_vessels": float(now[nowhere].mean()) if nowhere.any() else nan,
        "missed_vessels": float(1 - _grown(now, SLACK)[vessels].mean()) if vessels.any() else nan,
        "lesions_kept": float(np.median(kept)) if kept else nan,
    }


STRUCTURE_METRICS = ("vesselness", "false_vessels", "missed_vessels", "lesions_kept")


def _top_hat(image: np.ndarray, bright: bool) -> np.ndarray:
    """Computes the top hat (bright) or black hat of green at the largest lesion's size, levels."""
    side = LARGEST + 2
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # The median removes noise, which is not a lesion.
    green = cv2.medianBlur(np.ascontiguousarray(image[..., 1]), 3)
    kind = cv2.MORPH_TOPHAT if bright else cv2.MORPH_BLACKHAT
    return cv2.morphologyEx(green, kind, disc).astype(np.float32)


def _long(mask: np.ndarray) -> np.ndarray:
    """Keeps the connected parts of a mask that are too large for a lesion."""
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    large = statistics[:, cv2.CC_STAT_AREA] > LARGEST**2
    return mask & large[parts]


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    box = np.ones((2 * by + 1, 2 * by + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), box) > 0
