"""Blind deconvolution: one filter for all of a photograph, judged by its averaged periodogram.

    sharpened = toned + kernel(periodogram of toned) * toned

Which blur it was cannot be told from a patch, where a vessel's edge may be soft of itself; over a
photograph its spectrum tells (`vae.models.periodogram`). What undoes it as well as grain allows is
a filter (Wiener, 1949), here of what a small network has learned. A photograph that is turned is
sharpened by the filter turned: the network sees the periodogram from all sides, and its filters,
turned back, are averaged.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae.models.periodogram import signature, turned

# Pixels that the filter reaches to each side.
REACH = 8
WIDTH = 144
# Of the kernel's values: the network's are of unit size.
UNIT = 0.1


class Sharpening(nn.Module):
    """Periodogram -> kernels, zero at the start and where no window was inside."""

    @nn.compact
    def __call__(self, powers: jax.Array, count: jax.Array) -> jax.Array:
        """The kernels of photographs.

        Args:
          powers: float32 [B, C, ...], of `vae.models.periodogram.window_powers`.
          count: float32 [B], likewise.

        Returns:
          float32 [B, C, 2 * REACH + 1, 2 * REACH + 1]; each adds up to zero: an even brightness
          stays one.
        """
        side, channels = 2 * REACH + 1, powers.shape[1]
        zeros = nn.initializers.zeros
        near, far = (nn.Dense(WIDTH, name=name) for name in ("near", "far"))
        head = nn.Dense(channels * side**2, kernel_init=zeros, name="head")
        kernels = []
        for flip, transpose in itertools.product((False, True), repeat=2):
            seen = signature(turned(powers, flip, transpose), count)
            kernel = head(nn.silu(far(nn.silu(near(seen))))).reshape(-1, channels, side, side)
            # Back, in the reverse order.
            kernel = kernel.swapaxes(-1, -2) if transpose else kernel
            kernels.append(kernel[..., ::-1, :] if flip else kernel)
        made = UNIT * sum(kernels) / len(kernels)
        made = (made + made[..., ::-1, ::-1]) / 2
        made -= made.mean(axis=(-2, -1), keepdims=True)
        return jnp.where(count[:, None, None, None] > 0, made, 0)


def correlate_each(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """Every image and channel with its own kernel, by fast Fourier transforms.

    Args:
      x: float32 [B, H, W, C]; beyond the border its pixels repeat.
      kernels: float32 [B, C, K, K], K odd.

    Returns:
      float32 [B, H, W, C].
    """
    reach = kernels.shape[-1] // 2
    height, width = x.shape[1:3]
    planes = jnp.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (reach,) * 2, (reach,) * 2), "edge")
    sides = planes.shape[-2:]
    spectrum = jnp.fft.rfft2(planes) * jnp.conj(jnp.fft.rfft2(kernels, s=sides))
    made = jnp.fft.irfft2(spectrum, s=sides)[..., :height, :width]
    return made.transpose(0, 2, 3, 1)
