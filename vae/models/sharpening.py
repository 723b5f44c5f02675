"""The sharpening stage: blind deconvolution by one filter per photograph.

    sharpened = toned + kernel(periodogram of toned) * toned

A patch does not show whether a vessel's edge is soft or blurred, but the spectrum of the whole
photograph does (`vae.models.periodogram`). The optimal linear restoration under blur and grain is a
Wiener filter (1949); here a small network predicts the filter from the averaged periodogram. The
stage is equivariant to rotations and flips: it averages the network's filters over all symmetries
of the periodogram.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae.models.periodogram import signature, turned

# Reach of the filter in pixels, to each side.
REACH = 8
WIDTH = 144
# Scale of the kernel's values; the network's outputs have unit scale.
UNIT = 0.1


class Sharpening(nn.Module):
    """Network from periodograms to kernels; zero at initialization and without any window.

    Attributes:
      typical_spectrum: See `vae.models.periodogram.signature`.
    """

    typical_spectrum: tuple[float, float, float]

    @nn.compact
    def __call__(self, powers: jax.Array, count: jax.Array) -> jax.Array:
        """Returns the sharpening kernels of photographs, without the identity.

        Args:
          powers: float32 [B, C, ...], of `vae.models.periodogram.window_powers`.
          count: float32 [B], of `window_powers`.

        Returns:
          float32 [B, C, 2 * REACH + 1, 2 * REACH + 1]; each kernel has sum 0, so constant images do
          not change.
        """
        side, channels = 2 * REACH + 1, powers.shape[1]
        zeros = nn.initializers.zeros
        near, far = (nn.Dense(WIDTH, name=name) for name in ("near", "far"))
        head = nn.Dense(channels * side**2, kernel_init=zeros, name="head")
        kernels = []
        for flip, transpose in itertools.product((False, True), repeat=2):
            seen = signature(turned(powers, flip, transpose), count, self.typical_spectrum)
            kernel = head(nn.silu(far(nn.silu(near(seen))))).reshape(-1, channels, side, side)
            # Undo the symmetry, in the reverse order.
            kernel = kernel.swapaxes(-1, -2) if transpose else kernel
            kernels.append(kernel[..., ::-1, :] if flip else kernel)
        made = UNIT * sum(kernels) / len(kernels)
        made = (made + made[..., ::-1, ::-1]) / 2
        made -= made.mean(axis=(-2, -1), keepdims=True)
        return jnp.where(count[:, None, None, None] > 0, made, 0)


def correlate_each(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """Correlates every image and channel with its own kernel, by fast Fourier transforms.

    Args:
      x: float32 [B, H, W, C]; border pixels are replicated.
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
