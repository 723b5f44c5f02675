"""Bars that cut a disc flat: captions of any colour, or black, on any side of a picture.

A bar begins at a straight edge across the disc or, if it is lit, across the whole picture; or it is
lit beside the disc. Each side is searched as the bottom of a picture that is turned.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from vae.data.circle import Circle

# A bar (a caption, or black) begins at a straight edge: across so large a share of the disc's
# chord one channel steps by so many grey levels in one direction.
_EDGE_SHARE = 0.8
_EDGE_LEVELS = 10
_EDGE_RADIUS = 300  # pixels, about, of the disc in the copy in which edges are searched
_MIN_CHORD = 0.3  # of the radius: shorter chords are the disc's own ends
_LIT_SHARE = 0.6  # of the pixels beside the disc, lit in a row of a bar; text takes the others
_LIT_WIDTH = 0.05  # of a row, the least that must lie beside the disc to be judged
_PARTS = 16  # of a row, whose means step where an edge runs across the whole picture, ...
_PART_LEVELS = 16  # ... by so many grey levels, and ...
_ABOVE_GRAIN = 3  # ... so many times as far as from most rows to the next


class Edge(NamedTuple):
    """A straight edge where a bar begins.

    Attributes:
      row: The last row inside.
      step: Channel and sign of its step across the disc; None of one across the whole picture,
        where fundus and surround step differently.
    """

    row: int
    step: tuple[int, int] | None


def inner_box(edges: dict[str, Edge], height: int, width: int) -> tuple[int, int, int, int]:
    """First and last row and column that the edges leave of a picture."""
    top = height - 1 - edges["top"].row if "top" in edges else 0
    left = width - 1 - edges["left"].row if "left" in edges else 0
    bottom = edges["bottom"].row if "bottom" in edges else height - 1
    right = edges["right"].row if "right" in edges else width - 1
    return top, bottom, left, right


def nearest(*found: dict[str, Edge]) -> dict[str, Edge]:
    """Of edges that were found in several ways, those nearest to the middle, by side."""
    sides = {side for edges in found for side in edges}
    return {
        side: min((edges[side] for edges in found if side in edges), key=lambda edge: edge.row)
        for side in sides
    }


# Turns a picture so that a side becomes its bottom.
_TURNED = {
    "bottom": lambda image: image,
    "top": lambda image: image[::-1],
    "right": lambda image: image.swapaxes(0, 1),
    "left": lambda image: image[:, ::-1].swapaxes(0, 1),
}


def _turned_circle(side: str, circle: Circle, height: int, width: int) -> Circle:
    """The circle in the picture that `_TURNED[side]` gives."""
    x, y, radius = circle
    return {
        "bottom": (x, y, radius),
        "top": (x, height - 1 - y, radius),
        "right": (y, x, radius),
        "left": (y, width - 1 - x, radius),
    }[side]


def picture_edges(small: np.ndarray) -> dict[str, Edge]:
    """The edges that run across the whole picture, by side; the row counts in the turned picture.

    A lit bar, or a frame, differs from the dark surround as well as from the fundus: nearly all of
    a row steps at once. No disc need be known.
    """
    edges = {}
    for side, turn in _TURNED.items():
        turned = turn(small)
        first = turned.shape[0] // 2
        if turned.shape[0] - first < 3:
            continue
        # Grain has no direction along a row, an edge has one for long.
        size = (_PARTS, turned.shape[0] - first)
        means = cv2.resize(turned[first:], size, interpolation=cv2.INTER_AREA).astype(np.int16)
        steps = np.sort(np.abs(means[2:] - means[:-2]).max(axis=2), axis=1)
        step = steps[:, round((1 - _EDGE_SHARE) * _PARTS)]  # so large in nearly all parts
        found = np.flatnonzero(step >= max(_PART_LEVELS, _ABOVE_GRAIN * np.median(step)))
        if len(found):
            edges[side] = Edge(first + int(found[0]), None)
    return edges


def lit_edges(bright: np.ndarray, circle: Circle) -> dict[str, Edge]:
    """The edges of bars that are lit beside the disc, by side; rows count in the turned picture.

    A bar of the fundus's own colour makes no step across the disc. But beside the disc a photograph
    is dark, and such a bar is lit, from the picture's border to where it begins.

    Args:
      bright: bool [h, w], the lit pixels.
      circle: The disc.
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
        # Lit up to the middle of the disc: no bar, but a surround that glows.
        if len(dark) and len(rows) - 1 - dark[-1] >= 3:
            edges[side] = Edge(first + int(dark[-1]) - 1, None)
    return edges


def straight_edges(small: np.ndarray, circle: Circle) -> dict[str, Edge]:
    """The edges across the disc, by side; the row counts in the turned picture."""
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


def _bottom_edge(image: np.ndarray, circle: Circle) -> Edge | None:
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
    return Edge(int(rows[edges[0]]), _STEPS[kind[edges[0]]])


_STEPS = [(channel, sign) for channel in range(3) for sign in (1, -1)]


def _last_row(image: np.ndarray, circle: Circle, edge: Edge, factor: float) -> int:
    """The last row inside, of an edge found in a copy reduced by `factor`."""
    if edge.step is None:  # The next row of the copy may hold a part of the bar.
        return math.floor((edge.row + 1) / factor) - 1
    channel, sign = edge.step
    reach = math.ceil(2 / factor)
    x, y, radius = circle
    first = max(0, round(edge.row / factor) - reach)
    last = min(image.shape[0] - 1, round((edge.row + 2) / factor) + reach)
    half = math.sqrt(max(1.0, (0.97 * radius) ** 2 - (last - y) ** 2))
    columns = slice(max(0, round(x - half)), max(1, round(x + half) + 1))
    part = image[first : last + 1, columns, channel].astype(np.int16)
    # A caption's text is in few of the columns; the median passes over it.
    steps = sign * np.median(np.diff(part, axis=0), axis=1)
    row = int(np.argmax(steps))
    while row and steps[row - 1] > 0.1 * steps[row]:  # where the edge is blurred
        row -= 1
    return first + row


def full_size_box(
    edges: dict[str, Edge], image: np.ndarray, circle: Circle, factor: float
) -> dict[str, int]:
    """The first or last row or column inside, by side, of edges found in a reduced copy.

    Args:
      edges: Of the copy.
      image: uint8 [H, W, 3], the photograph.
      circle: The disc in it.
      factor: By which the copy was reduced.
    """
    box = {}
    for side, edge in edges.items():
        turned = _TURNED[side](image)
        row = _last_row(turned, _turned_circle(side, circle, *image.shape[:2]), edge, factor)
        box[side] = row if side in ("bottom", "right") else turned.shape[0] - 1 - row
    return box
