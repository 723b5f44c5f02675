"""LatentFlow: a flow-matching prior over the latents of an autoencoder.

    x_t = (1 - t) e + t s w        e ~ N(0, I), w a whitened latent, t from 0 to 1
    v(x_t, t) = a(t) x_t + b(t) network(x_t, t)           is trained towards E[s w - e | x_t]

This is the rectified flow of Liu et al. (2023) and Lipman et al. (2023), over DCT coefficients
("waves"). a and b are chosen such that network = 0 is the optimum for Gaussian latents: at step 0
the model samples the best stationary Gaussian (`vae.models.spectrum`), and training adds the
non-Gaussian part. s decreases with the frequency, like the spectrum of images. Low frequencies thus
emerge from the noise first, so the content of a tile is decided before its details. The network is
a U-Net over waves. Each level reads and predicts the frequencies up to its own resolution, at unit
scale. The coarsest is the mean of the tile, so colour has the same scale as details.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.models.layers import RMSNorm, depth_to_space, space_to_depth
from vae.models.spectrum import Spectrum, coloured, from_waves, rings, to_waves, whitened

FREQUENCIES = 32  # number of frequencies in the embedding of t
# s of a tile's mean, for noise of standard deviation 1; frequency k has LONGEST / (1 + k).
LONGEST = 8.0


def deviations(side: int) -> np.ndarray:
    """Returns s of every frequency, float32 [side, side, 1]."""
    return (LONGEST / (1 + rings(side))).astype(np.float32)[..., None]


class LatentFlow(nn.Module):
    """The velocity of the flow, for latents [B, S, S, C].

    The variables are `params` and `spectrum` (a fixed fit; see `with_spectrum`).

    Attributes:
      latent_channels: C, values per latent position.
      latent_side: S, positions a side; divisible by 2^(levels - 1).
      widths: Channels of each level, from S x S positions down; the side halves at each level.
      depths: Residual blocks of each level on the way down, and again on the way up.
      heads: Attention heads at the two coarsest levels; 0 disables attention.
      labels: Names of the classes that can condition the flow. Without a label it covers all data.
      dtype: Dtype in which the convolutions compute. The waves and the sums are always float32.
    """

    latent_channels: int = 4
    latent_side: int = 32
    widths: tuple[int, ...] = (32, 96, 160, 160)
    depths: tuple[int, ...] = (1, 1, 2, 1)
    heads: int = 4
    labels: tuple[str, ...] = ()
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        smallest = 2 ** (len(self.widths) - 1)
        if len(self.widths) != len(self.depths) or self.latent_side % smallest:
            raise ValueError(
                f"widths={self.widths} and depths={self.depths} must have the same length, and "
                f"latent_side={self.latent_side} must be divisible by {smallest}"
            )
        self.spectrum = self.variable(
            "spectrum", "fit", _blank_spectrum, self.latent_side, self.latent_channels
        )
        # Index 0 means "no label".
        self.label = nn.Embed(len(self.labels) + 1, self.widths[-1], name="label")
        self.network = WaveNet(
            self.latent_channels, self.widths, self.depths, self.heads, self.dtype, name="network"
        )

    def whiten(self, latents: jax.Array) -> jax.Array:
        """Maps latents [B, S, S, C] to coefficients of the same shape with std `deviations`."""
        white = whitened(latents.astype(jnp.float32), self.spectrum.value)
        return white * deviations(self.latent_side)

    def colour(self, coefficients: jax.Array) -> jax.Array:
        """Inverts `whiten`."""
        return coloured(coefficients / deviations(self.latent_side), self.spectrum.value)

    def velocity(self, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        """Returns dx/dt of the flow from noise (t = 0) to latents (t = 1).

        Args:
          x: float32 [B, S, S, C], coefficients.
          t: float32 [B], in [0, 1].
          label: int32 [B], 1 + index in `labels`; 0 for no label.

        Returns:
          float32 [B, S, S, C].
        """
        made, scale = self._network(x, t, label)
        s, t = deviations(self.latent_side), t[:, None, None, None]
        # E[s w - e | x] for independent Gaussians w and e; the remaining deviation is s * scale.
        return (t * s**2 - (1 - t)) * scale**2 * x + s * scale * made

    def _network(self, x, t, label):
        """Returns the network's output for x, and the factor that gives x unit variance."""
        between = t[:, None, None, None]
        variance = (1 - between) ** 2 + (between * deviations(self.latent_side)) ** 2
        scale = jax.lax.rsqrt(variance)
        return self.network(x * scale, t, self.label(label)), scale

    def errors(
        self, latents: jax.Array, noise: jax.Array, t: jax.Array, label: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the errors of the predicted velocity for given latents and noise.

        Args:
          latents: float32 [B, S, S, C].
          noise: float32 [B, S, S, C], standard normal coefficients.
          t: float32 [B], in [0, 1].
          label: int32 [B], see `velocity`.

        Returns:
          The error, float32 [B, S, S, C], divided by the deviation that the best Gaussian leaves
          (mean square 1 at step 0); and x_t divided by its standard deviation, of the same shape.
        """
        goal, between = self.whiten(latents), t[:, None, None, None]
        x = (1 - between) * noise + between * goal
        made, scale = self._network(x, t, label)
        s = deviations(self.latent_side)
        # (s w - e - E[s w - e | x]) / (s scale), simplified to avoid cancellation.
        unknown = scale * ((1 - between) * goal / s - between * s * noise)
        return made - unknown, x * scale

    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        """Returns `velocity`; uses every parameter."""
        return self.velocity(x, t, label)


class WaveNet(nn.Module):
    """A U-Net whose levels read and predict the DCT coefficients up to their own resolution.

    For the attributes see `LatentFlow`.
    """

    latent_channels: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, coefficients: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        """Maps coefficients [B, S, S, C], t [B], labels [B, E] to [B, S, S, C], initially zero."""
        side, last = coefficients.shape[1], len(self.widths) - 1
        mean = coefficients[:, 0, 0]
        about = nn.Dense(self.widths[-1], name="time")(_waves_of(t)) + label
        about += nn.Dense(self.widths[-1], use_bias=False, name="mean_in")(mean)
        about = nn.silu(nn.Dense(self.widths[-1], name="about")(nn.silu(about)))
        about = about.astype(self.dtype)

        def block(h, name):
            return ModulatedBlock(self.dtype, name=name)(h, about)

        skips, h = [], None
        for level, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            size = side >> level
            seen = from_waves(coefficients[:, :size, :size]).astype(self.dtype)
            seen = nn.Dense(width, dtype=self.dtype, name=f"in{level}")(seen)
            if level:
                h = nn.Dense(width, dtype=self.dtype, use_bias=False, name=f"down{level}")(
                    space_to_depth(h, 2)
                )
            h = seen if h is None else h + seen
            for i in range(depth):
                h = block(h, f"down{level}_block{i}")
                if self.heads and level >= last - 1:
                    h = Attention(self.heads, self.dtype, name=f"down{level}_attention{i}")(h)
            skips.append(h)
        made = jnp.zeros_like(coefficients)
        for level in reversed(range(last + 1)):
            if level < last:
                up = nn.Dense(4 * self.widths[level], dtype=self.dtype, name=f"up{level}")(h)
                h = skips[level] + depth_to_space(up, 2)
            for i in range(self.depths[level]):
                h = block(h, f"up{level}_block{i}")
                if self.heads and level >= last - 1:
                    h = Attention(self.heads, self.dtype, name=f"up{level}_attention{i}")(h)
            if level == last:
                whole = jnp.concatenate([h.mean(axis=(1, 2)), about], axis=-1)
                change = _zero_dense(self.latent_channels, "mean_out")(whole.astype(jnp.float32))
                made = made.at[:, 0, 0].add(change)
            size = side >> level
            normed = RMSNorm(name=f"out{level}_norm")(h).astype(jnp.float32)
            waves = to_waves(_zero_dense(self.latent_channels, f"out{level}")(normed))
            made = made.at[:, :size, :size].add(waves)
        return made


class ModulatedBlock(nn.Module):
    """A residual block whose hidden activations are scaled and shifted by a conditioning vector.

    The modulation follows Perez et al. (2018) and Peebles and Xie (2023). The second convolution is
    zero-initialised.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, about: jax.Array) -> jax.Array:
        """Maps [B, h, w, D] and the conditioning vector [B, E] to [B, h, w, D]."""
        channels, zeros = x.shape[-1], nn.initializers.zeros
        change = nn.Dense(2 * channels, dtype=self.dtype, kernel_init=zeros, name="about")(about)
        scale, shift = jnp.split(change[:, None, None], 2, axis=-1)
        h = nn.Conv(channels, (3, 3), dtype=self.dtype, name="conv1")(RMSNorm(name="norm")(x))
        h = nn.silu(RMSNorm(name="middle")(h) * (1 + scale) + shift)
        return x + nn.Conv(channels, (3, 3), dtype=self.dtype, kernel_init=zeros, name="conv2")(h)


