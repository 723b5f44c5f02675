"""AdamW or Muon with gradient clipping, warm-up, decay, and learning-rate factors per part."""

import functools
from collections.abc import Callable

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from vae.sharding import path_name
from vae.tasks.task import Task

# Root mean square of Muon's updates. It equals Adam's, so that both use the same learning rate (Liu
# et al., 2025, "Muon is scalable for LLM training").
MUON_RMS = 0.2


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate as a function of the step (`optimizer.*`, `train.steps`).

    A run that starts from a trained model has a lower rate, `optimizer.init_from_factor`.
    """
    c, steps = config.optimizer, config.train.steps
    highest = c.learning_rate * (c.init_from_factor if config.init_from else 1)
    warmup = min(c.warmup_steps, steps - 1)
    if c.schedule == "constant":
        decay = optax.constant_schedule(highest)
    else:
        decay = optax.cosine_decay_schedule(highest, max(steps - warmup, 1))
    if not warmup:
        return decay
    # The first step has 1 / warmup of the rate, not zero, so that it is not wasted.
    ramp = optax.linear_schedule(highest / warmup, highest, warmup)
    return optax.join_schedules([ramp, decay], [warmup])


def make_optimizer(task: Task) -> optax.GradientTransformation:
    """Returns the gradient transformation of a run.

    Parts of the model have learning-rate factors (`Task.rate_factor`), and `Task.decays` selects
    the parameters with weight decay.
    """
    config, c = task.config, task.config.optimizer
    return optax.chain(
        # The identity keeps the structure of the optimizer state the same without clipping.
        optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity(),
        _direction(config),
        optax.add_decayed_weights(c.weight_decay, mask=functools.partial(_decayed, task.decays)),
        optax.stateless(functools.partial(_by_part, task.rate_factor)),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )


def _direction(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the transformation before decay and learning rate: Adam, or Muon for kernels."""
    c = config.optimizer
    if c.name == "adam":
        return optax.scale_by_adam(b1=c.b1, b2=c.b2)
    minus = optax.contrib.muon(
        1.0,
        beta=c.muon_beta,
        adam_b1=c.b1,
        adam_b2=c.b2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=MUON_RMS,
    )
    return optax.chain(minus, optax.scale(-1.0))


def _matrices(params: dict) -> dict:
    """Selects the leaves that Muon treats as matrices; all axes but the last are inputs."""

    def matrix(path, leaf):
        if not path_name(path).endswith("/kernel"):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, params)


def _by_part(factor: Callable[[str], float], updates: dict, params: dict | None) -> dict:
    """Scales updates by the factor of their part, the first name of their path."""
    del params
    return {part: optax.tree.scale(factor(part), inside) for part, inside in updates.items()}


def _decayed(decays: Callable[[str], bool], params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(lambda path, _: decays(path_name(path)), params)
