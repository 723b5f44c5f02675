"""Enhancer: a degraded photograph made clear, in three stages.

    toned    = x, with its light, haze, colour and contrast undone     from a thumbnail
    sharp    = toned, with its blur undone                             from its periodogram
    enhanced = sharp + gate * (D * (sd z - A * sharp) + gain * conv path(z, sharp))

Light, haze and colour cannot be judged from a tile: the tone stage (`vae.models.tone`) sees the
photograph reduced to `THUMBNAIL` pixels. Nor can its blur: sharpening (`vae.models.sharpening`)
sees its averaged spectrum. What is left, grain and blocks, is the detail stage's, of bounded reach:
an `AutoencoderKL` whose decoder sees the image too, so that the latent need not carry what is good.
D and A are its linear path (`vae.models.autoencoder`): only a *change* of the linear code changes
the image, and a gate at each 4 x 4 patch can leave it as it is. All heads start at zero, so step 0
is the identity.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae.models.autoencoder import STEM, AutoencoderKL
from vae.models.layers import depth_to_space
from vae.models.periodogram import window_powers
from vae.models.posterior import Posterior
from vae.models.sharpening import Sharpening, correlate_each
from vae.models.tone import ToneField, apply_tone, change_size, evidence, expected_error

# What is wrong with a bad photograph is larger than what a codec leaves by this much.
GAIN = 8.0
TONE, SHARPENING = "tone", "sharpening"
# The likelihood's scale at the start, logarithm: some six grey levels are usually wrong.
LOG_SCALE = -3.0


class Enhancer(AutoencoderKL):
    """p(clean image | degraded image, thumbnail) for images [B, H, W, 3] in [-1, 1].

    Variables as for `AutoencoderKL`, with `tone` and the decoder's skips among the parameters.

    Attributes:
      tone_width: Channels of the tone stage on the grid; twice as many on half of it.
      tone_evidence: Sizes of a change of tone, grey levels, from which on it is made, and made
        whole (`vae.models.tone.evidence`).
      tone_rms_error: Root mean square error of toned photographs, grey levels.
    """

    tone_width: int = 48
    tone_evidence: tuple[float, float] = (10.0, 15.0)
    tone_rms_error: float = 13.0

    def setup(self):
        super().setup()
        self.sharpening_kernels = Sharpening(name=SHARPENING)
        self.tone_field = ToneField(self.tone_width, self.dtype, name=TONE)

    def tone(self, x: jax.Array, thumbnail: jax.Array, circle: jax.Array) -> jax.Array:
        """The tone stage: pixel by pixel, given the thumbnail.

        Args:
          x: float32 [B, H, W, 3] in [-1, 1].
          thumbnail: float32 [B, THUMBNAIL, THUMBNAIL, 3] in [-1, 1], the square of `MARGIN` radii
            around the centre of the photograph's field of view.
          circle: float32 [B, 3]: row and column of that centre in pixels of x, and the radius.

        Returns:
          float32 [B, H, W, 3], not clipped.
        """
        thumbnail = thumbnail.astype(jnp.float32)
        coefficients = self.tone_field(thumbnail)
        share = evidence(change_size(thumbnail, coefficients), *self.tone_evidence)
        return x + share[:, None, None, None] * (apply_tone(x, coefficients, circle) - x)

    def tone_error(self, thumbnail: jax.Array) -> jax.Array:
        """Returns the error to be expected of `tone`, grey levels: float32 [B]."""
        thumbnail = thumbnail.astype(jnp.float32)
        size = change_size(thumbnail, self.tone_field(thumbnail))
        return expected_error(size, evidence(size, *self.tone_evidence), self.tone_rms_error)

    def tone_in_training(self, x: jax.Array, thumbnail: jax.Array, circle: jax.Array) -> jax.Array:
        """As `tone`, with changes of any size: what is not made learns nothing."""
        return apply_tone(x, self.tone_field(thumbnail.astype(jnp.float32)), circle)

    def kernels(self, powers: jax.Array, count: jax.Array) -> jax.Array:
        """The filters that sharpen photographs: float32 [B, 3, K, K], to be added to the identity.

        Args:
          powers: float32 [B, 3, ...], of the toned photograph (`periodogram.window_powers`).
          count: float32 [B], windows that they are of.
        """
        return self.sharpening_kernels(powers, count)

    def sharpen(self, toned: jax.Array, circle: jax.Array) -> jax.Array:
        """Tiles sharpened by what their own periodograms tell: [B, H, W, 3] -> the same.

        A photograph's is of more windows: its tiles are to be sharpened by that.

        Args:
          toned: Of `tone`.
          circle: float32 [B, 3], see `tone`.
        """
        y, x, radius = circle.T[:, :, None]
        rows, columns = (jnp.arange(side) for side in toned.shape[1:3])
        away = jnp.square(rows - y)[:, :, None] + jnp.square(columns - x)[:, None]
        inside = away <= jnp.square(radius)[..., None]
        return toned + correlate_each(toned, self.kernels(*window_powers(toned, inside)))

    def detail(self, toned: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """What has to be seen from near: [B, H, W, 3] -> the same, sides divisible by f.

        Args:
          toned: Of `tone`, and sharpened.
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
        thumbnail: jax.Array,
        circle: jax.Array,
        draw: Callable[[Posterior], jax.Array],
    ) -> tuple[jax.Array, Posterior]:
        """All stages in training, with the latent that `draw` takes from the posterior, and it."""
        return self._restore(
            self.sharpen(self.tone_in_training(x, thumbnail, circle), circle), draw
        )

    def _restore(self, toned, draw):
        pca = self.pca.value
        posterior, linear, seen = self._analyse(toned)
        z = draw(posterior)
        change = self.linear.decode_change(z * pca.sd - linear)
        change = depth_to_space(change, self.downsample)
        correction, gate = self.decoder(z, seen)
        change += GAIN * pca.scale * correction
        gate = jnp.repeat(jnp.repeat(gate, STEM, axis=1), STEM, axis=2)
        return toned + gate * change, posterior

    def __call__(
        self, x: jax.Array, thumbnail: jax.Array, circle: jax.Array, noise: jax.Array | None = None
    ) -> jax.Array:
        """The enhanced image [B, H, W, 3], not clipped; uses every parameter."""
        self.log_scale()
        return self.detail(self.sharpen(self.tone(x, thumbnail, circle), circle), noise)

    @property
    def detail_halo(self) -> int:
        """Pixels around a pixel's own f x f patch that it depends on, given the sharpened image."""
        return self.encoder_halo + self.downsample * self.decoder_halo


def with_wide_likelihood(variables: dict) -> dict:
    """Fresh variables of an `Enhancer` with the scale of its errors, not of a codec's."""
    log_scale = jnp.full_like(variables["params"]["log_scale"], LOG_SCALE)
    return {**variables, "params": {**variables["params"], "log_scale": log_scale}}
