"""Blurs of images [C, H, W]: kernels [2 REACH + 1, 2 REACH + 1] with sum 1."""

import jax
import jax.numpy as jnp
import numpy as np

from vae.precision import HIGHEST

# Largest distance in pixels over which a kernel spreads light.
REACH = 12


def _offsets() -> tuple[np.ndarray, np.ndarray]:
    offsets = np.arange(-REACH, REACH + 1, dtype=np.float32)
    return np.meshgrid(offsets, offsets, indexing="ij")


def gaussian(sigma: jax.Array) -> jax.Array:
    """Returns a Gaussian kernel of standard deviation `sigma` pixels, truncated at REACH."""
    y, x = _offsets()
    kernel = jnp.exp(-(y**2 + x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def along_axes(rows: jax.Array, columns: jax.Array, image: jax.Array) -> jax.Array:
    """Multiplies the rows of [C, H, W] by a matrix [h, H] and the columns by [w, W]: [C, h, w]."""
    made = jnp.einsum("yv,cvu->cyu", rows, image, precision=HIGHEST)
    return jnp.einsum("xu,cyu->cyx", columns, made, precision=HIGHEST)


def disc(radius: jax.Array) -> jax.Array:
    """Returns the kernel of a uniform disc of `radius` pixels, with an antialiased rim."""
    y, x = _offsets()
    kernel = jnp.clip(radius + 0.5 - jnp.hypot(y, x), 0, 1)
    return kernel / kernel.sum()


def line(length: jax.Array, angle: jax.Array) -> jax.Array:
    """Returns the kernel of a uniform line of `length` pixels at `angle` radians."""
    y, x = _offsets()
    along = jnp.abs(y * jnp.sin(angle) + x * jnp.cos(angle))
    aside = jnp.abs(y * jnp.cos(angle) - x * jnp.sin(angle))
    kernel = jnp.clip(length / 2 + 0.5 - along, 0, 1) * jnp.clip(1 - aside, 0, 1)
    return kernel / kernel.sum()


def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves [C, H, W] with a kernel [2 REACH + 1, 2 REACH + 1]; replicates border pixels."""
    # Channels first: XLA's FFT on CPUs rejects other layouts, which XLA would choose in a loop.
    padded = jnp.pad(image, ((0, 0), (REACH, REACH), (REACH, REACH)), "edge")
    sides = padded.shape[1:]
    waves = jnp.fft.rfft2(padded) * jnp.fft.rfft2(kernel, sides)
    return jnp.fft.irfft2(waves, sides)[:, 2 * REACH :, 2 * REACH :]
