"""Simple, reproducible codecs as a reference for a model's metrics.

All take and return 8-bit tiles, so they are measured on displayable values.
"""

import jax
import jax.numpy as jnp

BICUBIC_FACTOR = 4


def mean_colour(images: jax.Array, fov: jax.Array) -> jax.Array:
    """Fills each tile with the mean colour of its field of view, rounded to 8 bits.

    Args:
      images: uint8 [B, H, W, 3].
      fov: bool [B, H, W].

    Returns:
      uint8 [B, H, W, 3].
    """
    weights = fov[..., None].astype(jnp.float32)
    total = jnp.sum(images * weights, axis=(1, 2), keepdims=True)
    mean = total / jnp.maximum(jnp.sum(weights, axis=(1, 2), keepdims=True), 1.0)
    return jnp.broadcast_to(_to_8_bit(mean), images.shape)


def bicubic(images: jax.Array, factor: int = BICUBIC_FACTOR) -> jax.Array:
    """Reduces with antialiasing, rounds to 8 bits and enlarges again, both with Keys' cubic.

    Args:
      images: uint8 [B, H, W, 3], sides divisible by `factor`.
      factor: Reduction factor of both sides.

    Returns:
      uint8 [B, H, W, 3].
    """
    b, h, w, c = images.shape
    if h % factor or w % factor:
        raise ValueError(f"sides must be divisible by {factor}, got {h} x {w}")
    small = jax.image.resize(
        images.astype(jnp.float32), (b, h // factor, w // factor, c), "cubic", antialias=True
    )
    return _to_8_bit(jax.image.resize(_to_8_bit(small).astype(jnp.float32), images.shape, "cubic"))


def _to_8_bit(levels: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)
