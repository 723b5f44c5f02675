"""Whether anatomy was kept and none invented: vessels, and small bright and dark spots."""

import dataclasses

import cv2
import numpy as np
from skimage import filters, measure

# Standard deviations of the vessels' profiles, pixels of a photograph of some 2,000 pixels.
SIGMAS = (2, 3, 4)
# Below it the second derivatives of green, in [0, 1], count as noise. Fixed: by default it follows
# the image, and grain without vessels would be full of them.
GAMMA = 0.01
# The strongest pixels of a clean tile that count as its vessels.
STRONGEST = 0.06
# A vessel may move by so many pixels.
SLACK = 3
# Lesions: diameters in pixels, and least contrast in grey levels of green.
LARGEST, SMALLEST, CONTRAST = 15, 3, 10


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a clean tile has, found once.

    Attributes:
      vesselness: float64 [H, W].
      inside: bool [H, W], away from the field of view's edge.
      threshold: Of vesselness, above which a pixel is of a vessel.
      lesions: (rows, columns, bright, contrast in grey levels) of each small spot.
    """

    vesselness: np.ndarray
    inside: np.ndarray
    threshold: float
    lesions: list[tuple[np.ndarray, np.ndarray, bool, float]]


def vesselness(image: np.ndarray) -> np.ndarray:
    """Frangi et al. (1998) on green, where vessels are darkest: uint8 [H, W, 3] -> [H, W]."""
    green = image[..., 1] / 255
    return filters.frangi(green, sigmas=SIGMAS, black_ridges=True, gamma=GAMMA)


def find_structure(clean: np.ndarray, fov: np.ndarray) -> Structure:
    """The vessels and lesions of a clean tile.

    Args:
      clean: uint8 [H, W, 3].
      fov: bool [H, W].
    """
    size = 4 * max(SIGMAS) + 1
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
    """What of a clean tile's structure an image of the same place has.

    Args:
      structure: Of the clean tile.
      image: uint8 [H, W, 3].

    Returns:
      `vesselness`: correlation with the clean tile's; `false_vessels`: share of the pixels of no
      vessel that became one; `missed_vessels`: share of the vessels' pixels that are none any more;
      `lesions_kept`: median of the spots' contrast, 1 as in the clean tile; `lesions`: how many
      spots there are. NaN where there is nothing to compare.
    """
    ridges, inside, threshold = vesselness(image), structure.inside, structure.threshold
    nan = float("nan")
    if not inside.any() or threshold <= 0:
        return dict.fromkeys(FIGURES, nan)
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
        "lesions": float(len(kept)),
    }


FIGURES = ("vesselness", "false_vessels", "missed_vessels", "lesions_kept", "lesions")


def _top_hat(image: np.ndarray, bright: bool) -> np.ndarray:
    """What of green is smaller than the largest lesion, in grey levels above (below) its ground."""
    side = LARGEST + 2
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # A median of 3 pixels: grain is no lesion.
    green = cv2.medianBlur(np.ascontiguousarray(image[..., 1]), 3)
    kind = cv2.MORPH_TOPHAT if bright else cv2.MORPH_BLACKHAT
    return cv2.morphologyEx(green, kind, disc).astype(np.float32)


def _long(mask: np.ndarray) -> np.ndarray:
    """The connected parts of a mask that are too large for a lesion."""
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    large = statistics[:, cv2.CC_STAT_AREA] > LARGEST**2
    return mask & large[parts]


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    box = np.ones((2 * by + 1, 2 * by + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), box) > 0
