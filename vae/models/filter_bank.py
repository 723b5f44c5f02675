"""Spatially varying filters: each patch is filtered by its own mixture of a few learned kernels.

    filtered = x + sum_k weight_k * (kernel_k * x)

Mildenhall et al., "Burst denoising with kernel prediction networks" (2018), predict a kernel for
every pixel; Xia et al., "Basis prediction networks" (2020), predict mixtures of a common basis.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.models.layers import space_to_depth
from vae.precision import HIGHEST

# Pixels that a kernel reaches to each side.
REACH = 6
# Initial kernels: pixel minus blur, for round blurs and blurs along lines at ANGLES angles.
ROUND = (0.8, 1.3, 2.0, 3.0)
LONG = (1.5, 2.5, 4.0)
ANGLES = 4
KERNELS = len(ROUND) + len(LONG) * ANGLES


class FilterBank(nn.Module):
    """Learned kernels, float32 [2 * REACH + 1, 2 * REACH + 1, KERNELS], and their mixing layer.

    The kernels are shared by all channels. Their means are subtracted, so a constant image stays
    constant. The mixing layer is zero-initialized.

    Attributes:
      dtype: What the mixing layer computes in. The filters are float32 always.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, features: jax.Array) -> jax.Array:
        """Returns the correction that the filters add to x.

        Args:
          x: float32 [B, H, W, C]; beyond the border its pixels repeat.
          features: [B, H/p, W/p, D], of patches of p x p pixels; they determine the mixtures.

        Returns:
          float32 [B, H, W, C].
        """
        batch, height, _, channels = x.shape
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
        patch = height // rows
        made = jnp.matmul(_surroundings(x, patch), _as_matrix(kernels, patch), precision=HIGHEST)
        made = made.reshape(batch, channels, rows, columns, patch, patch, KERNELS)
        mixed = jnp.einsum("bcyxpqk,byxck->bypxqc", made, weights, precision=HIGHEST)
        return mixed.reshape(x.shape)


# All kernels at all pixels of a patch form one matrix over the patch and its surroundings. This
# needs 1.5 times the products of a convolution and half its time: XLA's convolutions of one channel
# leave most of a CPU idle.


def _surroundings(x: jax.Array, patch: int) -> jax.Array:
    """Collects the pixels within REACH of each patch; beyond the border, its pixels repeat.

    [B, H, W, C] -> [B, C, H/patch, W/patch, (patch + 2 * REACH) ** 2], in blocks of patch x patch;
    2 * REACH is divisible by `patch`.
    """
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0)), mode="edge")
    planes = x.transpose(0, 3, 1, 2).reshape(batch * channels, *x.shape[1:3], 1)
    blocks = space_to_depth(planes, patch)
    rows, columns, span = height // patch, width // patch, 1 + 2 * REACH // patch
    around = jnp.concatenate(
        [blocks[:, i : i + rows, j : j + columns] for i in range(span) for j in range(span)],
        axis=-1,
    )
    return around.reshape(batch, channels, rows, columns, -1)


def _as_matrix(kernels: jax.Array, patch: int) -> jax.Array:
    """Returns kernels [K, K, n] as a matrix over the surroundings: [.., patch * patch * n]."""
    last = patch - 1
    shifted = jnp.stack([
        jnp.pad(kernels, ((i, last - i), (j, last - j), (0, 0)))
        for i in range(patch)
        for j in range(patch)
    ])  # fmt: skip
    side, count = shifted.shape[1], len(shifted) * kernels.shape[-1]
    shifted = shifted.transpose(1, 2, 0, 3).reshape(
        side // patch, patch, side // patch, patch, count
    )
    return shifted.transpose(0, 2, 1, 3, 4).reshape(side**2, count)


def _differences() -> np.ndarray:
    """Returns the initial kernels, orthonormal: float32 [2 * REACH + 1, 2 * REACH + 1, KERNELS]."""
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
    # Without orthonormalisation each is mostly the pixel, and their differences are learned last.
    basis, _ = np.linalg.qr(kernels.reshape(-1, KERNELS))
    return basis.reshape(kernels.shape).astype(np.float32)
