"""The field of view (FOV) of a fundus photograph: the lit disc, found and masked.

Pixel (row i, column j) has its centre at y = i, x = j.
"""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from data.errors import DataError

LIT = 25  # a pixel is lit when its brightest channel exceeds this grey level
MAX_LOST_SHARE = 0.05  # share of the lit area outside the FOV above which a photograph is refused

_SEARCH_SIDE = 720  # the disc is searched in a copy of at most this many pixels a side
_TRIALS = 300  # random circles tried; half the points being noise, 40 would do
_MIN_ARC = 60  # degrees of the circle that must be seen, on one side of it
_MIN_CORNERS = 20  # or so few, around it: a picture cropped to four dark corners
_CLEARLY = 0.01  # by how much another threshold must agree better
_MIN_AGREEMENT = 0.8  # overlap (intersection over union) of the lit region with the disc found
_FULLY_LIT = 0.9  # lit share from which a picture without a disc is a tile, with no surround

# A bar (a caption, or black) begins at a straight edge: across so large a share of the disc's
# chord one channel steps by so many grey levels in one direction.
_EDGE_SHARE = 0.8
_EDGE_LEVELS = 10
_EDGE_RADIUS = 300  # pixels, about, of the disc in the copy in which edges are searched
_MIN_CHORD = 0.3  # of the radius: shorter chords are the disc's own ends
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
            f" {_MIN_ARC} degrees of its edge, on a dark surround; {_WAY_OUT}"
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
      edges: Rows and columns of the cuts, see `_straight_edges`.
      lit: bool [h, w], the lit region without the bars.
      others: bool [h, w], lit pixels of other regions, without the bars.
      agreement: Intersection over union of `lit` and the disc.
      lost_share: Share of `lit` outside the disc.
    """

    circle: tuple[float, float, float]
    edges: dict[str, "_Edge"]
    lit: np.ndarray
    others: np.ndarray
    agreement: float
    lost_share: float


class _Edge(NamedTuple):
    """A straight edge across the disc: its last row inside, and how the step looks."""

    row: int
    channel: int
    sign: int


def _search(small: np.ndarray, bright: np.ndarray) -> _Found | None:
    """Finds the disc whose pixels are `bright`, with the bars that cut it, or None."""
    lit, opened = _largest_region(bright)
    circle = _fit_circle(lit)
    if circle is None:
        return None
    edges = _straight_edges(small, circle)
    if edges:
        # Without the bars the contour is the disc's alone.
        height, width = lit.shape
        top, bottom, left, right = _box(edges, height, width)
        box = np.zeros_like(lit)
        box[top : bottom + 1, left : right + 1] = True
        lit, opened = _largest_region(bright & box, box)
        circle = _fit_circle(lit)
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


def _disc(circle: tuple[float, float, float], lit: np.ndarray) -> np.ndarray:
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
    if not len(offsets):  # the iteration has diverged
        return None
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


def _box(edges: dict[str, _Edge], height: int, width: int) -> tuple[int, int, int, int]:
    """First and last row and column that the edges leave of a picture."""
    top = height - 1 - edges["top"].row if "top" in edges else 0
    left = width - 1 - edges["left"].row if "left" in edges else 0
    bottom = edges["bottom"].row if "bottom" in edges else height - 1
    right = edges["right"].row if "right" in edges else width - 1
    return top, bottom, left, right


# Turns a picture so that a side becomes its bottom.
_TURNED = {
    "bottom": lambda image: image,
    "top": lambda image: image[::-1],
    "right": lambda image: image.swapaxes(0, 1),
    "left": lambda image: image[:, ::-1].swapaxes(0, 1),
}


def _turned_circle(
    side: str, circle: tuple[float, float, float], height: int, width: int
) -> tuple[float, float, float]:
    """The circle in the picture that `_TURNED[side]` gives."""
    x, y, radius = circle
    return {
        "bottom": (x, y, radius),
        "top": (x, height - 1 - y, radius),
        "right": (y, x, radius),
        "left": (y, width - 1 - x, radius),
    }[side]


def _straight_edges(small: np.ndarray, circle: tuple[float, float, float]) -> dict[str, _Edge]:
    """The edges at which bars begin, by side; the row counts in the turned picture."""
    # In a small picture shading is as steep as an edge. Enlarged, it is flat again.
    zoom = max(1, round(_EDGE_RADIUS / circle[2]))
    height, width = small.shape[:2]
    large, size = small, (zoom * width, zoom * height)
    if zoom > 1:
        large = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)
    x, y, radius = circle
    circle = (zoom * x + (zoom - 1) / 2, zoom * y + (zoom - 1) / 2, zoom * radius)
    edges = {}
    for side, turn in _TURNED.items():
        edge = _bottom_edge(turn(large), _turned_circle(side, circle, size[1], size[0]))
        if edge is not None:
            edges[side] = edge._replace(row=edge.row // zoom)
    return edges


def _bottom_edge(image: np.ndarray, circle: tuple[float, float, float]) -> _Edge | None:
    """The uppermost straight edge across the lower half of a disc, or None.

    No structure of a fundus steps in one direction along a whole row; a bar's border does, whatever
    its colour and its text.
    """
    x, y, radius = circle
    # Away from the disc's own edge, which is a step, too.
    inner = 0.97 * radius - 2
    first, last = max(0, round(y)), min(image.shape[0] - 2, math.floor(y + inner))
    if inner <= 0 or last - first < 3:
        return None
    rows = np.arange(first, last - 1)
    # Both rows of a difference lie inside the chord of the lower one.
    chord = inner**2 - (rows + 2 - y) ** 2
    columns = np.arange(image.shape[1])
    inside = (columns[None] - x) ** 2 <= chord[:, None]
    count = inside.sum(axis=1)
    part = image[first : last + 1].astype(np.int16)
    step = part[2:] - part[:-2]  # over two rows: the reduced copy spreads an edge over one
    best = np.zeros(len(rows))
    kind = np.zeros(len(rows), int)
    for number, (channel, sign) in enumerate(_STEPS):
        stepping = (sign * step[..., channel] >= _EDGE_LEVELS) & inside
        share = stepping.sum(axis=1) / np.maximum(count, 1)
        kind = np.where(share > best, number, kind)
        best = np.maximum(best, share)
    edges = np.flatnonzero((best >= _EDGE_SHARE) & (count >= max(8, _MIN_CHORD * radius)))
    if not len(edges):
        return None
    channel, sign = _STEPS[kind[edges[0]]]
    return _Edge(int(rows[edges[0]]), channel, sign)


_STEPS = [(channel, sign) for channel in range(3) for sign in (1, -1)]


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
    for side, edge in found.edges.items():
        turned = _TURNED[side](image)
        circle = _turned_circle(side, (x, y, radius), height, width)
        row = _last_row(turned, circle, edge, factor)
        box[side] = row if side in ("bottom", "right") else turned.shape[0] - 1 - row
    return FieldOfView(x, y, radius, **{side: float(value) for side, value in box.items()})


def _last_row(
    image: np.ndarray, circle: tuple[float, float, float], edge: _Edge, factor: float
) -> int:
    """The last row inside, of an edge found in a copy reduced by `factor`."""
    reach = math.ceil(2 / factor)
    x, y, radius = circle
    first = max(0, round(edge.row / factor) - reach)
    last = min(image.shape[0] - 1, round((edge.row + 2) / factor) + reach)
    half = math.sqrt(max(1.0, (0.97 * radius) ** 2 - (last - y) ** 2))
    columns = slice(max(0, round(x - half)), max(1, round(x + half) + 1))
    part = image[first : last + 1, columns, edge.channel].astype(np.int16)
    # A caption's text is in few of the columns; the median passes over it.
    steps = edge.sign * np.median(np.diff(part, axis=0), axis=1)
    row = int(np.argmax(steps))
    while row and steps[row - 1] > 0.1 * steps[row]:  # where the edge is blurred
        row -= 1
    return first + row
