"""What a run carries from step to step, and how it starts."""

import functools
from collections.abc import Callable, Iterable, Iterator

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vae.data.views import VIEW
from vae.models import (
    PCA,
    AutoencoderKL,
    Enhancer,
    FundusVAE,
    Lapped,
    LatentFlow,
    fit_lapped,
    fit_pca,
    with_start,
)
from vae.models.enhancer import with_wide_likelihood
from vae.training.augment import shrink
from vae.training.config import AUTOENCODER_KL, ENHANCER, FUNDUS_VAE, LINEAR_START, PRIOR
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


def join_variables(params: dict, fixed: dict, batch_stats: dict) -> dict:
    """The collections of a module's variables; without an empty one."""
    return {"params": params, **fixed} | ({"batch_stats": batch_stats} if batch_stats else {})


def make_model(config: ConfigDict) -> nn.Module:
    """The flax module that a config describes."""
    settings = {
        key: tuple(value) if isinstance(value, tuple | list) else value
        for key, value in config.model.items()
    }
    module = _MODULES[settings.pop("architecture")]
    return module(**settings, dtype=jnp.dtype(config.train.compute_dtype))


_MODULES = {
    AUTOENCODER_KL: AutoencoderKL,
    ENHANCER: Enhancer,
    FUNDUS_VAE: FundusVAE,
    PRIOR: LatentFlow,
}
MIN_BETA = 0.01

# What the linear path starts from: the units of the model, and the codec.
LinearFit = tuple[PCA, Lapped]


def initial_variables(config: ConfigDict, fit: LinearFit | None = None) -> dict:
    """Fresh variables of a run's model. Traceable by `jax.eval_shape`.

    Args:
      config: The run's.
      fit: To the training data, where `starts_linear`: then step 0 is the linear codec.
    """
    if config.model.architecture == PRIOR:
        side, channels = config.model.latent_side, config.model.latent_channels
        inputs = jnp.zeros((1, side, side, channels)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
        return make_model(config).init(jax.random.key(config.seed), *inputs)
    inputs = [jnp.zeros((1, config.data.crop, config.data.crop, 3))]
    enhancing = config.model.architecture == ENHANCER
    if enhancing:
        inputs += [jnp.zeros((1, VIEW, VIEW, 3)), jnp.ones((1, 3))]
    variables = make_model(config).init(jax.random.key(config.seed), *inputs)
    variables = with_start(variables, *fit) if fit is not None else variables
    return with_wide_likelihood(variables) if enhancing else variables


def initial_state(config: ConfigDict, variables: dict) -> TrainState:
    """Step 0 of a run that starts from some variables. Traceable by `jax.eval_shape`.

    Args:
      config: The run's.
      variables: Of `initial_variables`, or of a trained model.
    """
    fixed = dict(variables)
    params = fixed.pop("params")
    batch_stats = fixed.pop("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: donated buffers must not be shared.
        ema_params=jax.tree.map(jnp.copy, params) if config.train.ema_decay else None,
        opt_state=make_optimizer(config).init(params),
        fixed=fixed,
        batch_stats=batch_stats,
        **_blank_statistics(config, variables),
    )


def _blank_statistics(config: ConfigDict, variables: dict) -> dict[str, jax.Array]:
    """Of latents before the first batch; of a prior those that it was fitted to."""
    if config.model.architecture == PRIOR:
        spectrum = variables["spectrum"]["fit"]
        # A position's variance is the mean of its waves'.
        variance = jnp.mean(jnp.sum(jnp.square(spectrum.colour), axis=-1), axis=(0, 1))
        return {"latent_mean": jnp.copy(spectrum.mean), "latent_var": variance}
    image = jax.ShapeDtypeStruct((1, config.data.crop, config.data.crop, 3), jnp.float32)
    encode = functools.partial(make_model(config).apply, method="encode")
    channels = jax.eval_shape(encode, variables, image).mean.shape[-1]
    return {"latent_mean": jnp.zeros(channels), "latent_var": jnp.ones(channels)}


def _at_scales(
    read: Callable[[], Iterable[np.ndarray]], scales: tuple[int, ...], downsample: int
) -> Iterator[np.ndarray]:
    """Every image at every scale; the smallest images come first."""
    for images in read():
        for scale in sorted(set(scales), reverse=True):
            unit = downsample * scale
            height, width = (side // unit * unit for side in images.shape[1:3])
            yield shrink(images[:, :height, :width], scale)


def starts_linear(config: ConfigDict) -> bool:
    """Whether a model that is not told otherwise starts as the best linear codec."""
    return config.model.architecture in LINEAR_START


def abstract_state(config: ConfigDict) -> TrainState:
    """Shapes and dtypes of the state; nothing is allocated."""
    fit = _abstract_fit(config) if starts_linear(config) else None
    return jax.eval_shape(lambda fit: initial_state(config, initial_variables(config, fit)), fit)


def _abstract_fit(config: ConfigDict) -> LinearFit:
    patch, channels = 3 * config.model.downsample**2, config.model.latent_channels
    grid = (config.model.linear_kernel,) * 2
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    pca = PCA(
        mean=shape((patch,)),
        components=shape((patch, channels)),
        sd=shape((channels,)),
        scale=shape(()),
    )
    lapped = Lapped(
        analysis=shape((*grid, patch, channels)),
        synthesis=shape((*grid, channels, patch)),
        log_var=shape((channels,)),
        scale=shape(()),
    )
    return pca, lapped


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
        fit = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _abstract_fit(config))
    return fit if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(fit)
