"""The averaged periodogram of a photograph, which shows blur and grain whatever the content.

A blur multiplies the spectrum of the whole photograph by one function. Grain adds to the spectrum,
and a block grid adds lines. Vessels average out over the windows. The method is Welch, "The use of
fast Fourier transform for the estimation of power spectra" (1967).
"""

import jax
import jax.numpy as jnp
import numpy as np

# Side of the windows and distance of their origins, pixels. Motion blur of 20 pixels has zeros at
# about every third frequency of a 64-pixel window; in 32-pixel windows the taper hides these zeros.
SIDE, HOP = 64, 32
# Frequencies (cycles per window) kept at full resolution. They include the first two zeros of lines
# of ten pixels, the shortest lines that windows of half the side do not show.
FINE = 16
# Added to the power at every frequency, grey levels squared; 8-bit rounding has power 1/12.
FLOOR = 0.1


def window_powers(x: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums up the periodograms of all windows that lie inside the field of view.

    Windows begin at multiples of HOP. The sum for a photograph equals the total over parts that
    begin at multiples of HOP and overlap by SIDE - HOP.

    Args:
      x: float32 [B, H, W, C] in [-1, 1].
      inside: bool [B, H, W], True inside the field of view.

    Returns:
      The sum, float32 [B, C, SIDE, SIDE / 2 + 1], grey levels squared at each frequency, and the
      number of windows, float32 [B].
    """
    whole = _windows(inside[..., None]).all(axis=(-1, -2, -3))
    windows = 127.5 * _windows(x.astype(jnp.float32))
    windows -= windows.mean(axis=(-2, -1), keepdims=True)
    hann = np.sin(np.pi * (np.arange(SIDE) + 0.5) / SIDE) ** 2
    taper = np.outer(hann, hann).astype(np.float32)
    powers = jnp.square(jnp.abs(jnp.fft.rfft2(windows * taper))) / np.square(taper).sum()
    powers = jnp.where(whole[..., None, None, None], powers, 0).sum(axis=(1, 2))
    return powers, whole.sum(axis=(1, 2)).astype(jnp.float32)


def signature(
    powers: jax.Array, count: jax.Array, typical: tuple[float, float, float]
) -> jax.Array:
    """Returns the deviation of the mean periodogram from a typical one, in standard deviations.

    The first part is smoothed over neighbouring frequencies, for each channel, as windows of half
    the side would show it. The second part is the unsmoothed mean over channels up to FINE, which
    contains the zeros of long lines.

    Args:
      powers: float32 [B, C, SIDE, SIDE / 2 + 1], of `window_powers`.
      count: float32 [B], of `window_powers`.
      typical: Power of typical photographs at one cycle per window, its fall per decade of the
        frequency, and the standard deviation from this line; dB, where 0 dB is one squared grey
        level.

    Returns:
      float32 [B, C * SIDE / 2 * (SIDE / 4 + 1) + (2 FINE + 1) * (FINE + 1)]; zeros if `count` is 0.
    """
    v, u = np.meshgrid(np.fft.fftfreq(SIDE, 1 / SIDE), np.arange(SIDE // 2 + 1), indexing="ij")
    level, fall, spread = (decibels / 10 for decibels in typical)
    usual = (level - fall * np.log10(np.maximum(np.hypot(v, u), 1))).astype(np.float32)
    mean = powers / jnp.maximum(count, 1)[:, None, None, None]

    def found(power, usual):
        return (jnp.log10(power + FLOOR) - usual) / spread

    smooth = found(_smoothed(mean)[..., ::2, ::2], usual[::2, ::2])
    near = np.r_[0 : FINE + 1, SIDE - FINE : SIDE]
    fine = found(mean, usual)[..., near, : FINE + 1].mean(axis=1)
    both = jnp.concatenate([part.reshape(len(part), -1) for part in (smooth, fine)], axis=-1)
    return jnp.where(count[:, None] > 0, both, 0)


def _smoothed(half: jax.Array) -> jax.Array:
    """Smooths over neighbouring frequencies with weights 1/4, 1/2, 1/4 along each axis."""
    # Values beyond the edges of this half plane are its own values, rotated by 180 degrees.
    opposite = np.arange(0, -SIDE, -1) % SIDE
    before, after = half[..., opposite, 1:2], half[..., opposite, -2:-1]
    wide = jnp.concatenate([before, half, after], axis=-1)
    wide = (wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]) / 4
    return (jnp.roll(wide, 1, axis=-2) + 2 * wide + jnp.roll(wide, -1, axis=-2)) / 4


def turned(half: jax.Array, flip: bool, transpose: bool) -> jax.Array:
    """Returns the periodogram of a flipped and transposed photograph, from the photograph's.

    These two operations cover all symmetries of the square, because a rotation of the photograph by
    180 degrees does not change its periodogram.

    Args:
      half: float32 [..., SIDE, SIDE / 2 + 1], half of the frequency plane; as is the result.
      flip: If True, the photograph's rows are reversed.
      transpose: If True, rows and columns are then exchanged.
    """
    v, u = np.meshgrid(np.arange(SIDE), np.arange(SIDE // 2 + 1), indexing="ij")
    if transpose:
        v, u = u, v
    if flip:
        v = -v
    # The other half plane is this one, rotated by 180 degrees.
    other = u > SIDE // 2
    v, u = np.where(other, -v, v) % SIDE, np.where(other, SIDE - u, u)
    return half[..., v, u]


def _windows(x: jax.Array) -> jax.Array:
    """Cuts [B, H, W, C] into windows [B, rows, columns, C, SIDE, SIDE]; drops incomplete ones."""
    batch, height, width, channels = x.shape
    rows, columns = height // HOP, width // HOP
    x = x[:, : rows * HOP, : columns * HOP].reshape(batch, rows, HOP, columns, HOP, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    span = SIDE // HOP
    x = jnp.concatenate([x[:, i : rows - span + 1 + i] for i in range(span)], axis=-2)
    return jnp.concatenate([x[:, :, i : columns - span + 1 + i] for i in range(span)], axis=-1)
