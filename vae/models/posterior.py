"""The approximate posterior q(z | x): a diagonal Gaussian."""

import flax.struct
import jax
import jax.numpy as jnp

# A latent channel is active if its posterior mean varies more than this (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01


@flax.struct.dataclass
class Posterior:
    """Diagonal Gaussian over the latents.

    Attributes:
      mean: float32 [B, ...].
      log_var: float32, shape of `mean`; natural log of the variance.
    """

    mean: jax.Array
    log_var: jax.Array

    def sample_rows(self, key: jax.Array, rows: jax.Array) -> jax.Array:
        """Draws a sample whose noise depends on (key, row) and not on the rest of the batch.

        Args:
          key: A random key.
          rows: int [B], index of each example in the global batch or dataset.

        Returns:
          float32, shape of `mean`.
        """

        def one(row):
            return jax.random.normal(jax.random.fold_in(key, row), self.mean.shape[1:])

        return self.mean + jnp.exp(0.5 * self.log_var) * jax.vmap(one)(rows)

    def kl_map(self) -> jax.Array:
        """Returns KL(q || N(0, I)) of each latent value in nats, shape of `mean`.

        The formula is from Kingma and Welling (2014), appendix B.
        """
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.log_var) - 1.0 - self.log_var)

    def kl(self) -> jax.Array:
        """Returns KL(q || N(0, I)) of each example in nats, summed over latents: float32 [B]."""
        return jnp.sum(self.kl_map(), axis=tuple(range(1, self.mean.ndim)))
