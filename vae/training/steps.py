"""The training step: a pure function of (state, batch), sharded by `jax.jit`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vae.sharding import batch_sharding, replicated
from vae.tasks.randomness import step_key
from vae.tasks.task import Task
from vae.training.optimizer import learning_rate_schedule, make_optimizer
from vae.training.train_state import TrainState


def make_train_step(
    task: Task, mesh: Mesh, state_sharding: TrainState
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the jitted function `step(state, batch) -> (state, metrics)`.

    Args:
      task: Task of the run, after `open`.
      mesh: Device mesh with axes ("data", "fsdp").
      state_sharding: The sharding of every leaf of the state.

    Returns:
      The function, compiled at its first call. `state` is donated. `batch` is a device batch of
      `Task.feed`, sharded over the whole mesh. Metrics are replicated scalars and vectors.
    """
    config = task.config
    optimizer = make_optimizer(task)
    schedule = learning_rate_schedule(config)

    def gradients(state, batch):
        """Returns batch statistics and (loss, metrics, gradient), means over `accumulate` parts."""
        size, parts = config.batch_size, config.train.accumulate
        sample_key = step_key(config.seed, "posterior", state.step)
        grad = jax.value_and_grad(task.loss, has_aux=True)

        def part(batch_stats, batch, rows):
            # XLA loses the sharding by rows where scales are selected; this restores it.
            example = jax.lax.with_sharding_constraint(
                task.example(batch, rows, state.step), batch_sharding(mesh)
            )
            (loss, (metrics, stats)), grads = grad(
                state.params, state.fixed, batch_stats, example, rows, sample_key
            )
            return stats, (loss, metrics, grads)

        rows = jnp.arange(size)
        if parts == 1:
            return part(state.batch_stats, batch, rows)
        # A part takes every `parts`-th row, so that rows stay on their devices.
        cut = lambda a: a.reshape(size // parts, parts, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731

        def add(carry, piece):
            stats, total = carry
            stats, new = part(stats, *piece)
            return (stats, jax.tree.map(jnp.add, total, new)), None

        pieces = jax.tree.map(cut, (batch, rows))
        first = jax.tree.map(lambda a: a[0], pieces)
        shapes = jax.eval_shape(part, state.batch_stats, *first)[1]
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        (stats, total), _ = jax.lax.scan(add, (state.batch_stats, zeros), pieces)
        return stats, jax.tree.map(lambda a: a / parts, total)

    def step(state: TrainState, batch: Any):
        batch_stats, (loss, metrics, grads) = gradients(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        t = state.step.astype(jnp.float32)
        ema_params = None
        if state.ema_params is not None:
            decay = jnp.minimum(config.train.ema_decay, (1 + t) / (10 + t))
            ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)

        statistics, metrics = task.after_step(state, params, batch_stats, metrics)
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            batch_stats=batch_stats,
            statistics=statistics,
        )
        return new_state, metrics

    return jax.jit(
        step,
        in_shardings=(state_sharding, batch_sharding(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
    )
