"""The field of view (FOV) of a fundus photograph: detection of the lit disc, and masks.

"Disc" means the lit FOV, not the optic disc. Pixel (row i, column j) has its centre at y=i, x=j.
"""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from vae.data.bars import (
    Edge,
    full_size_box,
    inner_box,
    lit_edges,
    nearest,
    picture_edges,
    straight_edges,
)
from vae.data.circle import MIN_ARC, Circle, fit_circle
from vae.data.errors import DataError

LIT = 25  # a pixel is lit if its brightest channel exceeds this grey level
MAX_LOST_SHARE = 0.03  # largest accepted share of the lit area outside the FOV

_SEARCH_SIDE = 720  # longer side, in pixels, of the copy in which the disc is searched
_CLEARLY = 0.01  # agreement by which another threshold must improve on the best so far
_MIN_AGREEMENT = 0.8  # minimum intersection over union of the lit region and the disc
_FULLY_LIT = 0.9  # a picture with no disc and this lit share is a tile or lacks a surround

_SECOND_DISC = 0.2  # relative area from which another disc is a second photograph


class NoSurroundError(DataError):
    """A picture without a dark surround, lit nearly everywhere: a tile, or a cropped photograph."""


@dataclasses.dataclass(frozen=True, slots=True)
class FieldOfView:
    """The FOV circle in photograph pixels, and the box to which bars or a crop cut it.

    Attributes:
      x: Column of the centre; may lie outside the photograph.
      y: Row of the centre; may lie outside the photograph.
      radius: In pixels; negative if the field of view is unknown.
      top: First row inside.
      bottom: Last row inside.
      left: First column inside.
      right: Last column inside.
    """

    x: float
    y: float
    radius: float
    top: float
    bottom: float
    left: float
    right: float

    @property
    def known(self) -> bool:
        """True if there is an FOV circle; without one, callers use the lit region."""
        return self.radius > 0

    def mask(self, height: int, width: int, y: int = 0, x: int = 0) -> np.ndarray:
        """Returns a mask of the window with origin (y, x), True inside the field of view.

        Returns:
          bool `[height, width]`.

        Raises:
          ValueError: The field of view is unknown.
        """
        if not self.known:
            raise ValueError("an unknown field of view has no mask; use fov_mask on the pixels")
        rows = np.arange(y, y + height, dtype=np.float64)[:, None]
        columns = np.arange(x, x + width, dtype=np.float64)[None, :]
        # Half the chord of each row, squared; negative above and below the disc.
        chord = self.radius**2 - (rows - self.y) ** 2
        chord[(rows < self.top) | (rows > self.bottom)] = -1.0
        inside = (columns - self.x) ** 2 <= chord
        return inside & (columns >= self.left) & (columns <= self.right)

    def scaled(self, factor: float) -> "FieldOfView":
        """Returns the field of view in the photograph resized by `factor`."""
        if not self.known:
            return self
        scaled = {name: (getattr(self, name) + 0.5) * factor - 0.5 for name in FIELDS}
        return FieldOfView(**scaled | {"radius": self.radius * factor})

    def rounded(self) -> "FieldOfView":
        """Rounds to 1/16 pixel, which float32 and CSV store exactly, so that masks never change."""
        return FieldOfView(*(round(value * 16) / 16 for value in dataclasses.astuple(self)))


FIELDS = tuple(field.name for field in dataclasses.fields(FieldOfView))
UNKNOWN = FieldOfView(*[-1.0] * len(FIELDS))


class Located(NamedTuple):
    """The result of `locate_fov`.

    Attributes:
      fov: The field of view.
      lost_share: Share of the lit area, without bars, that lies outside the FOV; 0 to 1.
    """

    fov: FieldOfView
    lost_share: float


def lit_region(image: np.ndarray) -> np.ndarray:
    """Returns the pixels whose brightest channel exceeds 25, with dark holes filled.

    Args:
      image: uint8 `[H, W, 3]`.

    Returns:
      bool `[H, W]`.
    """
    return _fill(image.max(axis=2) > LIT)