class Attention(nn.Module):
    """Self-attention over all positions (Vaswani et al., 2017), with a zero-initialised output."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Adds the attention output to x, [B, h, w, D]."""
        b, height, width, channels = x.shape
        tokens = RMSNorm(name="norm")(x).reshape(b, height * width, channels)
        three = nn.Dense(3 * channels, dtype=self.dtype, name="query_key_value")(tokens)
        query, key, value = jnp.split(three.reshape(b, height * width, self.heads, -1), 3, axis=-1)
        # Normalised queries and keys keep the logits bounded (Henry et al., 2020).
        query, key = RMSNorm(name="query_norm")(query), RMSNorm(name="key_norm")(key)
        made = jax.nn.dot_product_attention(query, key, value).reshape(tokens.shape)
        zeros = nn.initializers.zeros
        made = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(made)
        return x + made.reshape(x.shape)


def _zero_dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.zeros, name=name)


def _waves_of(t: jax.Array) -> jax.Array:
    """Embeds t in [0, 1], [B], by sines and cosines: [B, 2 FREQUENCIES] (Vaswani et al., 2017)."""
    rates = np.geomspace(0.5, 50.0, FREQUENCIES).astype(np.float32)
    angles = 2 * np.pi * t[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _blank_spectrum(side: int, channels: int) -> Spectrum:
    unit = jnp.broadcast_to(jnp.eye(channels), (side, side, channels, channels))
    return Spectrum(mean=jnp.zeros(channels), colour=unit, whiten=unit)


def with_spectrum(variables: dict, spectrum: Spectrum) -> dict:
    """Sets the spectrum of fresh `LatentFlow` variables to a fit."""
    return {**variables, "spectrum": {"fit": jax.tree.map(jnp.asarray, spectrum)}}
