"""Enhancer: restores degraded photographs in three stages.

    toned    = x with light, haze and contrast corrected               from a thumbnail
    sharp    = toned, deblurred                                        from its periodogram
    enhanced = sharp + gate * (D * (sd z - A * sharp) + gain * conv path(z, sharp) + filters(sharp))

A tile does not show the light and haze of the whole photograph, so the tone stage
(`vae.models.tone`) uses a thumbnail. A tile does not show the blur reliably, so the sharpening
stage (`vae.models.sharpening`) uses the photograph's averaged periodogram. The detail stage removes
grain and blocks with a bounded receptive field. It is an `AutoencoderKL` whose decoder also sees
the image, so the latent need not encode what is already good. D and A are its linear path
(`vae.models.autoencoder`). They change the image only by a change of the linear code, and a gate
for each 4 x 4 patch scales the change. Filters that the decoder mixes for each patch
(`vae.models.filter_bank`) remove most of the grain. All heads start at zero, so step 0 is the
identity.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae.models.autoencoder import STEM, AutoencoderKL
from vae.models.filter_bank import REACH as FILTER_REACH
from vae.models.filter_bank import FilterBank
from vae.models.layers import depth_to_space
from vae.models.periodogram import window_powers
from vae.models.posterior import Posterior
from vae.models.sharpening import Sharpening, correlate_each
from vae.models.tone import ToneField, apply_tone, change_size, evidence

# Errors of a degraded photograph are larger than a codec's residual by about this factor.
GAIN = 8.0
TONE, SHARPENING = "tone", "sharpening"
# Initial log standard deviation of the likelihood: about six grey levels, the usual error.
LOG_SCALE = -3.0


class Enhancer(AutoencoderKL, kw_only=True):
    """p(clean image | degraded image, thumbnail) for images [B, H, W, 3] in [-1, 1].

    The variables are those of `AutoencoderKL`, and parameters of the tone stage, of the sharpening
    stage and of the decoder's skips.

    Attributes:
      tone_width: Channels of the tone stage at its first resolution; at half of it, twice as many.
      tone_evidence: Sizes of a tone change in grey levels: up to the first the change is not
        applied, from the second on it is applied in full (`vae.models.tone.evidence`).
      typical_colour: Mean R, G and B of typical photographs, grey levels.
      typical_spectrum: Level, fall and spread of typical photographs (`periodogram.signature`), dB.
    """

    tone_width: int
    tone_evidence: tuple[float, float]
    typical_colour: tuple[float, float, float]
    typical_spectrum: tuple[float, float, float]

    def setup(self):
        super().setup()
        self.filter_bank = FilterBank(self.dtype)
        self.sharpening_kernels = Sharpening(self.typical_spectrum, name=SHARPENING)
        self.tone_field = ToneField(self.tone_width, self.dtype, name=TONE)

    def tone(self, x: jax.Array, thumbnail: jax.Array, circle: jax.Array) -> jax.Array:
        """Applies the tone stage, which acts pixel by pixel.

        Args:
          x: float32 [B, H, W, 3] in [-1, 1].
          thumbnail: float32 [B, THUMBNAIL, THUMBNAIL, 3] in [-1, 1]; it extends `MARGIN` radii to
            each side of the FOV centre.
          circle: float32 [B, 3]: FOV circle in pixels of x: row and column of its centre, radius.

        Returns:
          float32 [B, H, W, 3], not clipped.
        """
        return apply_tone(x, self.coefficients(thumbnail), circle)

    def coefficients(self, thumbnail: jax.Array) -> jax.Array:
        """Returns gain and offset of the tone stage; zero if their change is too small.

        Args:
          thumbnail: See `tone`.

        Returns:
          float32 [B, GRID, GRID, COEFFICIENTS] of `vae.models.tone`.
        """
        thumbnail = thumbnail.astype(jnp.float32)
        coefficients = self.tone_field(thumbnail)
        share = evidence(change_size(thumbnail, coefficients), *self.tone_evidence)
        return share[:, None, None, None] * coefficients

    def tone_in_training(self, x: jax.Array, thumbnail: jax.Array, circle: jax.Array) -> jax.Array:
        """Applies `tone` at full strength: a change that is not applied has no gradient."""
        return apply_tone(x, self.tone_field(thumbnail.astype(jnp.float32)), circle)

    def kernels(self, powers: jax.Array, count: jax.Array) -> jax.Array:
        """Returns the sharpening filters without the identity, float32 [B, 3, K, K].

        Args:
          powers: float32 [B, 3, ...], of the toned photograph (`periodogram.window_powers`).
          count: float32 [B], number of windows in `powers`.
        """
        return self.sharpening_kernels(powers, count)

    def sharpen(self, toned: jax.Array, circle: jax.Array) -> jax.Array:
        """Sharpens tiles by their own periodograms: [B, H, W, 3] -> the same shape.

        For whole photographs use `kernels`, because their periodograms have more windows.

        Args:
          toned: Output of `tone`.
          circle: float32 [B, 3], see `tone`.
        """
        y, x, radius = circle.T[:, :, None]
        rows, columns = (jnp.arange(side) for side in toned.shape[1:3])
        away = jnp.square(rows - y)[:, :, None] + jnp.square(columns - x)[:, None]
        inside = away <= jnp.square(radius)[..., None]
        return toned + correlate_each(toned, self.kernels(*window_powers(toned, inside)))

    def detail(self, toned: jax.Array) -> jax.Array:
        """Applies the detail stage: [B, H, W, 3] -> the same shape, H and W divisible by f.

        Args:
          toned: Output of the tone stage, sharpened.
        """
        return self._restore(toned, lambda posterior: posterior.mean)[0]

    def restore(
        self,
        x: jax.Array,
        thumbnail: jax.Array,
        circle: jax.Array,
        draw: Callable[[Posterior], jax.Array],
    ) -> tuple[jax.Array, Posterior]:
        """Applies all stages in training; `draw` samples the posterior, which is returned too."""
        return self._restore(
            self.sharpen(self.tone_in_training(x, thumbnail, circle), circle), draw
        )

    def _restore(self, toned, draw):
        pca = self.pca.value
        posterior, linear, seen = self._analyse(toned)
        z = draw(posterior)
        change = self.linear.decode_change(z * pca.sd - linear)
        change = depth_to_space(change, self.downsample)
        correction, gate, features = self.decoder(z, seen)
        change += GAIN * pca.scale * correction + self.filter_bank(toned, features)
        gate = jnp.repeat(jnp.repeat(gate, STEM, axis=1), STEM, axis=2)
        return toned + gate * change, posterior

    def __call__(self, x: jax.Array, thumbnail: jax.Array, circle: jax.Array) -> jax.Array:
        """Returns the enhanced image [B, H, W, 3], not clipped; uses every parameter."""
        self.log_scale()
        return self.detail(self.sharpen(self.tone(x, thumbnail, circle), circle))

    @property
    def detail_halo(self) -> int:
        """Returns how many sharpened pixels beyond its own f x f patch a pixel depends on."""
        return max(self.encoder_halo + self.downsample * self.decoder_halo, FILTER_REACH)


def with_wide_likelihood(variables: dict) -> dict:
    """Sets the likelihood scale of fresh `Enhancer` variables to `LOG_SCALE`."""
    log_scale = jnp.full_like(variables["params"]["log_scale"], LOG_SCALE)
    return {**variables, "params": {**variables["params"], "log_scale": log_scale}}
