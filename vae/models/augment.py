"""Random crops, scales, flips, turns and masks on the device; each row has its own randomness."""

import flax.struct
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
    # In whole numbers: XLA rounds where a conversion to them should cut off (0.10.2, CPU, jitted).
    total = cut.sum(axis=(-4, -2), dtype=np.uint32)
    return ((total + scale**2 // 2) // scale**2).astype(np.uint8)


@flax.struct.dataclass
class CropAndTurn:
    """How an image became a training example.

    Attributes:
      y: int32 [], first row of the crop, pixels of the image.
      x: int32 [], its first column.
      scale: int32 [], what it was shrunk by.
      transpose: bool [], whether rows became columns; after the shrinking.
      flip_y: bool [], whether rows were then reversed.
      flip_x: bool [], whether columns were.
    """

    y: jax.Array
    x: jax.Array
    scale: jax.Array
    transpose: jax.Array
    flip_y: jax.Array
    flip_x: jax.Array

    def turn(self, image: jax.Array) -> jax.Array:
        """The symmetry alone, of any square image [S, S, C]."""
        image = jnp.where(self.transpose, image.swapaxes(0, 1), image)
        image = jnp.where(self.flip_y, image[::-1], image)
        return jnp.where(self.flip_x, image[:, ::-1], image)

    def place(self, place: jax.Array, crop: int) -> jax.Array:
        """Where (row, column, radius) of the image, float32 [3], lie in the example of side `crop`:
        centres of pixels are whole numbers."""
        y, x = ((place[:2] - jnp.stack([self.y, self.x]) + 0.5) / self.scale) - 0.5
        y, x = jnp.where(self.transpose, x, y), jnp.where(self.transpose, y, x)
        y = jnp.where(self.flip_y, crop - 1 - y, y)
        x = jnp.where(self.flip_x, crop - 1 - x, x)
        return jnp.stack([y, x, place[2] / self.scale])


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
    return augment_placed(images, key, rows, crop, turn, scales)[0]


def augment_placed(
    images: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    crop: int,
    turn: bool,
    scales: tuple[int, ...] = (1,),
) -> tuple[jax.Array, CropAndTurn]:
    """As `augment`, with how each example was cut: a `CropAndTurn` of leaves [B]."""
    distinct = sorted(set(scales))
    choices = jnp.array([distinct.index(scale) for scale in scales])

    def window(image, place, side):
        if side == image.shape[0]:
            return image, jnp.zeros(2, jnp.int32)
        origin = jax.random.randint(place, (2,), 0, image.shape[0] - side + 1)
        return jax.lax.dynamic_slice(image, (*origin, 0), (side, side, image.shape[2])), origin

    def one(image, row):
        place, symmetry = jax.random.split(jax.random.fold_in(key, row))
        windows = [window(image, place, crop * scale) for scale in distinct]
        found = [shrink(part, scale) for (part, _), scale in zip(windows, distinct, strict=True)]
        image, origin, scale = found[0], windows[0][1], jnp.int32(distinct[0])
        if len(found) > 1:
            number = jax.random.choice(jax.random.fold_in(place, 1), choices)
            image, scale = jnp.stack(found)[number], jnp.array(distinct)[number]
            origin = jnp.stack([origin for _, origin in windows])[number]
        turns = jnp.zeros(3, bool)
        if turn:
            turns = jax.random.bernoulli(symmetry, shape=(3,))
        cut = CropAndTurn(*origin, scale, *turns)
        return (cut.turn(image) if turn else image), cut

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
