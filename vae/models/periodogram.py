"""The averaged periodogram of a photograph: in it blur and grain show, whatever is in the picture.

A blur multiplies the spectrum of all of a photograph by one and the same function, grain adds to it
and a grid of blocks has lines in it, while vessels average out over its windows: Welch, "The use of
fast Fourier transform for the estimation of power spectra" (1967).
"""

import jax
import jax.numpy as jnp
import numpy as np

# Side of the windows and what lies between two of them, pixels. A line of 20 pixels has no power at
# every third wave of a window of 64; in windows half as large a taper leaves no trace of that.
SIDE, HOP = 64, 32
# So many waves a window are told apart: of the shortest lines that windows half as large miss, of
# ten pixels, the first two zeros.
FINE = 16
# Grey levels squared, at every frequency: rounding to 8 bits has 1/12.
FLOOR = 0.1
# What retinas usually have: log10 of the power at one wave a window, and how it falls with the
# frequency's logarithm; and the deviation from that. Round numbers, of the training photographs.
USUAL, FALL, SPREAD = 3.5, 2.6, 0.6


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

    Twice: smoothed over neighbouring waves, of each channel, as windows half as large show it; and
    the waves up to FINE as they are, of all channels together, where the zeros of long lines are.

    Args:
      powers: float32 [B, C, SIDE, SIDE / 2 + 1], of `window_powers`.
      count: float32 [B].

    Returns:
      float32 [B, C * SIDE / 2 * (SIDE / 4 + 1) + (2 FINE + 1) * (FINE + 1)]; zeros where there was
      no window.
    """
    v, u = np.meshgrid(np.fft.fftfreq(SIDE, 1 / SIDE), np.arange(SIDE // 2 + 1), indexing="ij")
    usual = (USUAL - FALL * np.log10(np.maximum(np.hypot(v, u), 1))).astype(np.float32)
    mean = powers / jnp.maximum(count, 1)[:, None, None, None]

    def found(power, usual):
        return (jnp.log10(power + FLOOR) - usual) / SPREAD

    smooth = found(_smoothed(mean)[..., ::2, ::2], usual[::2, ::2])
    near = np.r_[0 : FINE + 1, SIDE - FINE : SIDE]
    fine = found(mean, usual)[..., near, : FINE + 1].mean(axis=1)
    both = jnp.concatenate([part.reshape(len(part), -1) for part in (smooth, fine)], axis=-1)
    return jnp.where(count[:, None] > 0, both, 0)


def _smoothed(half: jax.Array) -> jax.Array:
    """Every wave with its neighbours, a half of it and a quarter of each side's."""
    # The other half's waves next to this one are its own, turned by 180 degrees.
    opposite = np.arange(0, -SIDE, -1) % SIDE
    before, after = half[..., opposite, 1:2], half[..., opposite, -2:-1]
    wide = jnp.concatenate([before, half, after], axis=-1)
    wide = (wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]) / 4
    return (jnp.roll(wide, 1, axis=-2) + 2 * wide + jnp.roll(wide, -1, axis=-2)) / 4


def turned(half: jax.Array, flip: bool, transpose: bool) -> jax.Array:
    """The periodogram of a photograph that was turned, from the photograph's.

    Args:
      half: float32 [..., SIDE, SIDE / 2 + 1], its half of the plane.
      flip: The photograph's rows are read from below.
      transpose: Then rows become columns.

    Returns:
      Likewise. With these two all symmetries of the square are there are: of a photograph and of
      itself turned by 180 degrees the periodograms are the same.
    """
    v, u = np.meshgrid(np.arange(SIDE), np.arange(SIDE // 2 + 1), indexing="ij")
    if transpose:
        v, u = u, v
    if flip:
        v = -v
    # The other half is the same, turned by 180 degrees.
    other = u > SIDE // 2
    v, u = np.where(other, -v, v) % SIDE, np.where(other, SIDE - u, u)
    return half[..., v, u]


def _windows(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, rows, columns, C, SIDE, SIDE]; what no window covers is left out."""
    batch, height, width, channels = x.shape
    rows, columns = height // HOP, width // HOP
    x = x[:, : rows * HOP, : columns * HOP].reshape(batch, rows, HOP, columns, HOP, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    span = SIDE // HOP
    x = jnp.concatenate([x[:, i : rows - span + 1 + i] for i in range(span)], axis=-2)
    return jnp.concatenate([x[:, :, i : columns - span + 1 + i] for i in range(span)], axis=-1)
