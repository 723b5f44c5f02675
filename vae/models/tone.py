"""The tone stage: light, haze, colour and contrast of a photograph undone, judged by its thumbnail.

What a bad camera does to a pixel's value is undone in the order in which it was done last:

    v = (x - offset) * exp(stretch)              contrast
    J = exp(gain) * v ** GAMMA - veil            light and colour; haze, in linear light
    toned = J ** (1 / GAMMA)

with eight numbers at each place: offset, stretch, and a gain and a veil for each channel. They are
those of the whole photograph plus a smooth field, both read off the thumbnail, so tiles agree. All
of them are zero at the start: the identity.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.data.thumbnails import MARGIN, THUMBNAIL
from vae.models.layers import RMSNorm, Stage, space_to_depth

# Side of the field of coefficients; a cell is a quarter of the radius or so.
GRID = 8
# Offset, stretch, three gains, three veils.
COEFFICIENTS = 8
GAMMA = 2.2
# Below it, eight grey levels, the power is continued by its tangent: no slope is infinite.
KNEE = 8 / 255
# Where the field of view lies in a thumbnail: row and column of its centre and its radius, pixels.
THUMBNAIL_CIRCLE = ((THUMBNAIL - 1) / 2, (THUMBNAIL - 1) / 2, THUMBNAIL / 2 / MARGIN)
_ACROSS = (np.arange(THUMBNAIL) - THUMBNAIL_CIRCLE[0]) / THUMBNAIL_CIRCLE[2]
# bool [THUMBNAIL, THUMBNAIL, 1]: the field of view without its rim, whose pixels are half outside.
WITHIN = np.hypot(_ACROSS[:, None], _ACROSS)[..., None] < 0.97


class ToneField(nn.Module):
    """Thumbnails [B, THUMBNAIL, THUMBNAIL, 3] -> coefficients [B, GRID, GRID, COEFFICIENTS].

    The coefficients are zero at the start.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, thumbnail: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        h = nn.Dense(self.width, dtype=self.dtype)(
            space_to_depth(thumbnail, THUMBNAIL // GRID // 2)
        )
        h = Stage(1, self.dtype, name="near")(h)
        h = nn.Dense(2 * self.width, dtype=self.dtype)(space_to_depth(h, 2))
        h = Stage(2, self.dtype, name="far")(h)
        # Its reach is bounded, the photograph's colour is not.
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


def apply_tone(x: jax.Array, coefficients: jax.Array, circle: jax.Array) -> jax.Array:
    """The curves at every pixel.

    Args:
      x: float32 [B, H, W, 3] in [-1, 1].
      coefficients: float32 [B, GRID, GRID, COEFFICIENTS].
      circle: float32 [B, 3], centre and radius of the field of view in pixels of x.

    Returns:
      float32 [B, H, W, 3], not clipped; x itself where all coefficients are zero.
    """
    rows = _weights(x.shape[1], circle[:, 0], circle[:, 2])
    columns = _weights(x.shape[2], circle[:, 1], circle[:, 2])
    field = jnp.einsum("bhi,bijk->bhjk", rows, coefficients)
    field = jnp.einsum("bwj,bhjk->bhwk", columns, field)
    offset, stretch, gain, veil = jnp.split(field, [1, 2, 5], axis=-1)
    values = (x.astype(jnp.float32) + 1) / 2
    stretched = (values - offset) * jnp.exp(stretch)
    light = jnp.exp(gain) * to_light(stretched) - veil
    # Added as a change: nothing is changed to the last bit where nothing is to be.
    return x + 2 * (from_light(light) - from_light(to_light(values)))


def change_size(thumbnail: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Root mean square of a photograph's whole change of tone, grey levels: float32 [B].

    Args:
      thumbnail: float32 [B, THUMBNAIL, THUMBNAIL, 3] in [-1, 1].
      coefficients: Of `ToneField`, for this thumbnail.
    """
    circle = jnp.broadcast_to(jnp.array(THUMBNAIL_CIRCLE), (len(thumbnail), 3))
    change = jnp.where(WITHIN, 127.5 * (apply_tone(thumbnail, coefficients, circle) - thumbnail), 0)
    return jnp.sqrt(jnp.square(change).sum(axis=(1, 2, 3)) / (3 * WITHIN.sum()))


def evidence(size: jax.Array, low: float, high: float) -> jax.Array:
    """Returns the share of a change that is made: 0 up to the size `low`, 1 from `high` on.

    Small changes are mostly the network's own errors, or differences between cameras.

    Args:
      size: float32 [B], of `change_size`, grey levels.
      low: Grey levels.
      high: Grey levels.
    """
    rise = jnp.clip((size - low) / (high - low), 0, 1)
    return rise**2 * (3 - 2 * rise)


def expected_error(size: jax.Array, share: jax.Array, error: float) -> jax.Array:
    """Returns the error to be expected of a toned photograph, grey levels: float32 [B].

    Args:
      size: float32 [B], of `change_size`.
      share: float32 [B], of `evidence`.
      error: Root mean square error of whole changes; what is not made is missing in full.
    """
    return jnp.hypot(share * error, (1 - share) * size)


def to_light(values: jax.Array) -> jax.Array:
    """sRGB's values to the power of GAMMA, linear below KNEE."""
    slope = GAMMA * KNEE ** (GAMMA - 1)
    return jnp.where(
        values > KNEE,
        jnp.maximum(values, KNEE) ** GAMMA,
        KNEE**GAMMA + slope * (values - KNEE),
    )


def from_light(light: jax.Array) -> jax.Array:
    """The inverse of `to_light`."""
    knee, slope = KNEE**GAMMA, GAMMA * KNEE ** (GAMMA - 1)
    return jnp.where(
        light > knee, jnp.maximum(light, knee) ** (1 / GAMMA), KNEE + (light - knee) / slope
    )


def _weights(length: int, centre: jax.Array, radius: jax.Array) -> jax.Array:
    """How much each cell of the grid counts at each pixel of an axis: float32 [B, length, GRID].

    Quadratic B-splines: the field has no edges at the cells' borders (de Boor, 1978).
    """
    pixels = jnp.arange(length, dtype=jnp.float32)
    where = (pixels - centre[:, None]) / radius[:, None]  # -1 to 1 inside the field of view
    where = jnp.clip((where / MARGIN + 1) / 2 * GRID - 0.5, 0, GRID - 1)
    away = jnp.abs(where[..., None] - jnp.arange(GRID))
    near, far = 0.75 - away**2, 0.5 * jnp.maximum(1.5 - away, 0) ** 2
    weights = jnp.where(away < 0.5, near, far)
    return weights / weights.sum(axis=-1, keepdims=True)
