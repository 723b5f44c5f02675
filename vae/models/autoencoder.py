"""AutoencoderKL: a convolutional VAE with a spatial latent, initialized as the best linear VAE.

    encoder   mean = A * (patch_f(x) - m) / sd + conv path(x)      log-variance = b + conv path(x)
    decoder   x_hat = unpatch_f(D * (sd z) + m) + conv path(z)

A and D are the kernels of overlapping PPCA over K x K patches (`vae.models.overlapping_ppca`); with
K = 1 this is PCA. The conv paths end in zero-initialised layers, so the model at step 0 equals the
linear codec. They compute at 1/4 resolution and below, and their receptive field is bounded (see
`vae.models.layers`).
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

    The variables are `params` (learned) and `pca` (a fixed fit; its `sd` and `scale` set the units
    of the latent and of the conv paths). `with_linear_codec` fills both.

    Attributes:
      latent_channels: C, values per latent position.
      downsample: f, pixels per latent position and axis; 4 times a power of two.
      linear_kernel: K, side of the linear path's kernels in patches; odd.
      width: Channels of the conv paths at 1/4 resolution.
      deep_width: Channels of the conv paths at 1/8 resolution and below.
      encoder_depth: Residual blocks at 1/4 and at each lower resolution, from fine to coarse.
      decoder_depth: The same for the decoder, also from fine to coarse.
      dtype: Dtype in which the conv paths compute. The linear path and the sums are always float32.
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
        """Encodes images [B, H, W, 3] in [-1, 1], H and W divisible by f.

        Returns the posterior [B, H/f, W/f, C]. `train` has no effect: no layer depends on it.
        """
        return self._analyse(x)[0]

    def _analyse(self, x: jax.Array) -> tuple[Posterior, jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the posterior, the latents of the linear path alone, and what the conv path used:
        PCA's residual [B, H, W, 3] and its last features [B, H/f, W/f, D]."""
        pca = self.pca.value
        x = x.astype(jnp.float32)
        linear = self.linear.encode(space_to_depth(x, self.downsample))
        whitened = pca.encode(x).mean
        residual = (x - pca.decode(whitened)) / pca.scale
        deltas, features = self.encoder(residual, whitened)
        delta_mean, delta_log_var = jnp.split(deltas, 2, axis=-1)
        # The conv path's unit is one standard deviation of the initial posterior: a correction of
        # that size is not hidden by the noise of z.
        mean = linear / pca.sd + jnp.exp(0.5 * pca.log_var()) * delta_mean
        posterior = Posterior(mean, self.linear.log_var + delta_log_var)
        return posterior, linear, (residual, features)

    def decode(self, z: jax.Array) -> jax.Array:
        """Decodes latents [B, h, w, C] to the mean image, float32 [B, h*f, w*f, 3], not clipped."""
        pca = self.pca.value
        z = z.astype(jnp.float32)
        linear = depth_to_space(self.linear.decode(z * pca.sd), self.downsample)
        return linear + pca.scale * self.decoder(z)

    def log_scale(self) -> jax.Array:
        """Returns the learned log standard deviation of the Gaussian likelihood, float32 [].

        sigma is at least that of 8-bit rounding: sigma^2 = floor^2 + exp(2 raw). This is smooth, so
        the gradient does not vanish at the floor.
        """
        return 0.5 * jnp.log(QUANTISATION_STD**2 + jnp.exp(2 * self.raw_log_scale))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstructs images [B, H, W, 3] from their posterior means; uses every parameter."""
        self.log_scale()
        return self.decode(self.encode(x).mean)

    @property
    def tile_size(self) -> None:
        """Returns None: the model accepts images of any size."""
        return None

    @property
    def encoder_halo(self) -> int:
        """Returns how many pixels beyond its own f x f patch a latent's posterior depends on."""
        conv_path = sum(
            ResidualBlock.REACH * depth * STEM * 2**level
            for level, depth in enumerate(self.encoder_depth)
        )
        return max(conv_path, self.linear_kernel // 2 * self.downsample)

    @property
    def decoder_halo(self) -> int:
        """Returns how many latent positions beyond its own a pixel depends on, on each side."""
        pixels = sum(
            ResidualBlock.REACH * depth * STEM * 2**level
            for level, depth in enumerate(self.decoder_depth)
        )
        return max(-(-pixels // self.downsample), self.linear_kernel // 2)


class LinearPath(nn.Module):
    """The learned linear codec: A, D, m and the log-variance b. Float32 on every backend.

    The outermost patches and latents repeat beyond the border, so that a constant image stays
    constant.
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
        """Encodes patches [B, h, w, f*f*3] to latents [B, h, w, C]."""
        return convolve(patches - self.mean, self.analysis)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decodes latents [B, h, w, C] to patches [B, h, w, f*f*3]."""
        return self.decode_change(latents) + self.mean

    def decode_change(self, latents: jax.Array) -> jax.Array:
        """Decodes a difference of latents to a difference of patches: `decode` without the mean."""
        return convolve(latents, self.synthesis)


def _blank_pca(patch: int, latent_channels: int) -> PCA:
    """Returns a PCA with unit scales, so that a model without a fit can be evaluated."""
    return PCA(
        mean=jnp.zeros(patch),
        components=jnp.eye(patch, latent_channels),
        sd=jnp.ones(latent_channels),
        scale=jnp.ones(()),
    )


def with_linear_codec(
    variables: dict, pca: PCA, overlapping: OverlappingPPCA | None = None
) -> dict:
    """Sets the linear path and the likelihood of fresh `AutoencoderKL` variables to a fit.

    Args:
      variables: Variables as returned by `AutoencoderKL.init`.
      pca: The PCA fit, with the model's latent size and patch side.
      overlapping: The overlapping PPCA fit, with the model's kernel or a smaller one; None for PCA.

    Returns:
      New variables. Their mean reconstruction, posterior and likelihood are those of the fit.
    """
    overlapping = from_pca(pca) if overlapping is None else overlapping
    params = dict(variables["params"])
    border = (params[LINEAR]["analysis"].shape[0] - overlapping.analysis.shape[0]) // 2
    inside = ((border, border), (border, border), (0, 0), (0, 0))
    # Inverts the smooth floor of `log_scale`, so that log sigma = log s; e^-12 replaces zero.
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
