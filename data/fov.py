"""The field of view (FOV) of a fundus photograph: the lit disc, found and masked.

Pixel (row i, column j) has its centre at y = i, x = j.
"""

import dataclasses
import math

import cv2
import numpy as np

from data.errors import DataError

LIT = 25  # a pixel is lit when its brightest channel exceeds this grey level

_SEARCH_SIDE = 720  # the disc is searched in a copy of at most this many pixels a side
_TRIALS = 300  # random circles tried; half the points being noise, 40 would do
_MIN_ARC = 60  # degrees of the circle that must be seen, on one side of it
_MIN_CORNERS = 20  # or so few, around it: a picture cropped to four dark corners
_CLEARLY = 0.01  # by how much another threshold must agree better
_MIN_AGREEMENT = 0.8  # overlap (intersection over union) of the lit region with the disc found


@dataclasses.dataclass(frozen=True, slots=True)
class FieldOfView:
    """A disc in photograph pixels, with the rows where the camera or a crop cut it flat.

    Attributes:
      x: Column of the centre (may lie outside the photograph).
      y: Row of the centre.
      radius: In pixels; negative where the field of view is unknown.
      top: First lit row.
      bottom: Last lit row.
    """

    x: float
    y: float
    radius: float
    top: float
    bottom: float

    @property
    def known(self) -> bool:
        """Whether there is a circle; without one the lit region takes its place."""
        return self.radius > 0

    def mask(self, height: int, width: int, y: int = 0, x: int = 0) -> np.ndarray:
        """Which pixels of the window with origin (y, x) lie inside.

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
        return (columns - self.x) ** 2 <= chord

    def scaled(self, factor: float) -> "FieldOfView":
        """The same field of view in the photograph resized by `factor`."""
        if not self.known:
            return self
        x, y, top, bottom = (
            (value + 0.5) * factor - 0.5 for value in (self.x, self.y, self.top, self.bottom)
        )
        return FieldOfView(x, y, self.radius * factor, top, bottom)

    def rounded(self) -> "FieldOfView":
        """To 1/16 pixel: a float32 and a short decimal keep that, so masks are the same forever."""
        return FieldOfView(*(round(value * 16) / 16 for value in dataclasses.astuple(self)))


UNKNOWN = FieldOfView(-1.0, -1.0, -1.0, -1.0, -1.0)


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
    """Finds the lit disc of a fundus photograph.

    A circle is fitted to the contour of the largest lit region, robustly: points on the picture's
    border, on flat cuts, notches, tabs and shadows are outvoted. The black surround's level
    differs between cameras, so several thresholds are tried; another than the usual one is taken
    where its lit region agrees clearly better with its circle.

    Args:
      image: uint8 `[H, W, 3]`.
      name: What to call the photograph in an error.

    Returns:
      The field of view. Where black bars cut the disc flat, `top` and `bottom` are the first and
      last lit rows; otherwise the disc's own, inside the picture.

    Raises:
      DataError: No disc: the picture is black, lit to every border, or its lit part is not round.
    """
    height, width = image.shape[:2]
    factor = min(1.0, _SEARCH_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    level = small.max(axis=2)
    otsu, _ = cv2.threshold(level, 0, 255, cv2.THRESH_OTSU)

    best, best_agreement, best_threshold = None, _MIN_AGREEMENT - _CLEARLY, LIT
    for threshold in (LIT, 12, 40, max(12, int(otsu / 2))):
        lit = _largest_region(level > threshold)
        circle = _fit_circle(lit)
        if circle is None:
            continue
        agreement = _agreement(lit, circle)
        if agreement > best_agreement + _CLEARLY:
            best, best_agreement, best_threshold = circle, agreement, threshold
    if best is None:
        raise DataError(
            f"{name}: no field of view found; expected a lit disc, or a part of one with"
            f" {_MIN_ARC} degrees of its edge, on a dark surround"
        )
    x, y, radius = best
    disc = FieldOfView(
        (x + 0.5) / factor - 0.5, (y + 0.5) / factor - 0.5, radius / factor, 0.0, height - 1.0
    )
    return _cut_flat(disc, image, best_threshold, margin=3 / factor)


def _fill(lit: np.ndarray) -> np.ndarray:
    """Fills dark regions that do not touch the border."""
    outside = np.zeros((lit.shape[0] + 2, lit.shape[1] + 2), np.uint8)
    outside[1:-1, 1:-1] = lit
    cv2.floodFill(outside, None, (0, 0), 2)
    return outside[1:-1, 1:-1] != 2


def _largest_region(lit: np.ndarray) -> np.ndarray:
    """The largest connected region, without burned-in text and the tabs on a disc's edge."""
    opening = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    # The border counts as lit, or the opening would round the corners of a disc that it cuts.
    padded = cv2.copyMakeBorder(lit.astype(np.uint8), 8, 8, 8, 8, cv2.BORDER_REPLICATE)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, opening)[8:-8, 8:-8]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return np.zeros_like(lit)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return _fill(labels == largest)


