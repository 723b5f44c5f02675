"""The tone stage: corrects light, haze, colour and contrast of a photograph, from its thumbnail.

The pixelwise degradations are inverted in reverse order, the last one first:

    v = (x - offset) * exp(stretch)              contrast
    J = exp(gain) * v ** GAMMA - veil            light and colour; haze, in linear light
    toned = J ** (1 / GAMMA)

There are eight coefficients at each position: offset, stretch, and a gain and a veil for each
channel. They are the sum of global values and a smooth field, both predicted from the thumbnail, so
all tiles of a photograph agree. They are zero at initialization, which is the identity.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.data.thumbnails import MARGIN, THUMBNAIL
from vae.models.layers import RMSNorm, Stage, space_to_depth

# Side of the grid of coefficients; a cell is about a quarter of the FOV radius.
GRID = 8
# One offset, one stretch, three gains, three veils.
COEFFICIENTS = 8
GAMMA = 2.2
# Below eight grey levels the power function is replaced by its tangent, to bound the slope.
KNEE = 8 / 255
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
        h = nn.Dense(self.width, dtype=self.dtype)(
            space_to_depth(thumbnail, THUMBNAIL // GRID // 2)
        )
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


def apply_tone(x: jax.Array, coefficients: jax.Array, circle: jax.Array) -> jax.Array:
    """Applies the tone curves at every pixel.

    Args:
      x: float32 [B, H, W, 3] in [-1, 1].
      coefficients: float32 [B, GRID, GRID, COEFFICIENTS].
      circle: float32 [B, 3], FOV circle in pixels of x: row and column of its centre, radius.

    Returns:
      float32 [B, H, W, 3], not clipped; exactly x if all coefficients are zero.
    """
    rows = _weights(x.shape[1], circle[:, 0], circle[:, 2])
    columns = _weights(x.shape[2], circle[:, 1], circle[:, 2])
    field = jnp.einsum("bhi,bijk->bhjk", rows, coefficients)
    field = jnp.einsum("bwj,bhjk->bhwk", columns, field)
    offset, stretch, gain, veil = jnp.split(field, [1, 2, 5], axis=-1)
    values = (x.astype(jnp.float32) + 1) / 2
    stretched = (values - offset) * jnp.exp(stretch)
    light = jnp.exp(gain) * to_light(stretched) - veil
    # Added as a difference, so that zero coefficients give x exactly.
    return x + 2 * (from_light(light) - from_light(to_light(values)))


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


def expected_error(size: jax.Array, share: jax.Array, error: float) -> jax.Array:
    """Returns the expected error of a toned photograph in grey levels, float32 [B].

    Args:
      size: float32 [B], of `change_size`.
      share: float32 [B], of `evidence`.
      error: Root mean square error of full changes; the part not applied counts as error in full.
    """
    return jnp.hypot(share * error, (1 - share) * size)


def to_light(values: jax.Array) -> jax.Array:
    """Converts sRGB values to linear light: the power GAMMA, continued linearly below KNEE."""
    slope = GAMMA * KNEE ** (GAMMA - 1)
    return jnp.where(
        values > KNEE,
        jnp.maximum(values, KNEE) ** GAMMA,
        KNEE**GAMMA + slope * (values - KNEE),
    )


def from_light(light: jax.Array) -> jax.Array:
    """Inverts `to_light`."""
    knee, slope = KNEE**GAMMA, GAMMA * KNEE ** (GAMMA - 1)
    return jnp.where(
        light > knee, jnp.maximum(light, knee) ** (1 / GAMMA), KNEE + (light - knee) / slope
    )


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
