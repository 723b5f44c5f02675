"""Enhancer: a degraded photograph made clear, in two stages.

    toned    = x + (a smooth field of colour curves)(x)       from the photograph's whole view
    enhanced = toned + D * (sd z - A * toned) + gain * conv path(z, toned)      bounded reach

Light, haze and colour cannot be judged from a tile: a small network sees the photograph reduced to
`VIEW` pixels and gives the coefficients of curves over the field of view, a function of the
photograph alone, so tiles agree. What is left, blur, grain, blocks, is the detail stage's: an
`AutoencoderKL` whose decoder sees the image too, so that the latent need not carry what is good. D
and A are its linear path (`vae.models.autoencoder`): only a *change* of the linear code changes the
image. All heads start at zero, so step 0 is the identity.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from data.views import MARGIN, VIEW
from vae.models.autoencoder import AutoencoderKL
from vae.models.layers import RMSNorm, Stage, depth_to_space, space_to_depth
from vae.models.posterior import Posterior

# Side of the field of coefficients; a cell is an eighth of the radius or so.
GRID = 16
# Curves per channel: of three channels and of their squares, and a constant.
CURVES = 7
# What is wrong with a bad photograph is larger than what a codec leaves by this much.
GAIN = 8.0
# The likelihood's scale at the start, logarithm: some six grey levels are usually wrong.
LOG_SCALE = -3.0


class Enhancer(AutoencoderKL):
    """p(clean image | degraded image, view) for images [B, H, W, 3] in [-1, 1].

    Variables as for `AutoencoderKL`, with `tone` and the decoder's skips among the parameters.

    Attributes:
      tone_width: Channels of the tone stage on the grid; twice as many on half of it.
    """

    tone_width: int = 48

    def setup(self):
        super().setup()
        self.tone_field = ToneField(self.tone_width, self.dtype, name="tone")

    def tone(self, x: jax.Array, view: jax.Array, place: jax.Array) -> jax.Array:
        """The colour curves: pixel by pixel, given the view.

        Args:
          x: float32 [B, H, W, 3] in [-1, 1].
          view: float32 [B, VIEW, VIEW, 3] in [-1, 1], the square of `MARGIN` radii around the
            centre of the photograph's field of view.
          place: float32 [B, 3]: row and column of that centre in pixels of x, and the radius.

        Returns:
          float32 [B, H, W, 3], not clipped.
        """
        coefficients = self.tone_field(view.astype(jnp.float32))  # [B, GRID, GRID, 3 * CURVES]
        rows = _weights(x.shape[1], place[:, 0], place[:, 2])
        columns = _weights(x.shape[2], place[:, 1], place[:, 2])
        field = jnp.einsum("bhi,bijk->bhjk", rows, coefficients)
        field = jnp.einsum("bwj,bhjk->bhwk", columns, field)
        light = (x.astype(jnp.float32) + 1) / 2
        curves = jnp.concatenate([light, light**2, jnp.ones_like(light[..., :1])], axis=-1)
        field = field.reshape(*field.shape[:-1], 3, CURVES)
        return x + 2 * jnp.sum(field * curves[..., None, :], axis=-1)

    def detail(self, toned: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """What has to be seen from near: [B, H, W, 3] -> the same, sides divisible by f.

        Args:
          toned: Of `tone`.
          noise: float32 [B, H/f, W/f, C], standard normal: a sample of the posterior; None for its
            mean.
        """

        def draw(posterior):
            spread = 0 if noise is None else jnp.exp(0.5 * posterior.log_var) * noise
            return posterior.mean + spread

        return self._restore(toned, draw)[0]

    def restore(
        self,
        x: jax.Array,
        view: jax.Array,
        place: jax.Array,
        draw: Callable[[Posterior], jax.Array],
    ) -> tuple[jax.Array, Posterior]:
        """Both stages, with the latent that `draw` takes from the posterior, and the posterior."""
        return self._restore(self.tone(x, view, place), draw)

    def _restore(self, toned, draw):
        pca = self.pca.value
        posterior, linear, seen = self._analyse(toned)
        z = draw(posterior)
        change = self.linear.decode_change(z * pca.sd - linear)
        change = depth_to_space(change, self.downsample)
        return toned + change + GAIN * pca.scale * self.decoder(z, seen), posterior

    def __call__(
        self, x: jax.Array, view: jax.Array, place: jax.Array, noise: jax.Array | None = None
    ) -> jax.Array:
        """The enhanced image [B, H, W, 3], not clipped; uses every parameter."""
        self.log_scale()
        return self.detail(self.tone(x, view, place), noise)

    @property
    def detail_halo(self) -> int:
        """Pixels around a pixel's own f x f patch that it depends on, given the toned image."""
        return self.encoder_halo + self.downsample * self.decoder_halo


