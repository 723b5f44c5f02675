"""Image quality metrics as pure functions: SSIM and PSNR, with and without a mask.

All computations are float32 for any input dtype: at 50 dB a tenth of a grey level matters.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vae.precision import HIGHEST

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
K1, K2 = 0.01, 0.03
# Lower limit of the mean squared error, grey levels squared: it caps PSNR at 88.1 dB.
MIN_MSE = 1e-4
MAX_BAND = 512


def to_float(image: jax.Array) -> jax.Array:
    """Converts uint8 [...] in 0..255 to float32 [...] in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(image: jax.Array) -> jax.Array:
    """Converts float [...] in [-1, 1] to uint8 [...], rounded to the nearest level and clipped."""
    return jnp.clip(jnp.round((image.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def gaussian_window() -> np.ndarray:
    """Returns the 1-D Gaussian of the SSIM window, float32 [SSIM_WINDOW], with sum 1."""
    offsets = np.arange(SSIM_WINDOW) - (SSIM_WINDOW - 1) / 2
    window = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return (window / window.sum()).astype(np.float32)


def _blur(x: jax.Array) -> jax.Array:
    """Applies the Gaussian filter at valid positions: [B, H, W, C] -> [B, H-10, W-10, C]."""
    return _blur_axis(_blur_axis(x, 1), 2)


def _blur_axis(x: jax.Array, axis: int) -> jax.Array:
    """Filters axis 1 or 2 of [B, H, W, C].

    Up to `MAX_BAND` pixels it multiplies by a band matrix, whose gradient is another product: on
    CPUs XLA takes sixteen times as long for the gradient of shifted slices. The band matrix grows
    with the square of the side, so larger images use the slices.
    """
    window, side = gaussian_window(), x.shape[axis]
    valid = side - SSIM_WINDOW + 1
    if side > MAX_BAND:
        slices = (jax.lax.slice_in_dim(x, i, i + valid, axis=axis) for i in range(SSIM_WINDOW))
        return sum(float(w) * part for w, part in zip(window, slices, strict=True))
    band = sum(w * np.eye(valid, side, i, dtype=np.float32) for i, w in enumerate(window))
    equation = "ih,bhwc->biwc" if axis == 1 else "jw,bhwc->bhjc"
    return jnp.einsum(equation, band, x, precision=HIGHEST)


def ssim_map(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes structural similarity (SSIM) at every valid window position.

    Wang, Bovik, Sheikh, Simoncelli (2004), eq. 13: Gaussian window of 11 pixels, sigma 1.5,
    K = 0.01 and 0.03, population covariance.

    Args:
      a: [B, H, W, C], values in [0, 1], H and W at least 11; otherwise raises ValueError.
      b: Like `a`.

    Returns:
      float32 [B, H-10, W-10, C], at most 1.
    """
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs sides of at least {SSIM_WINDOW} pixels, got {a.shape[1:3]}")
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # A common shift avoids cancellation in E[x^2] - E[x]^2 and does not change the covariances. The
    # result does not depend on the shift, so its gradient is stopped.
    shift = jax.lax.stop_gradient(jnp.mean(a, axis=(1, 2), keepdims=True))
    a_shifted, b_shifted = a - shift, b - shift
    mean_a, mean_b = _blur(a_shifted), _blur(b_shifted)
    square = _blur(a_shifted**2 + b_shifted**2) - mean_a**2 - mean_b**2
    product = _blur(a_shifted * b_shifted) - mean_a * mean_b
    mean_a, mean_b = mean_a + shift, mean_b + shift
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    return luminance * (2 * product + K2**2) / (square + K2**2)


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the mean SSIM of each example, float32 [B]; a and b are [B, H, W, C] in [0, 1]."""
    return jnp.mean(ssim_map(a, b), axis=(1, 2, 3))


def window_inside(mask: jax.Array) -> jax.Array:
    """Marks SSIM windows that lie inside a mask: bool [B, H, W] -> bool [B, H-10, W-10]."""
    return jax.lax.reduce_window(
        mask, True, jax.lax.bitwise_and, (1, SSIM_WINDOW, SSIM_WINDOW), (1, 1, 1), "VALID"
    )


def masked_ssim(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean SSIM over the windows that lie completely inside the mask.

    Args:
      a: [B, H, W, C], values in [0, 1].
      b: Like `a`.
      mask: bool [B, H, W], the field of view.

    Returns:
      float32 [B]; NaN for an example without such a window.
    """
    inside = window_inside(mask)
    total = jnp.sum(jnp.where(inside, jnp.mean(ssim_map(a, b), axis=-1), 0.0), axis=(1, 2))
    count = jnp.sum(inside, axis=(1, 2))
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def masked_psnr(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the peak signal-to-noise ratio (PSNR) over the pixels of the mask, peak 255.

    Args:
      a: [B, H, W, C] in grey levels 0..255, any dtype.
      b: Like `a`.
      mask: bool [B, H, W].

    Returns:
      float32 [B] in dB, at most 88.1 (`MIN_MSE`); NaN if the mask is empty.
    """
    error = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean(axis=-1)
    count = jnp.sum(mask, axis=(1, 2))
    mse = jnp.sum(jnp.where(mask, error, 0.0), axis=(1, 2)) / jnp.maximum(count, 1)
    psnr = 20 * jnp.log10(255.0) - 10 * jnp.log10(jnp.maximum(mse, MIN_MSE))
    return jnp.where(count > 0, psnr, jnp.nan)