def fov_mask(fov: FieldOfView, image: np.ndarray, y: int = 0, x: int = 0) -> np.ndarray:
    """Returns the FOV mask of a tile: inside the FOV circle, or the lit region if it is unknown.

    Args:
      fov: The photograph's field of view.
      image: uint8 `[h, w, 3]`, the tile.
      y: The tile's top row in the photograph.
      x: The tile's left column in the photograph.

    Returns:
      bool `[h, w]`.
    """
    if fov.known:
        return fov.mask(image.shape[0], image.shape[1], y, x)
    return lit_region(image)


def find_fov(image: np.ndarray, name: str = "photograph") -> FieldOfView:
    """Finds the field of view of a fundus photograph as `locate_fov`; raises the same errors."""
    return locate_fov(image, name).fov


def locate_fov(
    image: np.ndarray, name: str = "photograph", max_lost_share: float = MAX_LOST_SHARE
) -> Located:
    """Finds the field of view of a fundus photograph and measures the lit area outside it.

    A circle is fitted robustly to the contour of the largest lit region: points on the picture's
    border, flat cuts, notches, tabs and shadows are outliers. Several thresholds are tried, because
    the surround's level differs between cameras. A threshold other than `LIT` is used only if its
    lit region agrees with its circle better by 0.01. Bars (see `vae.data.bars`) lie outside.

    Args:
      image: uint8 `[H, W, 3]`.
      name: The photograph's name in an error.
      max_lost_share: Largest share of the lit area that may lie outside the disc, 0 to 1.

    Returns:
      The field of view and the lost share. Where a bar cuts the disc flat, `top`, `bottom`, `left`
      and `right` are the first and last rows and columns of the fundus; otherwise those of the
      disc, clipped to the picture.

    Raises:
      NoSurroundError: There is no disc, and the picture is lit nearly everywhere.
      DataError: There is no disc (the picture is black, or the lit part is not round), or there are
        two discs, or too much of the lit area lies outside the disc.
    """
    height, width = image.shape[:2]
    factor = min(1.0, _SEARCH_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    level = small.max(axis=2)
    otsu, _ = cv2.threshold(level, 0, 255, cv2.THRESH_OTSU)

    best = None
    for threshold in (LIT, 12, 40, max(12, int(otsu / 2))):
        found = _search(small, level > threshold)
        if found is not None and (best is None or found.agreement > best.agreement + _CLEARLY):
            best = found
    if best is None or best.agreement < _MIN_AGREEMENT:
        lit_share = float(_fill(level > LIT).mean())
        raise (NoSurroundError if lit_share >= _FULLY_LIT else DataError)(
            f"{name}: no field of view found; expected a lit disc, or a part of one with"
            f" {MIN_ARC} degrees of its edge, on a dark surround; {_WAY_OUT}"
        )
    if _has_second_disc(small, best):
        raise DataError(
            f"{name}: shows two fields of view; expected one a picture: cut it into two files"
        )
    if best.lost_share > max_lost_share:
        raise DataError(
            f"{name}: {best.lost_share:.0%} of the lit area lies outside the disc that fits best,"
            f" more than max_lost_share {max_lost_share:g}; a stretched photograph has to be"
            f" resized until its field of view is round; {_WAY_OUT}"
        )
    return Located(_full_size(best, image, factor), best.lost_share)


_WAY_OUT = "--fov none takes the whole picture, --fov_mask DIR reads your own masks"


class _Found(NamedTuple):
    """The disc in the reduced copy.

    Attributes:
      circle: x, y, radius in pixels of the copy.
      edges: The edges of bars, by side.
      lit: bool [h, w], the lit region without the bars.
      others: bool [h, w], the other lit regions without the bars.
      agreement: Intersection over union of `lit` and the disc.
      lost_share: Share of `lit` outside the disc.
    """

    circle: Circle
    edges: dict[str, Edge]
    lit: np.ndarray
    others: np.ndarray
    agreement: float
    lost_share: float


def _search(small: np.ndarray, bright: np.ndarray) -> _Found | None:
    """Finds the disc in the lit pixels `bright` and the bars that cut it; None without a disc."""
    edges = picture_edges(small)
    lit, opened = _region_between(edges, bright)
    circle = fit_circle(lit)
    if circle is None:
        return None
    across = nearest(straight_edges(small, circle), lit_edges(bright, circle))
    if across:
        # Fit again without the bars, so that the contour is only the disc's.
        edges = nearest(across, edges)
        lit, opened = _region_between(edges, bright)
        circle = fit_circle(lit)
        if circle is None:
            return None
    inside = _disc(circle, lit)
    union = (lit | inside).sum()
    return _Found(
        circle,
        edges,
        lit,
        opened & ~lit,
        float((lit & inside).sum() / union),
        float((lit & ~inside).sum() / max(1, lit.sum())),
    )


def _region_between(edges: dict[str, Edge], bright: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `_largest_region` of the part of the picture inside the edges."""
    if not edges:
        return _largest_region(bright)
    top, bottom, left, right = inner_box(edges, *bright.shape)
    box = np.zeros_like(bright)
    box[top : bottom + 1, left : right + 1] = True
    return _largest_region(bright & box, box)


def _has_second_disc(small: np.ndarray, found: _Found) -> bool:
    """Returns True if another round region is large enough to be a second photograph."""
    if found.others.sum() < _SECOND_DISC * found.lit.sum():
        return False
    other = _search(small, found.others)
    return (
        other is not None
        and other.agreement >= _MIN_AGREEMENT
        and other.lit.sum() >= _SECOND_DISC * found.lit.sum()
    )


def _disc(circle: Circle, lit: np.ndarray) -> np.ndarray:
    """Returns the disc as bool [h, w], cut to the bounding box of `lit`."""
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    box = map(float, (rows[0], rows[-1], columns[0], columns[-1]))
    return FieldOfView(*circle, *box).mask(*lit.shape)


def _fill(lit: np.ndarray) -> np.ndarray:
    """Fills the dark regions that do not touch the border."""
    outside = np.zeros((lit.shape[0] + 2, lit.shape[1] + 2), np.uint8)
    outside[1:-1, 1:-1] = lit
    cv2.floodFill(outside, None, (0, 0), 2)
    return outside[1:-1, 1:-1] != 2


def _largest_region(
    bright: np.ndarray, box: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest connected region, without burned-in text and tabs on the disc's edge.

    Args:
      bright: bool [h, w].
      box: bool [h, w], a rectangle outside which nothing is bright; None for the whole picture.

    Returns:
      The largest region with its holes filled, and all regions; both bool [h, w].
    """
    opening = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    window = np.s_[:, :]
    if box is not None:
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Replicate the border, else the opening would round the corners of a disc cut by the border.
    part = bright[window].astype(np.uint8)
    padded = cv2.copyMakeBorder(part, 8, 8, 8, 8, cv2.BORDER_REPLICATE)
    opened = np.zeros(bright.shape, np.uint8)
    opened[window] = cv2.morphologyEx(padded, cv2.MORPH_OPEN, opening)[8:-8, 8:-8]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return np.zeros_like(bright), opened > 0
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return _fill(labels == largest), opened > 0


def _full_size(found: _Found, image: np.ndarray, factor: float) -> FieldOfView:
    """Scales the disc found in a reduced copy to the photograph; bars are located to the pixel."""
    height, width = image.shape[:2]
    x, y, radius = found.circle
    x, y, radius = (x + 0.5) / factor - 0.5, (y + 0.5) / factor - 0.5, radius / factor
    box = {
        "top": max(0, math.ceil(y - radius)),
        "bottom": min(height - 1, math.floor(y + radius)),
        "left": max(0, math.ceil(x - radius)),
        "right": min(width - 1, math.floor(x + radius)),
    }
    box |= full_size_box(found.edges, image, (x, y, radius), factor)
    return FieldOfView(x, y, radius, **{side: float(value) for side, value in box.items()})
