"""The field of view (FOV) of a fundus photograph: the lit disc, found and masked.

Pixel (row i, column j) has its centre at y = i, x = j.
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

LIT = 25  # a pixel is lit when its brightest channel exceeds this grey level
MAX_LOST_SHARE = 0.03  # share of the lit area outside the FOV above which a photograph is refused

_SEARCH_SIDE = 720  # the disc is searched in a copy of at most this many pixels a side
_CLEARLY = 0.01  # by how much another threshold must agree better
_MIN_AGREEMENT = 0.8  # overlap (intersection over union) of the lit region with the disc found
_FULLY_LIT = 0.9  # lit share from which a picture without a disc is a tile, with no surround

_SECOND_DISC = 0.2  # area of another disc, as a share of the largest, that is a second photograph


class NoSurroundError(DataError):
    """A picture is lit nearly everywhere: a tile, or a photograph that has no dark surround."""


@dataclasses.dataclass(frozen=True, slots=True)
class FieldOfView:
    """A disc in photograph pixels, with the rows and columns where a bar or a crop cuts it flat.

    Attributes:
      x: Column of the centre (may lie outside the photograph).
      y: Row of the centre.
      radius: In pixels; negative where the field of view is unknown.
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
        """False where there is no disc; the lit region takes its place."""
        return self.radius > 0

    def mask(self, height: int, width: int, y: int = 0, x: int = 0) -> np.ndarray:
        """Marks the pixels of the window with origin (y, x) that lie inside.

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
        """The same field of view in the photograph resized by `factor`."""
        if not self.known:
            return self
        scaled = {name: (getattr(self, name) + 0.5) * factor - 0.5 for name in FIELDS}
        return FieldOfView(**scaled | {"radius": self.radius * factor})

    def rounded(self) -> "FieldOfView":
        """To 1/16 pixel: a float32 and a short decimal keep that, so masks are the same forever."""
        return FieldOfView(*(round(value * 16) / 16 for value in dataclasses.astuple(self)))


FIELDS = tuple(field.name for field in dataclasses.fields(FieldOfView))
UNKNOWN = FieldOfView(*[-1.0] * len(FIELDS))


class Located(NamedTuple):
    """A field of view that was found.

    Attributes:
      fov: The field of view.
      lost_share: Share of the lit area, bars left out, that lies outside it; 0 to 1.
    """

    fov: FieldOfView
    lost_share: float


def lit_region(image: np.ndarray) -> np.ndarray:
    """Pixels whose brightest channel exceeds 25, with dark holes in them filled.

    Args:
      image: uint8 `[H, W, 3]`.

    Returns:
      bool `[H, W]`.
    """
    return _fill(image.max(axis=2) > LIT)


def fov_mask(fov: FieldOfView, image: np.ndarray, y: int = 0, x: int = 0) -> np.ndarray:
    """The field of view of a tile: the photograph's disc, or the tile's lit region if unknown.

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
    """Finds the lit disc of a fundus photograph; see `locate_fov`."""
    return locate_fov(image, name).fov


def locate_fov(
    image: np.ndarray, name: str = "photograph", max_lost_share: float = MAX_LOST_SHARE
) -> Located:
    """Finds the lit disc of a fundus photograph and measures how much of the light it leaves out.

    A circle is fitted to the contour of the largest lit region, robustly: points on the picture's
    border, on flat cuts, notches, tabs and shadows are outvoted. The surround's level differs
    between cameras, so several thresholds are tried; another than the usual one is taken where its
    lit region agrees clearly better with its circle. Bars, of any colour and on any side, begin at
    a straight edge across the disc: what lies beyond the edge is outside.

    Args:
      image: uint8 `[H, W, 3]`.
      name: The photograph's name in an error.
      max_lost_share: Largest share of the lit area that may lie outside the disc, 0 to 1.

    Returns:
      The field of view and the share lost. Where a bar cuts the disc flat, `top`, `bottom`, `left`
      and `right` are the first and last rows and columns of the fundus; otherwise the disc's own,
      inside the picture.

    Raises:
      NoSurroundError: There is no disc, and the picture is lit nearly everywhere.
      DataError: There is no disc: the picture is black, or its lit part is not round; or there are
        two discs; or too much of the lit area lies outside.
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


_WAY_OUT = "--fov none takes the whole picture, --fov_mask DIR a mask of yours"


class _Found(NamedTuple):
    """A disc in the reduced copy.

    Attributes:
      circle: x, y, radius.
      edges: Rows and columns of the cuts, see `straight_edges`.
      lit: bool [h, w], the lit region without the bars.
      others: bool [h, w], lit pixels of other regions, without the bars.
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
    """Finds the disc whose pixels are `bright`, with the bars that cut it, or None."""
    edges = picture_edges(small)
    lit, opened = _region_between(edges, bright)
    circle = fit_circle(lit)
    if circle is None:
        return None
    across = nearest(straight_edges(small, circle), lit_edges(bright, circle))
    if across:
        # Without the bars the contour is the disc's alone.
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
    """As `_largest_region`, of the part of the picture that the edges leave."""
    if not edges:
        return _largest_region(bright)
    top, bottom, left, right = inner_box(edges, *bright.shape)
    box = np.zeros_like(bright)
    box[top : bottom + 1, left : right + 1] = True
    return _largest_region(bright & box, box)


def _has_second_disc(small: np.ndarray, found: _Found) -> bool:
    """Looks for another round region, large enough to be a photograph of its own."""
    if found.others.sum() < _SECOND_DISC * found.lit.sum():
        return False
    other = _search(small, found.others)
    return (
        other is not None
        and other.agreement >= _MIN_AGREEMENT
        and other.lit.sum() >= _SECOND_DISC * found.lit.sum()
    )


def _disc(circle: Circle, lit: np.ndarray) -> np.ndarray:
    """The disc as bool [h, w], cut to the bounding box of `lit`."""
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    box = map(float, (rows[0], rows[-1], columns[0], columns[-1]))
    return FieldOfView(*circle, *box).mask(*lit.shape)


def _fill(lit: np.ndarray) -> np.ndarray:
    """Fills dark regions that do not touch the border."""
    outside = np.zeros((lit.shape[0] + 2, lit.shape[1] + 2), np.uint8)
    outside[1:-1, 1:-1] = lit
    cv2.floodFill(outside, None, (0, 0), 2)
    return outside[1:-1, 1:-1] != 2


def _largest_region(
    bright: np.ndarray, box: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The largest connected region, without burned-in text and the tabs on a disc's edge.

    Args:
      bright: bool [h, w].
      box: bool [h, w], a rectangle outside of which nothing is bright; None for the whole picture.

    Returns:
      The region with its holes filled, and all regions; bool [h, w].
    """
    opening = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    window = np.s_[:, :]
    if box is not None:
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # The border counts as lit, or the opening would round the corners of a disc that it cuts.
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
    """The disc that was found in a reduced copy, in the photograph; its cuts to the row."""
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
