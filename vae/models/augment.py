"""Random crops, scales, flips, turns and masks on the device, drawn separately for each row."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# Number of masked squares per image, and the range of their sides as fractions of the image side.
SQUARES = 4
SIDES = (1 / 8, 1 / 4)


def shrink(images, scale: int):
    """Reduces images by averaging squares of pixels, as a camera with fewer pixels would.

    Args:
      images: uint8 [..., H, W, C], NumPy or JAX; H and W divisible by `scale`.
      scale: Side of the squares in pixels.

    Returns:
      uint8 [..., H / scale, W / scale, C], rounded to the nearest level.
    """
    if scale == 1:
        return images
    *lead, height, width, channels = images.shape
    cut = images.reshape(*lead, height // scale, scale, width // scale, scale, channels)
    # Integer arithmetic: XLA (0.10.2, CPU, jitted) rounds in casts to int that should truncate.
    total = cut.sum(axis=(-4, -2), dtype=np.uint32)
    return ((total + scale**2 // 2) // scale**2).astype(np.uint8)


@flax.struct.dataclass
class CropAndTurn:
    """The crop, scale and symmetry of a training example, applied in the order of the attributes.

    Attributes:
      y: int32 [], first row of the crop in pixels of the image.
      x: int32 [], first column of the crop.
      scale: int32 [], factor by which the crop was reduced.
      transpose: bool [], True if rows and columns were exchanged.
      flip_y: bool [], True if the rows were reversed.
      flip_x: bool [], True if the columns were reversed.
    """

    y: jax.Array
    x: jax.Array
    scale: jax.Array
    transpose: jax.Array
    flip_y: jax.Array
    flip_x: jax.Array

    def turn(self, image: jax.Array) -> jax.Array:
        """Applies the symmetry alone to a square image [S, S, C]."""
        image = jnp.where(self.transpose, image.swapaxes(0, 1), image)
        image = jnp.where(self.flip_y, image[::-1], image)
        return jnp.where(self.flip_x, image[:, ::-1], image)

    def circle(self, circle: jax.Array, crop: int) -> jax.Array:
        """Maps (row, column, radius) of the image, float32 [3], to the example of side `crop`.
        Pixel centres have integer coordinates."""
        y, x = ((circle[:2] - jnp.stack([self.y, self.x]) + 0.5) / self.scale) - 0.5
        y, x = jnp.where(self.transpose, x, y), jnp.where(self.transpose, y, x)
        y = jnp.where(self.flip_y, crop - 1 - y, y)
        x = jnp.where(self.flip_x, crop - 1 - x, x)
        return jnp.stack([y, x, circle[2] / self.scale])


def augment(
    images: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    crop: int,
    turn: bool,
    scales: tuple[int, ...] = (1,),
) -> jax.Array:
    """Crops, reduces, flips and turns each image with its own random draw.

    Args:
      images: uint8 [B, S, S, C].
      key: Random key for augmentation at this step.
      rows: int32 [B], index of each image in the global batch. The draw depends on (key, row) and
        not on how the batch is divided over devices.
      crop: Side of the result; `crop` times the largest scale is at most S.
      turn: If True, draws one of the eight symmetries of the square.
      scales: Reduction factors to draw from; a factor listed twice is drawn twice as often.

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
    """Returns the result of `augment` and a `CropAndTurn` with leaves of shape [B]."""
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
        placed = CropAndTurn(*origin, scale, *turns)
        return (placed.turn(image) if turn else image), placed

    return jax.vmap(one)(images, rows)


def mask_squares(images: jax.Array, key: jax.Array, rows: jax.Array) -> jax.Array:
    """Blackens squares at random places, which a model has to infer from their surroundings.

    Args:
      images: uint8 [B, S, S, C].
      key: Random key for masking at this step.
      rows: int32 [B], see `augment`.

    Returns:
      uint8 [B, S, S, C], with `SQUARES` squares set to 0. Their sides are in the range `SIDES`
      times S, and they may overlap.
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
