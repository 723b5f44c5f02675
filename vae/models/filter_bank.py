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

from vae.models.layers import space_to_depth
from vae.precision import HIGHEST

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


# All kernels at all pixels of a patch are one matrix, of what lies around the patch: half as many
# products again as a convolution, in half the time, because XLA's convolutions of one channel leave
# most of a CPU idle.


def _surroundings(x: jax.Array, patch: int) -> jax.Array:
    """The pixels within REACH of each patch, those of the border repeated beyond it.

    [B, H, W, C] -> [B, C, H/patch, W/patch, (patch + 2 * REACH) ** 2], block by block of
    patch x patch; 2 * REACH is divisible by `patch`.
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
    """Kernels [K, K, n] as what they make of a patch's surroundings: [.., patch * patch * n]."""
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