def _fit_circle(lit: np.ndarray) -> tuple[float, float, float] | None:
    """Fits (x, y, radius) to the contour of `lit`, or None where no circle holds most of it."""
    contours, _ = cv2.findContours(lit.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    points = max(contours, key=len)[:, 0, :].astype(np.float64)
    # Flat cuts and the picture's border lie on the bounding box, and an arc meets it in a few
    # points only.
    low, high = points.min(axis=0) + 1.5, points.max(axis=0) - 1.5
    points = points[((points > low) & (points < high)).all(axis=1)]
    if len(points) < 32:
        return None

    triples = points[np.random.default_rng(0).integers(len(points), size=(_TRIALS, 3))]
    circles = _circumcircles(triples)
    side = max(lit.shape)
    circles = circles[(circles[:, 2] > 0.1 * side) & (circles[:, 2] < 2.0 * side)]
    if not len(circles):
        return None
    sample = points[:: max(1, len(points) // 500)]
    errors = np.abs(_distances(sample, circles[:, None, :]))
    circle = circles[np.argmax((errors < _tolerance(circles[:, 2:])).sum(axis=1))]
    for _ in range(8):
        inside = points[np.abs(_distances(points, circle)) < _tolerance(circle[2])]
        if len(inside) < 32:
            return None
        circle = _gauss_newton(inside, circle)
    distances = _distances(points, circle)
    on_circle = np.abs(distances) < _tolerance(circle[2])
    offsets = points[on_circle] - circle[:2]
    seen = 3 * np.unique(np.degrees(np.arctan2(offsets[:, 1], offsets[:, 0])) // 3)
    all_around = np.diff(np.append(seen, seen[0] + 360)).max() < 180
    if 3 * len(seen) < (_MIN_CORNERS if all_around else _MIN_ARC) or on_circle.mean() < 0.4:
        return None
    # A contour runs through the centres of the outermost lit pixels, half a pixel inside.
    return float(circle[0]), float(circle[1]), float(circle[2]) + 0.5


def _tolerance(radius: np.ndarray | float) -> np.ndarray | float:
    return np.maximum(1.5, 0.006 * radius)


def _distances(points: np.ndarray, circle: np.ndarray) -> np.ndarray:
    """Signed distance of each point to the circle (x, y, radius), in pixels."""
    return np.hypot(points[:, 0] - circle[..., 0], points[:, 1] - circle[..., 1]) - circle[..., 2]


def _circumcircles(triples: np.ndarray) -> np.ndarray:
    """The circles through three points each: `[N, 3, 2]` -> `[M, 3]` of x, y, radius."""
    a, b, c = triples[:, 0], triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0]
    area = 2.0 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    proper = np.abs(area) > 1e-6
    a, b, c, area = a[proper], b[proper], c[proper], area[proper]
    bb, cc = (b**2).sum(axis=1), (c**2).sum(axis=1)
    x = (c[:, 1] * bb - b[:, 1] * cc) / area
    y = (b[:, 0] * cc - c[:, 0] * bb) / area
    return np.stack([a[:, 0] + x, a[:, 1] + y, np.hypot(x, y)], axis=1)


def _gauss_newton(points: np.ndarray, circle: np.ndarray) -> np.ndarray:
    """One step towards the circle of least squared distance."""
    offsets = points - circle[:2]
    lengths = np.maximum(np.hypot(offsets[:, 0], offsets[:, 1]), 1e-9)
    jacobian = np.column_stack([-offsets / lengths[:, None], -np.ones(len(points))])
    step, *_ = np.linalg.lstsq(jacobian, lengths - circle[2], rcond=None)
    return circle - step


def _agreement(lit: np.ndarray, circle: tuple[float, float, float]) -> float:
    """Intersection over union of the lit region and the disc, cut to the region's bounding box."""
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    x, y, radius = circle
    disc = FieldOfView(x, y, radius, float(rows[0]), float(rows[-1])).mask(*lit.shape)
    disc[:, : columns[0]] = False
    disc[:, columns[-1] + 1 :] = False
    return float((lit & disc).sum() / (lit | disc).sum())


def _cut_flat(disc: FieldOfView, image: np.ndarray, threshold: int, margin: float) -> FieldOfView:
    """Sets `top` and `bottom`: the disc's own rows, or the lit ones where a bar cuts it flat."""
    height, width = image.shape[:2]
    top = max(0, math.ceil(disc.y - disc.radius))
    bottom = min(height - 1, math.floor(disc.y + disc.radius))
    rows = np.arange(top, bottom + 1)
    half = np.sqrt(np.maximum(disc.radius**2 - (rows - disc.y) ** 2, 0.0))
    first = np.maximum(np.ceil(disc.x - half), 0).astype(int)
    last = np.minimum(np.floor(disc.x + half), width - 1).astype(int)
    in_picture = first <= last  # the sides of the picture may cut the disc's top and bottom off
    rows, first, last = rows[in_picture], first[in_picture], last[in_picture]
    top, bottom = int(rows[0]), int(rows[-1])

    def lit_share(i: int) -> float:
        chord = image[rows[i], first[i] : last[i] + 1]
        return float((chord.max(axis=1) > threshold).mean())

    def dark_rows(order: range) -> int:
        """How many rows from an end a straight cut has taken; 0 where there is none."""
        dark = next((n for n, i in enumerate(order) if lit_share(i) >= 0.5), 0)
        reach = math.ceil(margin)
        if dark <= max(margin, 0.01 * disc.radius) or dark + reach >= len(order):
            return 0
        # A shadow's edge is curved: along it the lit share grows slowly. A cut's jumps.
        jumps = lit_share(order[dark - reach]) < 0.1 and lit_share(order[dark + reach]) > 0.7
        return dark if jumps else 0

    above = dark_rows(range(len(rows)))
    below = dark_rows(range(len(rows) - 1, -1, -1))
    return dataclasses.replace(disc, top=float(top + above), bottom=float(bottom - below))
