"""The conv paths of an autoencoder, which add corrections to its linear codec."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae.models.layers import RMSNorm, Stage, depth_to_space, space_to_depth

# The conv paths start at 1/4 resolution: a 4 x 4 patch becomes one position with 48 channels.
STEM = 4


class ConvEncoder(nn.Module):
    """Corrections float32 [B, H/f, W/f, 2C] from an image's PCA residual and whitened latents.

    The module also returns the features from which the corrections are computed. Both inputs are in
    units of their standard deviations. In the image itself the relevant details have 1% of the
    brightness, and a network would hardly see them.
    """

    latent_channels: int
    widths: list[int]
    depth: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, residual: jax.Array, whitened: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = space_to_depth(residual, STEM)
        for level, (width, depth) in enumerate(zip(self.widths, self.depth, strict=True)):
            if level:
                h = space_to_depth(h, 2)
            h = nn.Dense(width, dtype=self.dtype, name=f"down{level}")(h)
            if level == len(self.widths) - 1:
                h += nn.Dense(width, dtype=self.dtype, use_bias=False, name="whitened")(whitened)
            h = Stage(depth, self.dtype, name=f"stage{level}")(h)
        return _zero_head(h, 2 * self.latent_channels, self.dtype), h


class ConvDecoder(nn.Module):
    """Correction of the image from its latents, float32 [B, H, W, 3], in units of PCA's residual.

    The latents are also fed to the finest level, because most remaining errors lie next to existing
    structures. An enhancer has the encoded image at decoding too. It passes that image's residual
    and the encoder's features as `seen`. The module then also returns a gate, float32
    [B, H/4, W/4, 1] in (0, 2): the factor of the change, 1 at initialization.
    """

    widths: list[int]
    depth: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, z: jax.Array, seen: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
        def skip_in(h, x, name):
            zeros = nn.initializers.zeros
            return h + nn.Dense(
                h.shape[-1], dtype=self.dtype, use_bias=False, kernel_init=zeros, name=name
            )(x)

        coarsest = len(self.widths) - 1
        h = z
        for level in reversed(range(coarsest + 1)):
            width = self.widths[level]
            if level == coarsest:
                h = nn.Dense(width, dtype=self.dtype, name=f"up{level}")(h)
            else:
                h = depth_to_space(nn.Dense(4 * width, dtype=self.dtype, name=f"up{level}")(h), 2)
            if level == 0 and coarsest:
                block = 2**coarsest
                skip = nn.Dense(block**2 * width, dtype=self.dtype, use_bias=False, name="skip")(z)
                h += depth_to_space(skip, block)
            if seen is not None and level == coarsest:
                h = skip_in(h, seen[1], "seen_features")
            if seen is not None and level == 0:
                h = skip_in(h, space_to_depth(seen[0], STEM), "seen_residual")
            h = Stage(self.depth[level], self.dtype, name=f"stage{level}")(h)
        correction = depth_to_space(_zero_head(h, STEM**2 * 3, self.dtype), STEM)
        if seen is None:
            return correction
        gate = nn.Dense(1, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="gate")
        h = RMSNorm(name="gate_norm")(h)
        return correction, 2 * nn.sigmoid(gate(h).astype(jnp.float32)), h


def _zero_head(h: jax.Array, features: int, dtype: jnp.dtype) -> jax.Array:
    """Applies the last layer of a conv path: zero-initialised, with float32 output."""
    h = RMSNorm(name="norm")(h)
    zeros = nn.initializers.zeros
    return nn.Dense(features, dtype=dtype, kernel_init=zeros, name="head")(h).astype(jnp.float32)
