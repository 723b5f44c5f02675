"""The objective: negative ELBO plus a structural term. Per-example terms in nats; no hidden means.

    loss = (nll + beta * kl) / D + ssim_weight * (1 - SSIM)          D = input values of an example

With ssim_weight = 0 and beta = 1 it is the negative ELBO per input value; otherwise both are
logged. Per tile, D = 1: the sums that most trainers add up, and that their gradient clipping and
Adam's epsilon are meant for.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vae.metrics import ssim
from vae.models.pca import QUANTISATION_STD
from vae.models.posterior import Posterior

# A density over [-1, 1] is one of 8-bit levels after a change of variables: a level is 1/127.5.
LOG2_LEVELS = float(np.log2(127.5))


@flax.struct.dataclass
class Terms:
    """What the objective is made of.

    Attributes:
      nll: float32 [B], -log p(x | z) in nats a tile, density over values in [-1, 1].
      kl: float32 [B], KL(q || N(0, I)) in nats a tile.
      ssim: float32 [B], of the reconstruction from a posterior sample.
      values: D, input values of an example.
    """

    nll: jax.Array
    kl: jax.Array
    ssim: jax.Array
    values: int = flax.struct.field(pytree_node=False)

    def loss(self, beta: float, ssim_weight: float, per: str = "value") -> jax.Array:
        """What the optimizer sees, nats per input "value" or per "tile": float32 [B]."""
        unit = self.values if per == "value" else 1
        return (self.nll + beta * self.kl) / unit + ssim_weight * (1.0 - self.ssim)

    def bits_per_dim(self) -> jax.Array:
        """The negative ELBO in bits per value of 8-bit data: float32 [B]."""
        return (self.nll + self.kl) / self.values / np.log(2) + LOG2_LEVELS


def negative_log_likelihood(
    x: jax.Array, mean: jax.Array, log_scale: jax.Array, likelihood: str
) -> jax.Array:
    """-log p(x | z) with one scale for all values of an example.

    Args:
      x: [B, H, W, C] in [-1, 1].
      mean: The decoder's image, like `x`.
      log_scale: float32 []; log of the standard deviation (gaussian) or of the diversity b
        (laplace).
      likelihood: "gaussian" or "laplace", with one scale for all examples. "per_example_gaussian":
        each example has the scale that is best for it, not below that of 8-bit rounding, and
        `log_scale` is not used; a tenth off its error counts the same in a good example and in a
        bad one, as in PSNR. "per_example_details": the mean of that and of the same without each
        channel's mean error, so that details count even where the colour is wrong; this is no
        density, and what is logged with it is no ELBO.

    Returns:
      float32 [B], nats summed over an example's values.
    """
    if likelihood in ("per_example_gaussian", "per_example_details"):
        error = x - mean
        variances = [jnp.mean(jnp.square(error), axis=(1, 2, 3))]
        if likelihood == "per_example_details":
            details = error - jnp.mean(error, axis=(1, 2), keepdims=True)
            variances.append(jnp.mean(jnp.square(details), axis=(1, 2, 3)))
        nats = [jnp.log(2 * np.pi * np.e * (v + QUANTISATION_STD**2)) for v in variances]
        return 0.5 * x[0].size * sum(nats) / len(nats)
    z = (x - mean) * jnp.exp(-log_scale)
    if likelihood == "gaussian":
        nats = 0.5 * jnp.square(z) + 0.5 * np.log(2 * np.pi)
    elif likelihood == "laplace":
        nats = jnp.abs(z) + np.log(2)
    else:
        raise ValueError(
            f"likelihood {likelihood!r} is none of 'gaussian', 'laplace', 'per_example_gaussian', "
            "'per_example_details'"
        )
    return jnp.sum(nats + log_scale, axis=(1, 2, 3))


def objective_terms(
    x: jax.Array, mean: jax.Array, log_scale: jax.Array, posterior: Posterior, likelihood: str
) -> Terms:
    """All terms of a batch; `mean` is the decoder's image of a posterior sample, [B, H, W, C]."""
    x, mean = x.astype(jnp.float32), mean.astype(jnp.float32)
    return Terms(
        nll=negative_log_likelihood(x, mean, log_scale, likelihood),
        kl=posterior.kl(),
        ssim=ssim((x + 1) / 2, (mean + 1) / 2),
        values=int(np.prod(x.shape[1:])),
    )
