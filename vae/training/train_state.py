"""The train state."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vae.checkpoints.modules import join_variables, split_variables
from vae.tasks.task import Task
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
      fixed: Variables that never change; {} without any.
      batch_stats: Running statistics of batch normalisation; {} without it.
      statistics: Arrays by name that `Task.after_step` updates and that are saved with the model;
        {} without any.
    """

    step: jax.Array
    params: dict
    ema_params: dict | None
    opt_state: optax.OptState
    fixed: dict
    batch_stats: dict
    statistics: dict[str, jax.Array]

    @property
    def averaged(self) -> dict:
        """Returns the parameters for evaluation and inference."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def variables(self) -> dict:
        """Returns the variables for evaluation and inference."""
        return join_variables(self.averaged, self.fixed, self.batch_stats)


def initial_state(task: Task, variables: dict) -> TrainState:
    """Returns the train state of step 0 for given variables. Traceable by `jax.eval_shape`.

    Args:
      task: Task of the run.
      variables: Variables of the task or of a trained model.
    """
    params, fixed, batch_stats = split_variables(variables)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: donated buffers must not be shared.
        ema_params=jax.tree.map(jnp.copy, params) if task.config.train.ema_decay else None,
        opt_state=make_optimizer(task).init(params),
        fixed=fixed,
        batch_stats=batch_stats,
        statistics=task.statistics(variables),
    )


def abstract_state(task: Task) -> TrainState:
    """Returns the shapes and dtypes of the train state without allocating arrays."""
    return jax.eval_shape(lambda: initial_state(task, task.fresh_variables()))
