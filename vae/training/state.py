"""What a run carries from step to step, and how it starts."""

import functools
from collections.abc import Callable, Iterable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vae.checkpoints.modules import (
    LinearFit,
    abstract_fit,
    blank_statistics,
    initial_variables,
    join_variables,
    split_variables,
    starts_linear,
)
from vae.models import fit_lapped, fit_pca
from vae.training.augment import shrink
from vae.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """The whole state of a run: with the data and the config it determines every later step.

    Attributes:
      step: int32 [], optimizer steps taken.
      params: Learned parameters, float32.
      ema_params: Their exponential moving average, which evaluation and users get; None in a run
        without one (`train.ema_decay=0`), whose users get the parameters themselves.
      opt_state: The optimizer's.
      fixed: Variables that never change: {"pca": ...}, or {}.
      batch_stats: Running statistics of batch normalisation, {} where there is none.
      latent_mean: float32 [C], mean of the posterior means of the latest batches (about 100); of a
        prior the mean of its latents.
      latent_var: float32 [C], variance of the same.
    """

    step: jax.Array
    params: dict
    ema_params: dict | None
    opt_state: optax.OptState
    fixed: dict
    batch_stats: dict
    latent_mean: jax.Array
    latent_var: jax.Array

    @property
    def averaged(self) -> dict:
        """The parameters that evaluation and users get."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def variables(self) -> dict:
        """What the model is applied with in evaluation."""
        return join_variables(self.averaged, self.fixed, self.batch_stats)


MIN_BETA = 0.01


def initial_state(config: ConfigDict, variables: dict) -> TrainState:
    """Step 0 of a run that starts from some variables. Traceable by `jax.eval_shape`.

    Args:
      config: The run's.
      variables: Of `initial_variables`, or of a trained model.
    """
    params, fixed, batch_stats = split_variables(variables)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: donated buffers must not be shared.
        ema_params=jax.tree.map(jnp.copy, params) if config.train.ema_decay else None,
        opt_state=make_optimizer(config).init(params),
        fixed=fixed,
        batch_stats=batch_stats,
        **blank_statistics(config, variables),
    )


def _at_scales(
    read: Callable[[], Iterable[np.ndarray]], scales: tuple[int, ...], downsample: int
) -> Iterator[np.ndarray]:
    """Every image at every scale; the smallest images come first."""
    for images in read():
        for scale in sorted(set(scales), reverse=True):
            unit = downsample * scale
            height, width = (side // unit * unit for side in images.shape[1:3])
            yield shrink(images[:, :height, :width], scale)


def abstract_state(config: ConfigDict) -> TrainState:
    """Shapes and dtypes of the state; nothing is allocated."""
    fit = abstract_fit(config) if starts_linear(config) else None
    return jax.eval_shape(lambda fit: initial_state(config, initial_variables(config, fit)), fit)


def fit_linear(config: ConfigDict, read: Callable[[], Iterable[np.ndarray]]) -> LinearFit:
    """The fit that a run starts from: computed by process 0, the same bits on every process.

    Args:
      config: The run's.
      read: Gives the same training tiles at every call, uint8 [b, S, S, 3] at a time.
    """
    from jax.experimental import multihost_utils

    if jax.process_index() == 0:
        downsample = config.model.downsample
        tiles = functools.partial(_at_scales, read, config.data.scales, downsample)
        pca = fit_pca(tiles(), config.model.latent_channels, downsample)
        # Without a price on the rate a linear VAE has no optimum: any scale of the latents will do.
        beta = max(config.loss.beta, MIN_BETA)
        lapped = fit_lapped(tiles(), pca, config.model.linear_kernel, beta)
        fit = jax.tree.map(np.asarray, (pca, lapped))
    else:
        fit = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_fit(config))
    return fit if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(fit)
