"""Random crops, flips and quarter turns on the device; each row has its own randomness."""

import jax
import jax.numpy as jnp


def augment(images: jax.Array, key: jax.Array, rows: jax.Array, crop: int, turn: bool) -> jax.Array:
    """Crops, flips and turns each image by its own draw.

    Args:
      images: uint8 [B, S, S, 3].
      key: The step's key for this duty.
      rows: int32 [B], the place of each image in the global batch: the draw depends on (key, row)
        and not on how the batch is cut over devices.
      crop: Side of the result, at most S.
      turn: Whether to draw one of the eight symmetries of the square.

    Returns:
      uint8 [B, crop, crop, 3].
    """

    def one(image, row):
        place, symmetry = jax.random.split(jax.random.fold_in(key, row))
        if crop < image.shape[0]:
            y, x = jax.random.randint(place, (2,), 0, image.shape[0] - crop + 1)
            image = jax.lax.dynamic_slice(image, (y, x, 0), (crop, crop, 3))
        if turn:
            transpose, flip_y, flip_x = jax.random.bernoulli(symmetry, shape=(3,))
            image = jnp.where(transpose, image.swapaxes(0, 1), image)
            image = jnp.where(flip_y, image[::-1], image)
            image = jnp.where(flip_x, image[:, ::-1], image)
        return image

    return jax.vmap(one)(images, rows)
