"""Simulated cameras: random changes of colour, grain, sharpness and compression of a crop.

Every change is drawn separately for each row of a batch. Half of the rows keep each property as it
is. The draws of a change depend on (key, row) and not on the strengths of the other changes.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vae.models.degradations import BLOCK, GAMMA, FovGeometry, jpeg_at_quality, noise
from vae.models.filters import along_axes

# Largest factor of all channels together and of each channel, in linear light.
GAIN, BALANCE = 2.0, 1.4
# Largest change of the saturation, and largest exponent of the contrast curve.
SATURATION, CURVE = 0.25, 1.25
# Largest severity of `degradations.noise`: 2.5 grey levels at medium brightness.
GRAIN = 0.3
# Standard deviations of the blur whose difference is added or removed, pixels.
BLUR = (0.5, 1.5)
# Lowest quality of a JPEG file.
QUALITY = 70


def colour(image: jax.Array, strength: float, key: jax.Array) -> jax.Array:
    """Changes gain, colour balance, saturation and contrast curve; black stays black."""
    drawn = strength * jax.random.uniform(key, (6, 1, 1), minval=-1, maxval=1)
    # A factor of linear light is a factor of its power, the sRGB values.
    made = image * jnp.exp((drawn[0] * np.log(GAIN) + drawn[1:4] * np.log(BALANCE)) / GAMMA)
    grey = made.mean(axis=0)
    made = jnp.maximum(grey + (1 + SATURATION * drawn[4]) * (made - grey), 0)
    # The tiny term keeps gradients and logarithms finite.
    return jnp.where(image > 0, (made + 1e-6) ** (CURVE ** drawn[5]), 0)


def grain(image: jax.Array, strength: float, key: jax.Array) -> jax.Array:
    """Adds photon and read noise of a random severity."""
    severity_key, noise_key = jax.random.split(key)
    severity = GRAIN * strength * jax.random.uniform(severity_key)
    return noise(image, _place(0, 0), severity, noise_key)


def sharpness(image: jax.Array, strength: float, key: jax.Array) -> jax.Array:
    """Blurs the image, or sharpens it by an unsharp mask."""
    amount_key, sigma_key = jax.random.split(key)
    amount = strength * jax.random.uniform(amount_key, minval=-1, maxval=1)
    sigma = jax.random.uniform(sigma_key, minval=BLUR[0], maxval=BLUR[1])
    rows, columns = (_blur(side, sigma) for side in image.shape[1:])
    return image + amount * (image - along_axes(rows, columns, image))


def jpeg(image: jax.Array, strength: float, key: jax.Array) -> jax.Array:
    """Encodes the image as JPEG of a random quality, with the grid at a random place."""
    quality_key, phase_key = jax.random.split(key)
    quality = 100 - (100 - QUALITY) * strength * jax.random.uniform(quality_key)
    phase = jax.random.randint(phase_key, (2,), 0, BLOCK)
    return jpeg_at_quality(image, _place(*phase), quality)


# In the order of a camera: light, sensor, processing, file. (image [3, H, W] of sRGB values in
# [0, 1], strength, key) -> the same shape.
CHANGES: dict[str, Callable[[jax.Array, float, jax.Array], jax.Array]] = {
    "colour": colour,
    "grain": grain,
    "sharpness": sharpness,
    "jpeg": jpeg,
}


def simulate_cameras(
    images: jax.Array, key: jax.Array, rows: jax.Array, strengths: Mapping[str, float]
) -> jax.Array:
    """Changes each image as if another camera had taken it.

    Args:
      images: uint8 [B, H, W, 3].
      key: Random key for simulated cameras at this step.
      rows: int32 [B], index of each image in the global batch. The draw depends on (key, row) and
        not on how the batch is divided over devices.
      strengths: For each name of `CHANGES` a number in [0, 1]; 0 is no change.

    Returns:
      uint8 [B, H, W, 3]; exactly `images` if all strengths are 0.
    """
    active = [name for name in CHANGES if strengths[name]]
    if not active:
        return images

    def one(image, row):
        row_key = jax.random.fold_in(key, row)
        made = image.transpose(2, 0, 1) / jnp.float32(255)
        for number, name in enumerate(CHANGES):
            if name in active:
                when, how = jax.random.split(jax.random.fold_in(row_key, number))
                changed = CHANGES[name](made, strengths[name], how)
                made = jnp.where(jax.random.bernoulli(when), jnp.clip(changed, 0, 1), made)
        return jnp.rint(255 * made).astype(jnp.uint8).transpose(1, 2, 0)

    return jax.vmap(one)(images, rows)


def _place(y: jax.Array | int, x: jax.Array | int) -> FovGeometry:
    return FovGeometry(jnp.int32(y), jnp.int32(x), *map(jnp.float32, (0, 0, 1)))


def _blur(side: int, sigma: jax.Array) -> jax.Array:
    """Returns the matrix [side, side] of a Gaussian blur along an axis; its rows have the sum 1."""
    offsets = jnp.arange(side)[:, None] - jnp.arange(side)
    weights = jnp.exp(-jnp.square(offsets) / (2 * jnp.square(sigma)))
    return weights / weights.sum(axis=1, keepdims=True)
