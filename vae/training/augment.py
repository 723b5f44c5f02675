"""Random crops, scales, flips, turns and masks on the device; each row has its own randomness."""

import jax
import jax.numpy as jnp
import numpy as np

# Squares that a mask blackens in each image, and their sides as shares of the image's.
SQUARES = 4
SIDES = (1 / 8, 1 / 4)


def shrink(images, scale: int):
    """Images as a camera of fewer pixels would have seen them: means over squares of pixels.

    Args:
      images: uint8 [..., H, W, C], of NumPy or JAX; H and W divisible by `scale`.
      scale: Side of the squares in pixels.

    Returns:
      uint8 [..., H / scale, W / scale, C].
    """
    if scale == 1:
        return images
    *lead, height, width, channels = images.shape
    cut = images.reshape(*lead, height // scale, scale, width // scale, scale, channels)
    # Half-way means go up, on every backend.
    return (cut.mean(axis=(-4, -2), dtype=np.float32) + 0.5).astype(np.uint8)


def augment(
    images: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    crop: int,
    turn: bool,
    scales: tuple[int, ...] = (1,),
) -> jax.Array:
    """Crops, shrinks, flips and turns each image by its own draw.

    Args:
      images: uint8 [B, S, S, C].
      key: The step's key for this duty.
      rows: int32 [B], the place of each image in the global batch: the draw depends on (key, row)
        and not on how the batch is cut over devices.
      crop: Side of the result; times the largest scale at most S.
      turn: Whether to draw one of the eight symmetries of the square.
      scales: What each image is shrunk by, drawn from these; one named twice is drawn twice as
        often.

    Returns:
      uint8 [B, crop, crop, C].
    """

    distinct = sorted(set(scales))
    choices = jnp.array([distinct.index(scale) for scale in scales])

    def window(image, place, side):
        if side == image.shape[0]:
            return image
        y, x = jax.random.randint(place, (2,), 0, image.shape[0] - side + 1)
        return jax.lax.dynamic_slice(image, (y, x, 0), (side, side, image.shape[2]))

    def one(image, row):
        place, symmetry = jax.random.split(jax.random.fold_in(key, row))
        found = [shrink(window(image, place, crop * scale), scale) for scale in distinct]
        image = found[0]
        if len(found) > 1:
            image = jnp.stack(found)[jax.random.choice(jax.random.fold_in(place, 1), choices)]
        if turn:
            transpose, flip_y, flip_x = jax.random.bernoulli(symmetry, shape=(3,))
            image = jnp.where(transpose, image.swapaxes(0, 1), image)
            image = jnp.where(flip_y, image[::-1], image)
            image = jnp.where(flip_x, image[:, ::-1], image)
        return image

    return jax.vmap(one)(images, rows)


def mask_squares(images: jax.Array, key: jax.Array, rows: jax.Array) -> jax.Array:
    """Blackens squares at random places: what is learned from has to be inferred from around them.

    Args:
      images: uint8 [B, S, S, C].
      key: The step's key for this duty.
      rows: int32 [B]; as for `augment`.

    Returns:
      uint8 [B, S, S, C], with `SQUARES` squares of `SIDES` of S, which may overlap, set to 0.
    """
    side = images.shape[1]
    pixels = jnp.arange(side)

    def one(image, row):
        size_key, place_key = jax.random.split(jax.random.fold_in(key, row))
        low, high = (round(side * share) for share in SIDES)
        sizes = jax.random.randint(size_key, (SQUARES, 1), low, high + 1)
        places = jax.random.uniform(place_key, (SQUARES, 2)) * (side + 1 - sizes)
        starts = jnp.floor(places).astype(jnp.int32)[..., None]
        inside = (pixels >= starts) & (pixels < starts + sizes[..., None])  # [squares, 2, S]
        masked = jnp.any(inside[:, 0, :, None] & inside[:, 1, None, :], axis=0)
        return jnp.where(masked[..., None], jnp.uint8(0), image)

    return jax.vmap(one)(images, rows)
