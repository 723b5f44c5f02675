"""Codecs that everyone can check, to read a model's metrics by.

All take and return 8-bit tiles, so that they are judged on what would be shown.
"""

import jax
import jax.numpy as jnp

BICUBIC_FACTOR = 4


def mean_colour(images: jax.Array, fov: jax.Array) -> jax.Array:
    """Each tile painted in the mean colour of its field of view, rounded to 8 bits.

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
    """Reduced with antialiasing, kept as 8 bits, enlarged again, both with Keys' cubic.

    Args:
      images: uint8 [B, H, W, 3], sides divisible by `factor`.
      factor: By which both sides are reduced.

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
