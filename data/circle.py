"""Robust fit of a circle to the outline of a region: random sampling, then Gauss-Newton."""

import cv2
import numpy as np

_TRIALS = 300  # random circles tried; 40 suffice if half of the points are noise
MIN_ARC = 60  # minimum visible arc in degrees, if it lies on one side of the circle
_MIN_CORNERS = 20  # minimum in degrees, if spread around: a crop that leaves four dark corners

Circle = tuple[float, float, float]  # column and row of the centre, radius; pixels


def fit_circle(lit: np.ndarray) -> Circle | None:
    """Fits (x, y, radius), in pixels, to the longest contour of `lit`, bool [H, W].

    Returns None if under 40% of the contour's points, or an arc below `MIN_ARC`, lie on a circle.
    """
    contours, _ = cv2.findContours(lit.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    points = max(contours, key=len)[:, 0, :].astype(np.float64)
    # Flat cuts and the picture's border lie on the bounding box; an arc has few points there.
    low, high = points.min(axis=0) + 1.5, points.max(axis=0) - 1.5
    points = points[((points > low) & (points < high)).all(axis=1)]
    if len(points) < 32:
        return None

    triples = points[np.random.default_rng(0).integers(len(points), size=(_TRIALS, 3))]
    circles = _circumcircles(triples)
    side = max(lit.shape)
    smallest, largest = 0.1 * side, 2.0 * side
    circles = circles[(circles[:, 2] > smallest) & (circles[:, 2] < largest)]
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
    if not len(offsets) or not smallest < circle[2] < largest:  # diverged
        return None
    seen = 3 * np.unique(np.degrees(np.arctan2(offsets[:, 1], offsets[:, 0])) // 3)
    all_around = np.diff(np.append(seen, seen[0] + 360)).max() < 180
    if 3 * len(seen) < (_MIN_CORNERS if all_around else MIN_ARC) or on_circle.mean() < 0.4:
        return None
    # The contour joins the centres of the outermost lit pixels, half a pixel inside the edge.
    return float(circle[0]), float(circle[1]), float(circle[2]) + 0.5


def _tolerance(radius: np.ndarray | float) -> np.ndarray | float:
    return np.maximum(1.5, 0.006 * radius)


def _distances(points: np.ndarray, circle: np.ndarray) -> np.ndarray:
    """Returns the signed distance of each point to the circle (x, y, radius), in pixels."""
    return np.hypot(points[:, 0] - circle[..., 0], points[:, 1] - circle[..., 1]) - circle[..., 2]


def _circumcircles(triples: np.ndarray) -> np.ndarray:
    """Returns the circle (x, y, radius) through each triple of points: `[N, 3, 2]` -> `[M, 3]`."""
    a, b, c = triples[:, 0], triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0]
    area = 2.0 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    proper = np.abs(area) > 1e-6
    a, b, c, area = a[proper], b[proper], c[proper], area[proper]
    bb, cc = (b**2).sum(axis=1), (c**2).sum(axis=1)
    x = (c[:, 1] * bb - b[:, 1] * cc) / area
    y = (b[:, 0] * cc - c[:, 0] * bb) / area
    return np.stack([a[:, 0] + x, a[:, 1] + y, np.hypot(x, y)], axis=1)


def _gauss_newton(points: np.ndarray, circle: np.ndarray) -> np.ndarray:
    """Returns the circle after one Gauss-Newton step of the least-squares distance fit."""
    offsets = points - circle[:2]
    lengths = np.maximum(np.hypot(offsets[:, 0], offsets[:, 1]), 1e-9)
    jacobian = np.column_stack([-offsets / lengths[:, None], -np.ones(len(points))])
    step, *_ = np.linalg.lstsq(jacobian, lengths - circle[2], rcond=None)
    return circle - step
