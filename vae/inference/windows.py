"""A model of bounded reach applied to a photograph of any size, window by window, with no seam.

Windows of one size lie inside the photograph and touch its border where it ends, so a
convolution's padding falls on the same pixels as without windows. Of each window only what is at
least a halo away from an edge *inside* the photograph is kept. Encoding and decoding are separate
halves, with the latents of the whole photograph assembled between them: each needs only its own
halo, and memory is that of one batch of windows beside the arrays going in and out.

The callables take and return batches; every call for one photograph has the same shape, so a
jitted callable compiles once for all photographs of at least a window.
"""

from collections.abc import Callable

import jax
import numpy as np

# Side of a window in pixels, at least: large enough that little of it is halo.
WINDOW = 512

Half = Callable[[np.ndarray], jax.Array | np.ndarray]


def window_side(factor: int, encoder_halo: int, decoder_halo: int) -> int:
    """A side for windows of which at least half is kept: pixels, divisible by `factor`.

    Args:
      factor: Pixels per latent position and axis.
      encoder_halo: In pixels.
      decoder_halo: In latent positions.
    """
    halo = max(encoder_halo, decoder_halo * factor)
    return -(-max(WINDOW, 4 * halo) // factor) * factor


def window_origins(length: int, window: int, halo: int) -> list[int]:
    """Where windows start along one axis; whatever lies `halo` inside them covers the axis.

    Args:
      length: Length of the axis, at least `window`.
      window: Length of a window.
      halo: What is not kept at a window's edges inside the axis.

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
    encode: Half, image: np.ndarray, *, factor: int, halo: int, window: int, batch: int = 1
) -> np.ndarray:
    """Encodes an image as if it were encoded whole.

    Args:
      encode: [batch, h, w, C] -> [batch, h/factor, w/factor, D], for any h and w divisible by
        `factor`; its output at a position depends on that position's own patch of `factor` x
        `factor` pixels and on at most `halo` pixels around it.
      image: [H, W, C], any dtype `encode` takes; sides not divisible by `factor` are edge-padded.
      factor: Pixels per latent position and axis.
      halo: In pixels.
      window: Side of a window in pixels, divisible by `factor`.
      batch: Windows in a call.

    Returns:
      [ceil(H/factor), ceil(W/factor), D].

    Raises:
      ValueError: `window` is not divisible by `factor`, or has no inside.
    """
    _check_window(window, factor)
    image = pad_to_factor(image, factor)
    return _apply(
        encode, image, unit_in=factor, unit_out=1, halo=-(-halo // factor),
        window=window // factor, batch=batch,
    )  # fmt: skip


def decode_windows(
    decode: Half, latents: np.ndarray, *, factor: int, halo: int, window: int, batch: int = 1
) -> np.ndarray:
    """Decodes latents as if they were decoded whole.

    Args:
      decode: [batch, h, w, D] -> [batch, h*factor, w*factor, C]; a pixel depends on its own latent
        position and on at most `halo` positions around it.
      latents: [h, w, D].
      factor: Pixels per latent position and axis.
      halo: In latent positions.
      window: Side of a window in pixels, divisible by `factor`.
      batch: Windows in a call.

    Returns:
      [h*factor, w*factor, C].

    Raises:
      ValueError: `window` is not divisible by `factor`, or has no inside.
    """
    _check_window(window, factor)
    return _apply(
        decode, latents, unit_in=1, unit_out=factor, halo=halo, window=window // factor, batch=batch
    )


def reconstruct_windows(
    encode: Half,
    decode: Half,
    image: np.ndarray,
    *,
    factor: int,
    encoder_halo: int,
    decoder_halo: int,
    window: int,
    batch: int = 1,
) -> np.ndarray:
    """Encodes and decodes an image as if it had been done whole.

    Args:
      encode: See `encode_windows`; returns the latents to decode, for example the posterior mean.
      decode: See `decode_windows`.
      image: [H, W, C].
      factor: Pixels per latent position and axis.
      encoder_halo: In pixels.
      decoder_halo: In latent positions.
      window: Side of a window in pixels, divisible by `factor`.
      batch: Windows in a call.

    Returns:
      [H, W, C'] in the dtype of `decode`.

    Raises:
      ValueError: `window` is not divisible by `factor`, or has no inside.
    """
    latents = encode_windows(
        encode, image, factor=factor, halo=encoder_halo, window=window, batch=batch
    )
    output = decode_windows(
        decode, latents, factor=factor, halo=decoder_halo, window=window, batch=batch
    )
    return output[: image.shape[0], : image.shape[1]]


def _check_window(window: int, factor: int) -> None:
    if window <= 0 or window % factor:
        raise ValueError(f"the window must be a positive multiple of {factor}, got {window}")


def _apply(
    function: Half,
    array: np.ndarray,
    *,
    unit_in: int,
    unit_out: int,
    halo: int,
    window: int,
    batch: int,
) -> np.ndarray:
    """One half over all windows. Halo and window count latent positions, units pixels of each."""
    height, width = array.shape[0] // unit_in, array.shape[1] // unit_in
    h, w = min(window, height), min(window, width)
    corners = [
        (y, x) for y in window_origins(height, h, halo) for x in window_origins(width, w, halo)
    ]
    output = None
    for first in range(0, len(corners), batch):
        chunk = corners[first : first + batch]
        # The last chunk is filled up with windows nobody looks at: one shape, one compilation.
        inputs = np.zeros((batch, h * unit_in, w * unit_in, *array.shape[2:]), array.dtype)
        for slot, (y, x) in enumerate(chunk):
            inputs[slot] = array[_span(y, h, unit_in), _span(x, w, unit_in)]
        results = jax.device_get(function(inputs))
        if output is None:
            shape = (height * unit_out, width * unit_out, *results.shape[3:])
            output = np.empty(shape, results.dtype)
        for slot, (y, x) in enumerate(chunk):
            top, left = halo * (y > 0), halo * (x > 0)
            bottom, right = h - halo * (y + h < height), w - halo * (x + w < width)
            rows, columns = (
                _span(y + top, bottom - top, unit_out),
                _span(x + left, right - left, unit_out),
            )
            kept = results[
                slot, _span(top, bottom - top, unit_out), _span(left, right - left, unit_out)
            ]
            output[rows, columns] = kept
    return output


def _span(start: int, length: int, unit: int) -> slice:
    return slice(start * unit, (start + length) * unit)
