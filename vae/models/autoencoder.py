"""AutoencoderKL: a convolutional VAE with a spatial latent that starts as the best linear one.

    encoder   mean = A * (patch_f(x) - m) / sd + conv path(x)      log-variance = b + conv path(x)
    decoder   x_hat = unpatch_f(D * (sd z) + m) + conv path(z)

A and D are convolutions over K x K patches, overlapping probabilistic PCA
(`vae.models.overlapping_ppca`); with K = 1 they are PCA itself. The conv paths end in
zero-initialised layers, so step 0 *is* the linear codec. They compute at a quarter of the
resolution and below, and their reach is bounded (see `vae.models.layers`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.models.conv_paths import STEM, ConvDecoder, ConvEncoder
from vae.models.layers import ResidualBlock, convolve, depth_to_space, space_to_depth
from vae.models.overlapping_ppca import OverlappingPPCA, from_pca
from vae.models.pca import PCA, QUANTISATION_STD
from vae.models.posterior import Posterior

LINEAR = "linear"


class AutoencoderKL(nn.Module):
    """Encoder q(z | x) and decoder p(x | z) for images [B, H, W, 3] in [-1, 1], any H, W.

    Variables: `params` (learned) and `pca` (a fixed fit whose `sd` and `scale` set the units of the
    latent and of the conv paths). `with_linear_codec` fills both.

    Attributes:
      latent_channels: C, values per latent position.
      downsample: f, pixels per latent position and axis; 4 times a power of two.
      linear_kernel: K, patches a side that the linear path's kernels reach over; odd.
      width: Channels of the conv paths at 1/4 resolution; at 1/8 and below, `deep_width`.
      deep_width: Channels of the conv paths below 1/4 resolution.
      encoder_depth: Residual blocks at 1/4 and at each resolution below, from fine to coarse.
      decoder_depth: Likewise, from fine to coarse.
      dtype: What the conv paths compute in. The linear path and the sums are float32 always.
    """

    latent_channels: int = 32
    downsample: int = 8
    linear_kernel: int = 3
    width: int = 64
    deep_width: int = 128
    encoder_depth: tuple[int, ...] = (1, 2)
    decoder_depth: tuple[int, ...] = (3, 2)
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        levels = len(self.encoder_depth)
        if self.downsample != STEM * 2 ** (levels - 1) or levels != len(self.decoder_depth):
            raise ValueError(
                f"downsample={self.downsample} needs a depth for each resolution from 1/{STEM} to "
                f"1/{self.downsample}, got encoder_depth={self.encoder_depth}, "
                f"decoder_depth={self.decoder_depth}"
            )
        if self.linear_kernel % 2 == 0:
            raise ValueError(f"linear_kernel={self.linear_kernel} must be odd")
        patch = self.downsample**2 * 3
        widths = [self.width] + [self.deep_width] * (levels - 1)
        self.linear = LinearPath(patch, self.latent_channels, self.linear_kernel, name=LINEAR)
        self.pca = self.variable("pca", "fit", _blank_pca, patch, self.latent_channels)
        self.encoder = ConvEncoder(self.latent_channels, widths, self.encoder_depth, self.dtype)
        self.decoder = ConvDecoder(widths, self.decoder_depth, self.dtype)
        self.raw_log_scale = self.param("log_scale", nn.initializers.constant(-4.0), ())

    def encode(self, x: jax.Array, train: bool = False) -> Posterior:
        """Images [B, H, W, 3] in [-1, 1], sides divisible by f -> posterior [B, H/f, W/f, C].

        `train` changes nothing: no layer here has another way for training.
        """
        return self._analyse(x)[0]

    def _analyse(self, x: jax.Array) -> tuple[Posterior, jax.Array, tuple[jax.Array, jax.Array]]:
        """The posterior, what the linear path alone makes of x, and what the encoder saw of it:
        PCA's residual [B, H, W, 3] and its own last features [B, H/f, W/f, D]."""
        pca = self.pca.value
        x = x.astype(jnp.float32)
        linear = self.linear.encode(space_to_depth(x, self.downsample))
        whitened = pca.encode(x).mean
        residual = (x - pca.decode(whitened)) / pca.scale
        deltas, features = self.encoder(residual, whitened)
        delta_mean, delta_log_var = jnp.split(deltas, 2, axis=-1)
        # A unit of the conv path is one standard deviation of the starting posterior: the size of
        # a correction that the noise of z does not drown.
        mean = linear / pca.sd + jnp.exp(0.5 * pca.log_var()) * delta_mean
        posterior = Posterior(mean, self.linear.log_var + delta_log_var)
        return posterior, linear, (residual, features)

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents [B, h, w, C] -> mean image float32 [B, h*f, w*f, 3], not clipped to [-1, 1]."""
        pca = self.pca.value
        z = z.astype(jnp.float32)
        linear = depth_to_space(self.linear.decode(z * pca.sd), self.downsample)
        return linear + pca.scale * self.decoder(z)

    def log_scale(self) -> jax.Array:
        """Log standard deviation of the Gaussian likelihood, learned: float32 [].

        Never below that of 8-bit rounding: sigma^2 = floor^2 + exp(2 raw), smooth, so the gradient
        survives at the floor.
        """
        return 0.5 * jnp.log(QUANTISATION_STD**2 + jnp.exp(2 * self.raw_log_scale))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images -> reconstruction from the posterior mean, [B, H, W, 3]; uses every parameter."""
        self.log_scale()
        return self.decode(self.encode(x).mean)

    @property
    def tile_size(self) -> None:
        """The one side of image that the model takes: any."""
        return None

    @property
    def encoder_halo(self) -> int:
        """Pixels around a latent's own f x f patch that its posterior depends on."""
        conv_path = sum(
            ResidualBlock.REACH * depth * STEM * 2**level
            for level, depth in enumerate(self.encoder_depth)
        )
        return max(conv_path, self.linear_kernel // 2 * self.downsample)

    @property
    def decoder_halo(self) -> int:
        """Latent positions around a pixel's own that the pixel depends on."""
        pixels = sum(
            ResidualBlock.REACH * depth * STEM * 2**level
            for level, depth in enumerate(self.decoder_depth)
        )
        return max(-(-pixels // self.downsample), self.linear_kernel // 2)


class LinearPath(nn.Module):
    """The learned linear codec: A, D, m and the log-variance b. Float32 on every backend.

    Beyond the border patches and latents repeat, so that an even brightness stays one.
    """

    patch: int
    latent_channels: int
    kernel: int

    def setup(self):
        grid, columns = (self.kernel, self.kernel), nn.initializers.orthogonal()
        shape = (*grid, self.patch, self.latent_channels)
        self.analysis = self.param("analysis", columns, shape)
        shape = (*grid, self.latent_channels, self.patch)
        self.synthesis = self.param("synthesis", columns, shape)
        self.mean = self.param("mean", nn.initializers.zeros, (self.patch,))
        self.log_var = self.param("log_var", nn.initializers.zeros, (self.latent_channels,))

    def encode(self, patches: jax.Array) -> jax.Array:
        """[B, h, w, f*f*3] -> [B, h, w, C]."""
        return convolve(patches - self.mean, self.analysis)

    def decode(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, f*f*3]."""
        return self.decode_change(latents) + self.mean

    def decode_change(self, latents: jax.Array) -> jax.Array:
        """What a change of the latents changes: as `decode`, without the mean."""
        return convolve(latents, self.synthesis)


def _blank_pca(patch: int, latent_channels: int) -> PCA:
    """Unit scales, so that a model without a fit still computes."""
    return PCA(
        mean=jnp.zeros(patch),
        components=jnp.eye(patch, latent_channels),
        sd=jnp.ones(latent_channels),
        scale=jnp.ones(()),
    )


def with_linear_codec(
    variables: dict, pca: PCA, overlapping: OverlappingPPCA | None = None
) -> dict:
    """Fresh variables of an `AutoencoderKL`, moved to its linear start.

    Args:
      variables: What `AutoencoderKL.init` returned, or its abstract shapes' values.
      pca: The fit, of the model's latent size and patch side.
      overlapping: The fit with overlap, of the model's kernel or a smaller one; None for PCA.

    Returns:
      New variables: mean reconstruction, posterior and likelihood are the fit's.
    """
    overlapping = from_pca(pca) if overlapping is None else overlapping
    params = dict(variables["params"])
    border = (params[LINEAR]["analysis"].shape[0] - overlapping.analysis.shape[0]) // 2
    inside = ((border, border), (border, border), (0, 0), (0, 0))
    # log sigma = log s through the smooth floor of `log_scale`; e^-12 stands for minus infinity.
    excess = jnp.maximum(jnp.square(overlapping.scale) - QUANTISATION_STD**2, np.exp(-24.0))
    params[LINEAR] = {
        "analysis": jnp.pad(overlapping.analysis, inside),
        "synthesis": jnp.pad(overlapping.synthesis, inside),
        "mean": jnp.asarray(pca.mean),
        "log_var": jnp.asarray(overlapping.log_var),
    }
    params["log_scale"] = (0.5 * jnp.log(excess)).astype(jnp.float32)
    fit = jax.tree.map(jnp.asarray, pca)
    return {**variables, "params": params, "pca": {"fit": fit}}
