"""Detection of bars that cut the FOV disc flat: black bars, and captions of any colour.

A bar is detected by a straight edge across the disc, by a straight edge across the whole picture
(if the bar is lit), or by lit pixels next to the disc. The search handles the bottom side; the
other sides are searched in a flipped or transposed picture. "Disc" means the lit FOV.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from vae.data.circle import Circle

_EDGE_SHARE = 0.8  # minimum share of the disc's chord, or of a row's parts, that steps at an edge
_EDGE_LEVELS = 10  # minimum step in grey levels, in one channel and one direction
_EDGE_RADIUS = 300  # approximate disc radius, in pixels, of the copy in which edges are searched
_MIN_CHORD = 0.3  # of the radius: shorter chords lie at the disc's own top and bottom
_LIT_SHARE = 0.6  # minimum lit share of a bar's pixels next to the disc; text covers the rest
_LIT_WIDTH = 0.05  # minimum share of a row that lies next to the disc, else the row is not judged
# An edge across the whole picture is searched in the mean grey levels of the parts of each row.
_PARTS = 16
_PART_LEVELS = 16  # minimum step in grey levels
_ABOVE_GRAIN = 3  # minimum step relative to the median step between rows


class Edge(NamedTuple):
    """A straight edge where a bar begins.

    Attributes:
      row: The last pixel row inside the edge.
      step: Channel (0 to 2) and sign (1 or -1) of the step across the disc; None for an edge across
        the whole picture, because fundus and surround step differently there.
    """

    row: int
    step: tuple[int, int] | None


def inner_box(edges: dict[str, Edge], height: int, width: int) -> tuple[int, int, int, int]:
    """Returns (top, bottom, left, right): the first and last row and column inside the edges."""
    top = height - 1 - edges["top"].row if "top" in edges else 0
    left = width - 1 - edges["left"].row if "left" in edges else 0
    bottom = edges["bottom"].row if "bottom" in edges else height - 1
    right = edges["right"].row if "right" in edges else width - 1
    return top, bottom, left, right


def nearest(*found: dict[str, Edge]) -> dict[str, Edge]:
    """Returns, for each side, the edge nearest to the middle among several sets of edges."""
    sides = {side for edges in found for side in edges}
    return {
        side: min((edges[side] for edges in found if side in edges), key=lambda edge: edge.row)
        for side in sides
    }


# Flip or transpose a picture so that the named side becomes the bottom.
_TURNED = {
    "bottom": lambda image: image,
    "top": lambda image: image[::-1],
    "right": lambda image: image.swapaxes(0, 1),
    "left": lambda image: image[:, ::-1].swapaxes(0, 1),
}


def _turned_circle(side: str, circle: Circle, height: int, width: int) -> Circle:
    """Returns the circle in the coordinates of `_TURNED[side](picture)`."""
    x, y, radius = circle
    return {
        "bottom": (x, y, radius),
        "top": (x, height - 1 - y, radius),
        "right": (y, x, radius),
        "left": (y, width - 1 - x, radius),
    }[side]


def picture_edges(small: np.ndarray) -> dict[str, Edge]:
    """Returns the edges across the whole picture by side; their rows are in the turned picture.

    A lit bar or frame differs from both the dark surround and the fundus, so nearly a whole row
    steps at once. `small` is the reduced photograph, uint8 [h, w, 3].
    """
    edges = {}
    for side, turn in _TURNED.items():
        turned = turn(small)
        first = turned.shape[0] // 2
        if turned.shape[0] - first < 3:
            continue
        # Averaging along a row suppresses grain and keeps an edge.
        size = (_PARTS, turned.shape[0] - first)
        means = cv2.resize(turned[first:], size, interpolation=cv2.INTER_AREA).astype(np.int16)
        steps = np.sort(np.abs(means[2:] - means[:-2]).max(axis=2), axis=1)
        step = steps[:, round((1 - _EDGE_SHARE) * _PARTS)]  # reached in _EDGE_SHARE of the parts
        found = np.flatnonzero(step >= max(_PART_LEVELS, _ABOVE_GRAIN * np.median(step)))
        if len(found):
            edges[side] = Edge(first + int(found[0]), None)
    return edges


def lit_edges(bright: np.ndarray, circle: Circle) -> dict[str, Edge]:
    """Returns the edges of bars lit next to the disc by side; rows are in the turned picture.

    A bar of the same colour as the fundus makes no step across the disc. Next to the disc, where
    the surround is dark, the bar is lit from its edge to the picture's border.

    Args:
      bright: bool [h, w], the lit pixels.
      circle: The FOV circle, in pixels.
    """
    edges = {}
    for side, turn in _TURNED.items():
        turned = turn(bright)
        x, y, radius = _turned_circle(side, circle, *bright.shape)
        height, width = turned.shape
        first = max(0, min(height, round(y)))
        rows = np.arange(first, height)
        outer = 1.02 * radius + 2
        half = np.sqrt(np.maximum(outer**2 - (rows - y) ** 2, 0.0))
        beside = np.abs(np.arange(width)[None] - x) > half[:, None]
        count = beside.sum(axis=1)
        share = (turned[first:] & beside).sum(axis=1) / np.maximum(count, 1)
        lit = (share >= _LIT_SHARE) & (count >= max(8, _LIT_WIDTH * width))
        dark = np.flatnonzero(~lit)
        # If every row is lit up to the middle of the disc, the surround glows: no bar.
        if len(dark) and len(rows) - 1 - dark[-1] >= 3:
            edges[side] = Edge(first + int(dark[-1]) - 1, None)
    return edges


def straight_edges(small: np.ndarray, circle: Circle) -> dict[str, Edge]:
    """Returns the straight edges across the disc by side; rows are in the turned picture."""
    # In a small picture, shading is as steep as an edge; enlarging flattens it.
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


def _bottom_edge(image: np.ndarray, circle: Circle) -> Edge | None:
    """Returns the uppermost straight edge across the lower half of a disc, or None.

    A bar's border steps in one direction along a whole row, whatever its colour and text; no
    structure of a fundus does.
    """
    x, y, radius = circle
    # The margin excludes the disc's own edge, which is also a step.
    inner = 0.97 * radius - 2
    first, last = max(0, round(y)), min(image.shape[0] - 2, math.floor(y + inner))
    if inner <= 0 or last - first < 3:
        return None
    rows = np.arange(first, last - 1)
    # A column counts if it lies inside the lower row's chord; the upper row's chord is longer.
    chord = inner**2 - (rows + 2 - y) ** 2
    columns = np.arange(image.shape[1])
    inside = (columns[None] - x) ** 2 <= chord[:, None]
    count = inside.sum(axis=1)
    part = image[first : last + 1].astype(np.int16)
    step = part[2:] - part[:-2]  # over two rows, because reduction blurs an edge over one
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
    return Edge(int(rows[edges[0]]), _STEPS[kind[edges[0]]])


_STEPS = [(channel, sign) for channel in range(3) for sign in (1, -1)]


def _last_row(image: np.ndarray, circle: Circle, edge: Edge, factor: float) -> int:
    """Returns the full-size last row inside an edge found in a copy reduced by `factor`."""
    if edge.step is None:  # The next row of the copy may contain a part of the bar.
        return math.floor((edge.row + 1) / factor) - 1
    channel, sign = edge.step
    reach = math.ceil(2 / factor)
    x, y, radius = circle
    first = max(0, round(edge.row / factor) - reach)
    last = min(image.shape[0] - 1, round((edge.row + 2) / factor) + reach)
    half = math.sqrt(max(1.0, (0.97 * radius) ** 2 - (last - y) ** 2))
    columns = slice(max(0, round(x - half)), max(1, round(x + half) + 1))
    part = image[first : last + 1, columns, channel].astype(np.int16)
    # A caption's text covers few columns, so the median ignores it.
    steps = sign * np.median(np.diff(part, axis=0), axis=1)
    row = int(np.argmax(steps))
    while row and steps[row - 1] > 0.1 * steps[row]:  # a blurred edge begins earlier
        row -= 1
    return first + row


def full_size_box(
    edges: dict[str, Edge], image: np.ndarray, circle: Circle, factor: float
) -> dict[str, int]:
    """Returns the full-size first or last row or column inside each edge of a reduced copy.

    Args:
      edges: The edges in the reduced copy, by side.
      image: uint8 [H, W, 3], the photograph.
      circle: The FOV circle in photograph pixels.
      factor: Size of the copy relative to the photograph, at most 1.
    """
    box = {}
    for side, edge in edges.items():
        turned = _TURNED[side](image)
        row = _last_row(turned, _turned_circle(side, circle, *image.shape[:2]), edge, factor)
        box[side] = row if side in ("bottom", "right") else turned.shape[0] - 1 - row
    return box
