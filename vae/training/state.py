"""What a run carries from step to step, and how it starts."""

from collections.abc import Iterable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vae.models import PCA, AutoencoderKL, fit_pca, with_pca
from vae.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """The whole state of a run: with the data and the config it determines every later step.

    Attributes:
      step: int32 [], optimizer steps taken.
      params: Learned parameters, float32.
      ema_params: Their exponential moving average, which evaluation and users get.
      opt_state: The optimizer's.
      fixed: Variables that are not learned: {"pca": ...}.
      latent_mean: float32 [C], mean of the posterior means of the latest batches (about 100).
      latent_var: float32 [C], variance of the same.
    """

    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: optax.OptState
    fixed: dict
    latent_mean: jax.Array
    latent_var: jax.Array

    @property
    def variables(self) -> dict:
        """What the model is applied with in evaluation: averaged parameters."""
        return {"params": self.ema_params, **self.fixed}


def make_model(config: ConfigDict) -> AutoencoderKL:
    """The flax module that a config describes."""
    return AutoencoderKL(
        **{
            key: tuple(value) if isinstance(value, tuple | list) else value
            for key, value in config.model.items()
        },
        dtype=jnp.dtype(config.train.compute_dtype),
    )


def initial_state(config: ConfigDict, pca: PCA) -> TrainState:
    """Step 0: probabilistic PCA, with conv paths that end in zero. Traceable by `jax.eval_shape`.

    Args:
      config: The run's.
      pca: The fit to the training data; of another run's or of zeros for shapes alone.
    """
    model = make_model(config)
    images = jnp.zeros((1, config.data.crop, config.data.crop, 3))
    variables = with_pca(model.init(jax.random.key(config.seed), images), pca)
    params = variables.pop("params")
    channels = config.model.latent_channels
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),  # donated buffers must not be shared
        opt_state=make_optimizer(config).init(params),
        fixed=variables,
        latent_mean=jnp.zeros(channels),
        latent_var=jnp.ones(channels),
    )


def abstract_state(config: ConfigDict) -> TrainState:
    """Shapes and dtypes of the state; nothing is allocated."""
    patch, channels = 3 * config.model.downsample**2, config.model.latent_channels
    shape = jax.ShapeDtypeStruct
    pca = PCA(
        mean=shape((patch,), jnp.float32),
        components=shape((patch, channels), jnp.float32),
        sd=shape((channels,), jnp.float32),
        scale=shape((), jnp.float32),
    )
    return jax.eval_shape(lambda fit: initial_state(config, fit), pca)


def pca_of_training_tiles(config: ConfigDict, batches: Iterable[np.ndarray]) -> PCA:
    """The fit that a run starts from: computed by process 0, the same bits on every process."""
    from jax.experimental import multihost_utils

    channels, downsample = config.model.latent_channels, config.model.downsample
    if jax.process_count() == 1:
        return fit_pca(batches, channels, downsample)
    if jax.process_index() == 0:
        pca = fit_pca(batches, channels, downsample)
    else:
        patch = 3 * downsample**2
        zeros = np.zeros
        pca = PCA(
            zeros(patch, np.float32),
            zeros((patch, channels), np.float32),
            zeros(channels, np.float32),
            np.float32(0),
        )
    return multihost_utils.broadcast_one_to_all(pca)
