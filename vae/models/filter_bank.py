"""Filters that vary over the image: at each patch another mixture of a few learned kernels.

    filtered = x + sum_k weight_k * (kernel_k * x)

Kernels for every pixel are the form of Mildenhall et al., "Burst denoising with kernel prediction
networks" (2018); that they are mixtures of a common basis, of Xia et al., "Basis prediction
networks" (2020). What undoes a blur is a filter: with the kernels at hand a network has to tell
which blur it was, and not to learn convolution itself.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.models.layers import convolve
from vae.models.pca import HIGHEST

# Pixels that a kernel reaches to each side.
REACH = 6
# The start: differences from blurs of these deviations, round and along lines at ANGLES angles.
ROUND = (0.8, 1.3, 2.0, 3.0)
LONG = (1.5, 2.5, 4.0)
ANGLES = 4
KERNELS = len(ROUND) + len(LONG) * ANGLES


class FilterBank(nn.Module):
    """The learned kernels, float32 [2 * REACH + 1, 2 * REACH + 1, KERNELS], the same for every
    channel, and the layer that mixes them, zero at the start.

    A kernel's sum counts as zero: an even brightness stays one.

    Attributes:
      dtype: What the mixing layer computes in. The filters are float32 always.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, features: jax.Array) -> jax.Array:
        """What the filters add to x.

        Args:
          x: float32 [B, H, W, C]; beyond the border its pixels repeat.
          features: [B, H/p, W/p, D], of patches of p x p pixels: what the mixtures are made from.

        Returns:
          float32 [B, H, W, C].
        """
        batch, height, width, channels = x.shape
        rows, columns = features.shape[1:3]
        mixing = nn.Dense(
            channels * KERNELS,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="mixing",
        )
        weights = mixing(features).astype(jnp.float32)
        weights = weights.reshape(batch, rows, columns, channels, KERNELS)
        kernels = self.param("kernels", lambda _: jnp.asarray(_differences()))
        kernels -= jnp.mean(kernels, axis=(0, 1))
        planes = x.transpose(0, 3, 1, 2).reshape(batch * channels, height, width, 1)
        made = convolve(planes, kernels[:, :, None])
        patch = height // rows
        made = made.reshape(batch, channels, rows, patch, columns, patch, KERNELS)
        mixed = jnp.einsum("bcypxqk,byxck->bypxqc", made, weights, precision=HIGHEST)
        return mixed.reshape(x.shape)


def _differences() -> np.ndarray:
    """A pixel less its blurs, made orthonormal: float32 [2 * REACH + 1, 2 * REACH + 1, KERNELS]."""
    offsets = np.arange(-REACH, REACH + 1)
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    blurs = [np.exp(-(y**2 + x**2) / (2 * sd**2)) for sd in ROUND]
    for sd in LONG:
        for angle in np.pi / ANGLES * np.arange(ANGLES):
            along = y * np.sin(angle) + x * np.cos(angle)
            aside = y * np.cos(angle) - x * np.sin(angle)
            blurs.append(np.exp(-(along**2) / (2 * sd**2) - aside**2 / (2 * 0.7**2)))
    pixel = (x == 0) & (y == 0)
    kernels = np.stack([pixel - blur / blur.sum() for blur in blurs], axis=-1)
    # As they are each is mostly the pixel: what tells them apart would be learned last.
    basis, _ = np.linalg.qr(kernels.reshape(-1, KERNELS))
    return basis.reshape(kernels.shape).astype(np.float32)
