"""The evidence lower bound (ELBO) as a training loss, and running statistics of the latents."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae.checkpoints.modules import blank_statistics, join_variables
from vae.models.posterior import ACTIVE_VARIANCE, Posterior
from vae.tasks.losses import objective_terms
from vae.tasks.task import Metrics, Task

# Decay per step of the running latent statistics; the first steps use a plain mean.
LATENT_DECAY = 0.99

LIKELIHOODS = (
    "gaussian", "laplace", "per_example_gaussian", "per_example_details", "spherical_laplace",
)  # fmt: skip
LOSS_UNITS = ("value", "tile")


class ElboTask(Task):
    """A task that is trained with the ELBO. An example is (model input, target image)."""

    quality = "eval_psnr"
    console_metrics = ("bits_per_dim", "ssim", "psnr")

    def statistics(self, variables):
        """Returns `latent_mean` and `latent_var` of step 0, float32 [C]."""
        return blank_statistics(self.config, variables)

    @abc.abstractmethod
    def forward(self, variables: dict, seen: Any, draw: Callable[[Posterior], jax.Array]):
        """Returns the image in [-1, 1], its posterior and the batch statistics. Traced.

        Args:
          variables: Variables of the model.
          seen: Model input, the first part of an example.
          draw: Function that samples latents from a posterior.
        """

    def loss(self, params, fixed, batch_stats, example, rows, key):
        """Implements `vae.tasks.task.Task.loss`; in nats per `config.loss.per`."""
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
        """Updates the running mean and variance of the latents, and adds metrics from them."""
        latents = _latent_statistics(state, metrics)
        variables = join_variables(params, state.fixed, batch_stats)
        return latents, metrics | {
            "psnr": 10 * jnp.log10(4.0 / metrics.pop("mse")),
            "log_scale": self.model.apply(variables, method="log_scale"),
            "latent_std": jnp.sqrt(jnp.mean(latents["latent_var"])),
            "active_units": jnp.sum(latents["latent_var"] > ACTIVE_VARIANCE),
        }


def check_loss(config: ConfigDict, problems: Any) -> None:
    """Adds problems of `config.loss` to a `vae.training.validation.Problems`."""
    problems.not_negative(config, "loss.beta", "loss.ssim_weight")
    problems.choice("loss.likelihood", config.loss.likelihood, LIKELIHOODS)
    problems.choice("loss.per", config.loss.per, LOSS_UNITS)


def _latent_statistics(state: Any, metrics: Metrics) -> dict[str, jax.Array]:
    """Updates the running mean and variance; removes the batch's moments from `metrics`."""
    before = state.statistics
    mean, square = metrics.pop("latent_mean"), metrics.pop("latent_square")
    t = state.step.astype(jnp.float32)
    keep = jnp.minimum(LATENT_DECAY, t / (1 + t))
    # Law of total variance: the variance within batches plus that between them.
    spread = square - jnp.square(mean) + keep * jnp.square(mean - before["latent_mean"])
    return {
        "latent_mean": keep * before["latent_mean"] + (1 - keep) * mean,
        "latent_var": keep * before["latent_var"] + (1 - keep) * spread,
    }
