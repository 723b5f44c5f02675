"""The tone stage: corrects light, haze and contrast of a photograph, from its thumbnail.

    toned = exp(gain) * (x - offset),        x in [0, 1]

A gain inverts bad light, because light that is lost multiplies all sRGB values by one factor where
they are a power of the light. An offset and a gain invert low contrast exactly, and haze nearly.
Both are smooth fields over the photograph, predicted from its thumbnail, so all parts of a
photograph agree. They are the same for R, G and B, so the hue does not change. They are zero at
initialization, which is the identity.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.data.thumbnails import MARGIN, THUMBNAIL
from vae.models.layers import RMSNorm, Stage, space_to_depth

# Side of the grid of coefficients; a cell is about a quarter of the FOV radius.
GRID = 8
# Gain and offset.
COEFFICIENTS = 2
# Brightness from which the toned values approach white more slowly, so that nothing is clipped.
SHOULDER = 0.85
# Pixels of a thumbnail that the network does not see, inwards from the edge of the field of view.
RIM = 2
# FOV circle in a thumbnail: row and column of its centre and its radius, pixels.
THUMBNAIL_CIRCLE = ((THUMBNAIL - 1) / 2, (THUMBNAIL - 1) / 2, THUMBNAIL / 2 / MARGIN)
_ACROSS = (np.arange(THUMBNAIL) - THUMBNAIL_CIRCLE[0]) / THUMBNAIL_CIRCLE[2]
# bool [THUMBNAIL, THUMBNAIL, 1]: the field of view without its rim of partly covered pixels.
WITHIN = np.hypot(_ACROSS[:, None], _ACROSS)[..., None] < 0.97


class ToneField(nn.Module):
    """Network from thumbnails [B, THUMBNAIL, THUMBNAIL, 3] to coefficients.

    The coefficients, float32 [B, GRID, GRID, COEFFICIENTS], are zero at initialization.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, thumbnail: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        seen = without_rim(thumbnail)
        h = nn.Dense(self.width, dtype=self.dtype)(space_to_depth(seen, THUMBNAIL // GRID // 2))
        h = Stage(1, self.dtype, name="near")(h)
        h = nn.Dense(2 * self.width, dtype=self.dtype)(space_to_depth(h, 2))
        h = Stage(2, self.dtype, name="far")(h)
        # Global statistics: the convolutions above have a bounded receptive field.
        seen = RMSNorm(name="whole_norm")(h)
        seen = jnp.concatenate([seen.mean(axis=(1, 2)), seen.max(axis=(1, 2))], axis=-1)
        whole = nn.silu(nn.Dense(4 * self.width, dtype=self.dtype)(seen))
        whole = nn.silu(nn.Dense(4 * self.width, dtype=self.dtype)(whole))
        h += nn.Dense(2 * self.width, dtype=self.dtype)(whole)[:, None, None]
        h = RMSNorm(name="norm")(Stage(1, self.dtype, name="out")(h))
        head = nn.Dense(COEFFICIENTS, dtype=self.dtype, kernel_init=zeros, name="head")
        flat = nn.Dense(COEFFICIENTS, dtype=self.dtype, kernel_init=zeros, name="whole_head")
        field = head(h) + flat(whole)[:, None, None]
        return field.astype(jnp.float32)


def without_rim(thumbnail: jax.Array) -> jax.Array:
    """Blackens the pixels of thumbnails within `RIM` of black: [B, S, S, 3] -> the same shape.

    At the edge of the field of view a pixel is the mean of the photograph and of black. Degraded as
    a thumbnail it differs from the thumbnail of a degraded photograph, and would give away in
    training how a thumbnail was degraded.
    """
    lit = thumbnail.max(axis=-1, keepdims=True) > -1
    window = (1, 2 * RIM + 1, 2 * RIM + 1, 1)
    deep = jax.lax.reduce_window(lit, True, jax.lax.bitwise_and, window, (1,) * 4, "SAME")
    return jnp.where(deep, thumbnail, -1)


def apply_tone(x: jax.Array, coefficients: jax.Array, circle: jax.Array) -> jax.Array:
    """Applies gain and offset at every pixel.

    Args:
      x: float32 [B, H, W, 3] in [-1, 1].
      coefficients: float32 [B, GRID, GRID, COEFFICIENTS].
      circle: float32 [B, 3], FOV circle in pixels of x: row and column of its centre, radius.

    Returns:
      float32 [B, H, W, 3], below 1 where x is; exactly x if all coefficients are zero.
    """
    rows = _weights(x.shape[1], circle[:, 0], circle[:, 2])
    columns = _weights(x.shape[2], circle[:, 1], circle[:, 2])
    field = jnp.einsum("bhi,bijk->bhjk", rows, coefficients)
    field = jnp.einsum("bwj,bhjk->bhwk", columns, field)
    gain, offset = jnp.split(field, 2, axis=-1)
    values = (x.astype(jnp.float32) + 1) / 2
    toned = jnp.exp(gain) * (values - offset)
    # One factor for the three channels keeps the hue.
    # The gradient of `max` over an axis divides by the number of equal maxima, which is 0 if a
    # compiler computes the values twice with different rounding.
    brightest = functools.reduce(jnp.maximum, jnp.split(toned, 3, axis=-1))
    knee = jnp.maximum(SHOULDER, values.max(axis=-1, keepdims=True))
    room = jnp.maximum(1 - knee, 1e-6)
    over = jnp.maximum(brightest - knee, 0)
    bounded = knee + room * over / (over + room)
    toned *= jnp.where(brightest > knee, bounded / jnp.maximum(brightest, knee), 1)
    # Added as a difference, so that zero coefficients give x exactly.
    return x + 2 * (toned - values)


def change_size(thumbnail: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Returns the root mean square of the full tone change inside `WITHIN`, grey levels [B].

    Args:
      thumbnail: float32 [B, THUMBNAIL, THUMBNAIL, 3] in [-1, 1].
      coefficients: Output of `ToneField` for this thumbnail.
    """
    circle = jnp.broadcast_to(jnp.array(THUMBNAIL_CIRCLE), (len(thumbnail), 3))
    change = jnp.where(WITHIN, 127.5 * (apply_tone(thumbnail, coefficients, circle) - thumbnail), 0)
    return jnp.sqrt(jnp.square(change).sum(axis=(1, 2, 3)) / (3 * WITHIN.sum()))


def evidence(size: jax.Array, low: float, high: float) -> jax.Array:
    """Returns the fraction of a change to apply: 0 for sizes up to `low`, 1 from `high` on.

    Small changes are mostly errors of the network, or differences between cameras.

    Args:
      size: float32 [B], of `change_size`, grey levels.
      low: Grey levels.
      high: Grey levels.
    """
    rise = jnp.clip((size - low) / (high - low), 0, 1)
    return rise**2 * (3 - 2 * rise)


def _weights(length: int, centre: jax.Array, radius: jax.Array) -> jax.Array:
    """Returns the weight of each grid cell at each pixel of an axis: float32 [B, length, GRID].

    The weights are quadratic B-splines (de Boor, 1978), which are smooth at the cells' borders.
    """
    pixels = jnp.arange(length, dtype=jnp.float32)
    where = (pixels - centre[:, None]) / radius[:, None]  # -1 to 1 inside the field of view
    where = jnp.clip((where / MARGIN + 1) / 2 * GRID - 0.5, 0, GRID - 1)
    away = jnp.abs(where[..., None] - jnp.arange(GRID))
    near, far = 0.75 - away**2, 0.5 * jnp.maximum(1.5 - away, 0) ** 2
    weights = jnp.where(away < 0.5, near, far)
    return weights / weights.sum(axis=-1, keepdims=True)
