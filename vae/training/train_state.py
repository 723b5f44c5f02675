"""The state that a run carries from step to step."""

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
    """The whole state of a run: with the data and the config it determines every later step.

    Attributes:
      step: int32 [], optimizer steps taken.
      params: Learned parameters, float32.
      ema_params: Their exponential moving average, which evaluation and users get; None in a run
        without one (`train.ema_decay=0`), whose users get the parameters themselves.
      opt_state: The optimizer's.
      fixed: Variables that never change: {"pca": ...}, or {}.
      batch_stats: Running statistics of batch normalisation, {} where there is none.
      latent_mean: float32 [C], mean of the latents, of the latest batches (about 100) or fitted.
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


def initial_state(config: ConfigDict, variables: dict) -> TrainState:
    """Step 0 of a run that starts from some variables. Traceable by `jax.eval_shape`.

    Args:
      config: The run's.
      variables: Of the task, or of a trained model.
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
    """Shapes and dtypes of the state; nothing is allocated."""
    task = task_of(config)

    def begin(start):
        return initial_state(config, task.fresh_variables(start))

    return jax.eval_shape(begin, task.abstract_initialization())