class ToneField(nn.Module):
    """View [B, VIEW, VIEW, 3] -> coefficients [B, GRID, GRID, 3 * CURVES], zero at the start."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, view: jax.Array) -> jax.Array:
        near = nn.Dense(self.width, dtype=self.dtype)(space_to_depth(view, VIEW // GRID))
        near = Stage(1, self.dtype, name="near")(near)
        far = nn.Dense(2 * self.width, dtype=self.dtype)(space_to_depth(near, 2))
        far = Stage(2, self.dtype, name="far")(far)
        # Its reach is bounded, the photograph's colour is not.
        whole = nn.silu(nn.Dense(2 * self.width, dtype=self.dtype)(far.mean(axis=(1, 2))))
        far += nn.Dense(2 * self.width, dtype=self.dtype)(whole)[:, None, None]
        near += depth_to_space(nn.Dense(4 * self.width, dtype=self.dtype)(far), 2)
        near = RMSNorm(name="norm")(Stage(1, self.dtype, name="out")(near))
        zeros = nn.initializers.zeros
        head = nn.Dense(3 * CURVES, dtype=self.dtype, kernel_init=zeros, name="head")
        return head(near).astype(jnp.float32)


def _weights(length: int, centre: jax.Array, radius: jax.Array) -> jax.Array:
    """How much each cell of the grid counts at each pixel of an axis: float32 [B, length, GRID].

    Quadratic B-splines: the field has no edges at the cells' borders (de Boor, 1978).
    """
    pixels = jnp.arange(length, dtype=jnp.float32)
    where = (pixels - centre[:, None]) / radius[:, None]  # -1 to 1 inside the field of view
    where = jnp.clip((where / MARGIN + 1) / 2 * GRID - 0.5, 0, GRID - 1)
    away = jnp.abs(where[..., None] - jnp.arange(GRID))
    near, far = 0.75 - away**2, 0.5 * jnp.maximum(1.5 - away, 0) ** 2
    weights = jnp.where(away < 0.5, near, far)
    return weights / weights.sum(axis=-1, keepdims=True)


def with_wide_likelihood(variables: dict) -> dict:
    """Fresh variables of an `Enhancer` with the scale of its errors, not of a codec's."""
    log_scale = jnp.full_like(variables["params"]["log_scale"], LOG_SCALE)
    return {**variables, "params": {**variables["params"], "log_scale": log_scale}}


def with_autoencoder(variables: dict, autoencoder: dict) -> dict:
    """Fresh variables of an `Enhancer` with those of a trained `AutoencoderKL` of its sizes.

    Step 0 adds to an image what the autoencoder's reconstruction adds to its linear one.
    """
    params = {**variables["params"], **autoencoder["params"]}
    decoder = {**variables["params"]["decoder"], **autoencoder["params"]["decoder"]}
    decoder["head"] = jax.tree.map(lambda leaf: leaf / GAIN, decoder["head"])
    params["decoder"] = decoder
    return with_wide_likelihood({**variables, "params": params, "pca": autoencoder["pca"]})
