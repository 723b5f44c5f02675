"""A model of bounded receptive field, applied to photographs of any size in windows, with no seam.

All windows have one size, lie inside the photograph and touch its border where it ends. The padding
of a convolution therefore falls on the same pixels as without windows. The part of a window that is
kept is at least a halo away from every window edge *inside* the photograph. Encoding and decoding
are separate halves, and the latents of the whole photograph are assembled between them. Each half
needs only its own halo, and memory holds one batch of windows and the input and output arrays.

The callables take and return batches. All calls for one photograph have the same shape, and the
sides of windows come in steps, so a jitted callable compiles for few shapes over all photographs.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vae.inference.batches import filled

# Sides of windows, pixels. Larger windows compute less twice but take more memory; above 1024, CPU
# caches lose more than the smaller share of halos gains.
LARGEST = 1024
STEP = 64

# Calls whose results are not fetched yet: the device computes while the process copies.
_IN_FLIGHT = 2

Half = Callable[[np.ndarray], Any]


def window_side(length: int, halo: int, *, largest: int, step: int) -> int:
    """Returns the side of windows that cover an axis with little computed twice.

    Args:
      length: Length of the axis.
      halo: Length that is not kept at a window's edges inside the axis.
      largest: Largest side, unless it would leave less than half of a window to keep.
      step: Sides are multiples of it, unless the whole axis is shorter.

    Returns:
      The side, at most `length`.
    """
    largest = max(largest, 4 * halo + step)
    if length <= largest and length % step == 0:
        return length
    count, side = 1, largest + 1
    while side > largest:
        count += 1
        side = -(-(length + 2 * halo * (count - 1)) // (count * step)) * step
    return min(side, length)


def window_origins(length: int, window: int, halo: int) -> list[int]:
    """Returns where windows start along one axis; their kept parts cover the axis.

    Args:
      length: Length of the axis, at least `window`.
      window: Length of a window.
      halo: Length that is not kept at a window's edges inside the axis.

    Returns:
      Ascending origins: the first window starts at 0, the last ends at `length`.

    Raises:
      ValueError: Nothing of a window would be kept.
    """
    if length > window and window <= 2 * halo:
        raise ValueError(f"a window of {window} keeps nothing inside a halo of {halo} on each side")
    return [*range(0, length - window, max(window - 2 * halo, 1)), length - window]


def pad_to_factor(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeats the last row and column of [H, W, C] until both sides are divisible by `factor`."""
    height, width = image.shape[:2]
    if height % factor == 0 and width % factor == 0:
        return image
    return np.pad(image, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")


def encode_windows(
    encode: Half,
    image: np.ndarray,
    *,
    factor: int,
    halo: int,
    window: int | None = None,
    batch: int = 1,
) -> Any:
    """Encodes an image in windows; the result equals encoding it whole.

    Args:
      encode: [batch, h, w, C] -> [batch, h/factor, w/factor, D] or a tree of such arrays, for any
        h and w divisible by `factor`; its output at a position depends on that position's own
        patch of `factor` x `factor` pixels and on at most `halo` pixels around it.
      image: [H, W, C], any dtype `encode` takes; sides not divisible by `factor` are edge-padded.
      factor: Pixels per latent position and axis.
      halo: Halo in pixels.
      window: Side of a window in pixels, divisible by `factor`; None to choose it for the image.
      batch: Windows per call.

    Returns:
      Numpy [ceil(H/factor), ceil(W/factor), D], or a tree of them.

    Raises:
      ValueError: `window` is not divisible by `factor`, or nothing of it would be kept.
    """
    image = pad_to_factor(image, factor)
    halo = -(-halo // factor)
    shape = _window_shape(image.shape[0] // factor, image.shape[1] // factor, halo, factor, window)
    return _apply(encode, image, unit_in=factor, unit_out=1, halo=halo, shape=shape, batch=batch)


def decode_windows(
    decode: Half,
    latents: np.ndarray,
    *,
    factor: int,
    halo: int,
    window: int | None = None,
    batch: int = 1,
) -> np.ndarray:
    """Decodes latents in windows; the result equals decoding them whole.

    Args:
      decode: [batch, h, w, D] -> [batch, h*factor, w*factor, C]; a pixel depends on its own latent
        position and on at most `halo` positions around it.
      latents: [h, w, D].
      factor: Pixels per latent position and axis.
      halo: Halo in latent positions.
      window: Side of a window in pixels, divisible by `factor`; None to choose it for the image.
      batch: Windows per call.

    Returns:
      [h*factor, w*factor, C].

    Raises:
      ValueError: `window` is not divisible by `factor`, or nothing of it would be kept.
    """
    shape = _window_shape(*latents.shape[:2], halo, factor, window)
    return _apply(decode, latents, unit_in=1, unit_out=factor, halo=halo, shape=shape, batch=batch)


def filter_windows(
    function: Half,
    image: np.ndarray,
    *,
    factor: int,
    halo: int,
) -> np.ndarray:
    """Filters an image in windows; the result equals filtering it whole.

    Args:
      function: [1, h, w, C] -> [1, h, w, D], for any h and w divisible by `factor`; its
        output at a pixel depends on that pixel's own patch of `factor` x `factor` and on at most
        `halo` pixels around it.
      image: [H, W, C]; sides not divisible by `factor` are edge-padded.
      factor: Windows begin at multiples of it.
      halo: Halo in pixels.

    Returns:
      Numpy [H, W, D].
    """
    height, width = image.shape[:2]
    image = pad_to_factor(image, factor)
    halo = -(-halo // factor)
    shape = _window_shape(image.shape[0] // factor, image.shape[1] // factor, halo, factor, None)
    made = _apply(function, image, unit_in=factor, unit_out=factor, halo=halo, shape=shape, batch=1)
    return made[:height, :width]


def _window_shape(
    height: int, width: int, halo: int, factor: int, window: int | None
) -> tuple[int, int]:
    """Returns height and width of all windows, in latent positions; `window` is in pixels."""
    if window is None:
        limits = {"largest": LARGEST // factor, "step": max(STEP // factor, 1)}
        return window_side(height, halo, **limits), window_side(width, halo, **limits)
    if window <= 0 or window % factor:
        raise ValueError(f"the window must be a positive multiple of {factor}, got {window}")
    return min(window // factor, height), min(window // factor, width)


def _apply(
    function: Half,
    array: np.ndarray,
    *,
    unit_in: int,
    unit_out: int,
    halo: int,
    shape: tuple[int, int],
    batch: int,
) -> Any:
    """Applies a half to all windows. Halo and shape are in latent positions, units in pixels."""
    (height, width), (h, w) = (side // unit_in for side in array.shape[:2]), shape
    corners = [
        (y, x) for y in window_origins(height, h, halo) for x in window_origins(width, w, halo)
    ]

    def cut(y: int, x: int) -> np.ndarray:
        return array[_span(y, h, unit_in), _span(x, w, unit_in)]

    output = None
    for (y, x), result in map_windows(function, cut, corners, batch):
        if output is None:
            output = jax.tree.map(
                lambda r: np.empty((height * unit_out, width * unit_out, *r.shape[2:]), r.dtype),
                result,
            )
        top, left = halo * (y > 0), halo * (x > 0)
        bottom, right = h - halo * (y + h < height), w - halo * (x + w < width)
        rows, columns = _span(top, bottom - top, unit_out), _span(left, right - left, unit_out)
        there = _span(y + top, bottom - top, unit_out), _span(x + left, right - left, unit_out)
        for whole, part in zip(jax.tree.leaves(output), jax.tree.leaves(result), strict=True):
            whole[there] = part[rows, columns]
    return output


def map_windows(
    function: Half,
    cut: Callable[[int, int], np.ndarray],
    corners: Sequence[tuple[int, int]],
    batch: int,
) -> Iterator[tuple[tuple[int, int], Any]]:
    """Applies a function of batches to windows that all have one shape.

    Args:
      function: Function of [batch, ...]; the last batch is padded, so that it compiles once.
      cut: Returns the window at a corner.
      corners: Corners (y, x) of the windows.
      batch: Windows per call.

    Yields:
      Each corner and the result for its window, fetched while the next one is computed.
    """
    in_flight = collections.deque()

    def fetch() -> Iterator[tuple[tuple[int, int], Any]]:
        chunk, results = in_flight.popleft()
        results = jax.device_get(results)
        for slot, corner in enumerate(chunk):
            yield corner, jax.tree.map(lambda leaf, slot=slot: leaf[slot], results)

    for first in range(0, len(corners), batch):
        chunk = corners[first : first + batch]
        windows = np.stack([cut(*corner) for corner in chunk])
        in_flight.append((chunk, function(filled(windows, batch))))
        if len(in_flight) == _IN_FLIGHT:
            yield from fetch()
    while in_flight:
        yield from fetch()


def _span(start: int, length: int, unit: int) -> slice:
    return slice(start * unit, (start + length) * unit)
