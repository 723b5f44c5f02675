"""The objective: negative ELBO plus a structural term. Terms are per example, in nats.

    loss = (nll + beta * kl) / D + ssim_weight * (1 - SSIM)          D = input values of an example

With ssim_weight = 0 and beta = 1 it is the negative ELBO per input value; otherwise both are
logged. With `per="tile"`, D = 1: the sum that most trainers use, and for which their gradient
clipping and Adam's epsilon are set.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vae.metrics import ssim
from vae.models.pca import QUANTISATION_STD
from vae.models.posterior import Posterior

# Converts a density over [-1, 1] to one over 8-bit levels: a level is 1/127.5 wide.
LOG2_LEVELS = float(np.log2(127.5))


@flax.struct.dataclass
class Terms:
    """The terms of the objective.

    Attributes:
      nll: float32 [B], -log p(x | z) in nats per tile, for the density over [-1, 1].
      kl: float32 [B], KL(q || N(0, I)) in nats per tile.
      ssim: float32 [B], SSIM of the reconstruction from a posterior sample.
      values: D, number of input values of an example.
    """

    nll: jax.Array
    kl: jax.Array
    ssim: jax.Array
    values: int = flax.struct.field(pytree_node=False)

    def loss(self, beta: float, ssim_weight: float, per: str = "value") -> jax.Array:
        """Returns the loss in nats per input "value" or per "tile", float32 [B]."""
        unit = self.values if per == "value" else 1
        return (self.nll + beta * self.kl) / unit + ssim_weight * (1.0 - self.ssim)

    def bits_per_dim(self) -> jax.Array:
        """Returns the negative ELBO in bits per value of 8-bit data, float32 [B]."""
        return (self.nll + self.kl) / self.values / np.log(2) + LOG2_LEVELS


def negative_log_likelihood(
    x: jax.Array, mean: jax.Array, log_scale: jax.Array, likelihood: str
) -> jax.Array:
    """Returns -log p(x | z) with one scale for all values of an example.

    Args:
      x: [B, H, W, C] in [-1, 1].
      mean: The decoder's image, like `x`.
      log_scale: float32 []; log of the standard deviation (gaussian) or of the diversity b
        (laplace).
      likelihood: "gaussian" and "laplace" have one scale for all examples. "per_example_gaussian"
        uses each example's optimal scale, at least that of 8-bit rounding, and ignores `log_scale`;
        a relative change of the error then counts the same in every example, as in PSNR.
        "per_example_details" is the mean of this term and of the same term without each channel's
        mean error, so that details count even if the colour is wrong; it is not a density, so the
        logged value is not an ELBO. "spherical_laplace" grows with the root mean square error of
        an example, so that hard examples count less than with "gaussian", and easy ones less than
        with "per_example_gaussian"; the logged value lacks a constant.

    Returns:
      float32 [B], nats summed over an example's values. Raises ValueError for other likelihoods.
    """
    if likelihood in ("per_example_gaussian", "per_example_details"):
        error = x - mean
        variances = [jnp.mean(jnp.square(error), axis=(1, 2, 3))]
        if likelihood == "per_example_details":
            details = error - jnp.mean(error, axis=(1, 2), keepdims=True)
            variances.append(jnp.mean(jnp.square(details), axis=(1, 2, 3)))
        nats = [jnp.log(2 * np.pi * np.e * (v + QUANTISATION_STD**2)) for v in variances]
        return 0.5 * x[0].size * sum(nats) / len(nats)
    if likelihood == "spherical_laplace":
        # The density of the whole error vector e falls as exp(-|e| / b); the constant is left out.
        norm = jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=(1, 2, 3)) + QUANTISATION_STD**2)
        return x[0].size * (norm * jnp.exp(-log_scale) + log_scale)
    z = (x - mean) * jnp.exp(-log_scale)
    if likelihood == "gaussian":
        nats = 0.5 * jnp.square(z) + 0.5 * np.log(2 * np.pi)
    elif likelihood == "laplace":
        nats = jnp.abs(z) + np.log(2)
    else:
        raise ValueError(
            f"likelihood {likelihood!r} is none of 'gaussian', 'laplace', 'per_example_gaussian', "
            "'per_example_details', 'spherical_laplace'"
        )
    return jnp.sum(nats + log_scale, axis=(1, 2, 3))


def objective_terms(
    x: jax.Array, mean: jax.Array, log_scale: jax.Array, posterior: Posterior, likelihood: str
) -> Terms:
    """Computes the terms of a batch; `mean` is decoded from a posterior sample, [B, H, W, C]."""
    x, mean = x.astype(jnp.float32), mean.astype(jnp.float32)
    return Terms(
        nll=negative_log_likelihood(x, mean, log_scale, likelihood),
        kl=posterior.kl(),
        ssim=ssim((x + 1) / 2, (mean + 1) / 2),
        values=int(np.prod(x.shape[1:])),
    )
