"""The averaged periodogram of a photograph: in it blur and grain show, whatever is in the picture.

A blur multiplies the spectrum of all of a photograph by one and the same function, grain adds to it
and a grid of blocks has lines in it, while vessels average out over its windows: Welch, "The use of
fast Fourier transform for the estimation of power spectra" (1967).
"""

import jax
import jax.numpy as jnp
import numpy as np

# Side of the windows and what lies between two of them, pixels.
SIDE, HOP = 32, 16
# Grey levels squared, at every frequency: rounding to 8 bits has 1/12.
FLOOR = 0.1
# What retinas usually have: log10 of the power at one wave a window, and how it falls with the
# frequency's logarithm; and the deviation from that. Round numbers, of the training photographs.
USUAL, FALL, SPREAD = 2.7, 2.6, 0.6


def window_powers(x: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of the periodograms of all windows that lie inside the field of view.

    Windows begin at multiples of HOP; sums over parts of a photograph that begin likewise and
    overlap by SIDE - HOP add up to the whole's.

    Args:
      x: float32 [B, H, W, C] in [-1, 1].
      inside: bool [B, H, W].

    Returns:
      The sum, float32 [B, C, SIDE, SIDE / 2 + 1], grey levels squared at each frequency, and how
      many windows it is of, float32 [B].
    """
    whole = _windows(inside[..., None]).all(axis=(-1, -2, -3))
    windows = 127.5 * _windows(x.astype(jnp.float32))
    windows -= windows.mean(axis=(-2, -1), keepdims=True)
    hann = np.sin(np.pi * (np.arange(SIDE) + 0.5) / SIDE) ** 2
    taper = np.outer(hann, hann).astype(np.float32)
    powers = jnp.square(jnp.abs(jnp.fft.rfft2(windows * taper))) / np.square(taper).sum()
    powers = jnp.where(whole[..., None, None, None], powers, 0).sum(axis=(1, 2))
    return powers, whole.sum(axis=(1, 2)).astype(jnp.float32)


def signature(powers: jax.Array, count: jax.Array) -> jax.Array:
    """How the mean periodogram differs from a usual one, in deviations.

    Args:
      powers: float32 [B, C, SIDE, SIDE / 2 + 1], of `window_powers`.
      count: float32 [B].

    Returns:
      float32 [B, C * SIDE * (SIDE / 2 + 1)]; zeros where there was no window.
    """
    waves = np.hypot(np.fft.fftfreq(SIDE, 1 / SIDE)[:, None], np.arange(SIDE // 2 + 1))
    usual = (USUAL - FALL * np.log10(np.maximum(waves, 1))).astype(np.float32)
    mean = powers / jnp.maximum(count, 1)[:, None, None, None]
    found = (jnp.log10(mean + FLOOR) - usual) / SPREAD
    return jnp.where(count[:, None] > 0, found.reshape(len(found), -1), 0)


def _windows(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, rows, columns, C, SIDE, SIDE]; what no window covers is left out."""
    batch, height, width, channels = x.shape
    rows, columns = height // HOP, width // HOP
    x = x[:, : rows * HOP, : columns * HOP].reshape(batch, rows, HOP, columns, HOP, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    span = SIDE // HOP
    x = jnp.concatenate([x[:, i : rows - span + 1 + i] for i in range(span)], axis=-2)
    return jnp.concatenate([x[:, :, i : columns - span + 1 + i] for i in range(span)], axis=-1)
