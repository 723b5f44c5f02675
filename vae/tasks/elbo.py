"""The evidence lower bound as a training loss, and the statistics of latents beside it."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae.checkpoints.modules import join_variables
from vae.models.posterior import ACTIVE_VARIANCE, Posterior
from vae.tasks.losses import objective_terms
from vae.tasks.task import Metrics, Task

# The running latent statistics forget with this factor a step, once they have seen enough.
LATENT_DECAY = 0.99

LIKELIHOODS = ("gaussian", "laplace", "per_example_gaussian", "per_example_details")
LOSS_UNITS = ("value", "tile")


class ElboTask(Task):
    """A task that trains by the ELBO. Examples are (what the model sees, the target image)."""

    @abc.abstractmethod
    def forward(self, variables: dict, seen: Any, draw: Callable[[Posterior], jax.Array]):
        """Returns the image in [-1, 1], its posterior and the batch statistics. Traced.

        Args:
          variables: Of the model.
          seen: The first part of an example.
          draw: Samples latents of a posterior.
        """

    def loss(self, params, fixed, batch_stats, example, rows, key):
        """See `vae.tasks.task.Task.loss`; nats as `loss.per` says."""
        settings, (seen, target) = self.config.loss, example
        variables = join_variables(params, fixed, batch_stats)
        image, posterior, batch_stats = self.forward(
            variables, seen, lambda posterior: posterior.sample_rows(key, rows)
        )
        log_scale = self.model.apply(variables, method="log_scale")
        terms = objective_terms(target, image, log_scale, posterior, settings.likelihood)
        mean, channels = posterior.mean, posterior.mean.shape[-1]
        by_channel = posterior.kl_map().reshape(len(target), -1, channels).sum(axis=1)
        metrics = {
            "nll": terms.nll.mean(),
            "kl": terms.kl.mean(),
            "bits_per_dim": terms.bits_per_dim().mean(),
            "ssim": terms.ssim.mean(),
            "mse": jnp.square(target - image).mean(),
            "posterior_std": jnp.exp(0.5 * posterior.log_var).mean(),
            "kl_channel": by_channel.mean(axis=0),
            "latent_mean": mean.reshape(-1, channels).mean(axis=0),
            "latent_square": jnp.square(mean).reshape(-1, channels).mean(axis=0),
        }
        loss = terms.loss(settings.beta, settings.ssim_weight, settings.per).mean()
        return loss, (metrics, batch_stats)

    def after_step(self, state, params, batch_stats, metrics):
        """The running mean and variance of latents, and metrics that follow from them."""
        latents = _latent_statistics(state, metrics)
        variables = join_variables(params, state.fixed, batch_stats)
        return latents, metrics | {
            "psnr": 10 * jnp.log10(4.0 / metrics.pop("mse")),
            "log_scale": self.model.apply(variables, method="log_scale"),
            "latent_std": jnp.sqrt(jnp.mean(latents["latent_var"])),
            "active_units": jnp.sum(latents["latent_var"] > ACTIVE_VARIANCE),
        }


def check_loss(config: ConfigDict, problems: Any) -> None:
    """Adds what is wrong with `config.loss` to `vae.training.validation.Problems`."""
    problems.not_negative(config, "loss.beta", "loss.ssim_weight")
    problems.choice("loss.likelihood", config.loss.likelihood, LIKELIHOODS)
    problems.choice("loss.per", config.loss.per, LOSS_UNITS)


def _latent_statistics(state: Any, metrics: Metrics) -> dict[str, jax.Array]:
    """The running mean and variance of latents, with this batch's, taken out of its metrics."""
    mean, square = metrics.pop("latent_mean"), metrics.pop("latent_square")
    t = state.step.astype(jnp.float32)
    keep = jnp.minimum(LATENT_DECAY, t / (1 + t))
    # Within the batches, and between them: the law of total variance.
    spread = square - jnp.square(mean) + keep * jnp.square(mean - state.latent_mean)
    return {
        "latent_mean": keep * state.latent_mean + (1 - keep) * mean,
        "latent_var": keep * state.latent_var + (1 - keep) * spread,
    }
