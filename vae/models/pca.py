"""Probabilistic PCA of image patches (Tipping and Bishop, 1999).

It sets the units of the models, and is a baseline in evaluations. It is the optimum of a linear VAE
of single patches (Lucas, Tucker, Grosse and Norouzi, 2019); overlapping PPCA is better.
"""

from collections.abc import Iterable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vae.models.layers import depth_to_space, space_to_depth
from vae.models.posterior import Posterior
from vae.precision import HIGHEST

# Standard deviation of 8-bit rounding, uniform noise of one grey level (2/255 in [-1, 1]). Smaller
# deviations carry no signal.
QUANTISATION_STD = 2 / 255 / np.sqrt(12)


@flax.struct.dataclass
class PCA:
    """The leading principal components of f x f patches of images in [-1, 1].

    Attributes:
      mean: float32 [f*f*3], the mean patch.
      components: float32 [f*f*3, C], orthonormal columns in order of decreasing variance.
      sd: float32 [C], standard deviation along each component, at least `QUANTISATION_STD`.
      scale: float32 [], root mean squared residual per value, at least `QUANTISATION_STD`.
    """

    mean: jax.Array
    components: jax.Array
    sd: jax.Array
    scale: jax.Array

    @property
    def downsample(self) -> int:
        """Returns the patch side f."""
        return round((self.mean.shape[0] / 3) ** 0.5)

    def log_var(self) -> jax.Array:
        """Returns the log-variance of each component's posterior, float32 [C].

        In whitened coordinates the posterior variance of probabilistic PCA is s^2 / (sd_k^2 + s^2).
        """
        return 2 * jnp.log(self.scale) - jnp.log(jnp.square(self.sd) + jnp.square(self.scale))

    def encode(self, x: jax.Array) -> Posterior:
        """Encodes images [B, H, W, 3] in [-1, 1] to a posterior of latents [B, H/f, W/f, C]."""
        patches = space_to_depth(x, self.downsample) - self.mean
        mean = jnp.matmul(patches, self.components, precision=HIGHEST) / self.sd
        return Posterior(mean, jnp.broadcast_to(self.log_var(), mean.shape))

    def decode(self, z: jax.Array) -> jax.Array:
        """Decodes whitened latents [B, h, w, C] to images [B, h*f, w*f, 3], not clipped."""
        patches = jnp.matmul(z * self.sd, self.components.T, precision=HIGHEST) + self.mean
        return depth_to_space(patches, self.downsample)


def fit_pca(batches: Iterable[np.ndarray], latent_channels: int, downsample: int) -> PCA:
    """Fits the components to all f x f patches of images, in float64.

    Args:
      batches: Images, uint8 [B, H, W, 3]; H and W are divisible by `downsample`.
      latent_channels: C, number of components to keep.
      downsample: Patch side f.

    Returns:
      The fit. It is bitwise the same for the same images on the same machine: the largest entry of
      each component by magnitude is positive.

    Raises:
      ValueError: There are no images, or C is larger than the number of values of a patch.
    """
    size = downsample * downsample * 3
    if not 0 < latent_channels <= size:
        raise ValueError(
            f"a {downsample} x {downsample} patch has {size} values, cannot keep "
            f"{latent_channels} components of it"
        )
    count, total, gram = 0, np.zeros(size), np.zeros((size, size))
    for images in batches:
        b, h, w, c = images.shape
        patches = images.reshape(b, h // downsample, downsample, w // downsample, downsample, c)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size)
        # Centred on mid-grey, so that the sums of squares lose fewer digits.
        patches = patches.astype(np.float64) / 127.5 - 1.0
        count += len(patches)
        total += patches.sum(axis=0)
        gram += patches.T @ patches
    if not count:
        raise ValueError("no images to fit the principal components to")
    mean = total / count
    eigenvalues, vectors = np.linalg.eigh(gram / count - np.outer(mean, mean))
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0.0), vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(size)])
    kept = eigenvalues[:latent_channels]
    # The final rounding to 8 bits leaves at least this residual.
    scale = np.sqrt(max(eigenvalues[latent_channels:].sum() / size, QUANTISATION_STD**2))
    return PCA(
        mean=mean.astype(np.float32),
        components=vectors[:, :latent_channels].astype(np.float32),
        sd=np.maximum(np.sqrt(kept), QUANTISATION_STD).astype(np.float32),
        scale=np.float32(scale),
    )
