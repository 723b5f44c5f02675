"""The train state."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vae.checkpoints.modules import join_variables, split_variables
from vae.tasks import task_of
from vae.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """The complete state of a run. With the data and the config it determines every later step.

    Attributes:
      step: int32 [], optimizer steps taken.
      params: Learned parameters, float32.
      ema_params: Exponential moving average of `params`, used in evaluation and inference. None
        with `train.ema_decay=0`; `params` are then used instead.
      opt_state: State of the optimizer.
      fixed: Variables that never change: {"pca": ...}, or {}.
      batch_stats: Running statistics of batch normalisation; {} without it.
      latent_mean: float32 [C], mean of the latents over the last (about 100) batches, or fitted.
      latent_var: float32 [C], variance of the latents, over the same batches or fitted.
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
        """Returns the parameters for evaluation and inference."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def variables(self) -> dict:
        """Returns the variables for evaluation and inference."""
        return join_variables(self.averaged, self.fixed, self.batch_stats)


def initial_state(config: ConfigDict, variables: dict) -> TrainState:
    """Returns the train state of step 0 for given variables. Traceable by `jax.eval_shape`.

    Args:
      config: Config of the run.
      variables: Variables of the task or of a trained model.
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
        **task_of(config).statistics(variables),
    )


def abstract_state(config: ConfigDict) -> TrainState:
    """Returns the shapes and dtypes of the train state without allocating arrays."""
    task = task_of(config)

    def begin(start):
        return initial_state(config, task.fresh_variables(start))

    return jax.eval_shape(begin, task.abstract_initialization())
