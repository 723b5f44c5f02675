"""AdamW or Muon with clipping, warm-up and cosine decay, and factors for parts of the model."""

from collections.abc import Callable

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from vae.sharding import path_name
from vae.tasks import task_of

# Root mean square of Muon's updates: that of Adam's, so that both take the same learning rate (Liu
# et al., 2025, "Muon is scalable for LLM training").
MUON_RMS = 0.2


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate as a function of the step, from `config.optimizer` and `config.train.steps`."""
    c, steps = config.optimizer, config.train.steps
    warmup = min(c.warmup_steps, steps - 1)
    if c.schedule == "constant":
        decay = optax.constant_schedule(c.learning_rate)
    else:
        decay = optax.cosine_decay_schedule(c.learning_rate, max(steps - warmup, 1))
    if not warmup:
        return decay
    # The first step already moves: (1 / warmup) of the rate, not zero of it.
    ramp = optax.linear_schedule(c.learning_rate / warmup, c.learning_rate, warmup)
    return optax.join_schedules([ramp, decay], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The gradient transformation of a run.

    Parts that start at an optimum of their own get a factor of the rate (`Task.multipliers`).
    Weight decay is for the kernels of convolutions only; linear paths, norms, biases and scales
    have none.
    """
    c = config.optimizer
    factors = task_of(config).multipliers
    return optax.chain(
        # The same chain without clipping: the optimizer's state keeps its shape.
        optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity(),
        _direction(config),
        optax.add_decayed_weights(c.weight_decay, mask=_decayed),
        *(optax.masked(optax.scale(factor), _of(part)) for part, factor in factors.items()),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )


def _direction(config: ConfigDict) -> optax.GradientTransformation:
    """What the gradient becomes before decay and rate: Adam's update or, for kernels, Muon's."""
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
    """Which leaves are matrices to Muon, and which of their axes are summed over."""

    def matrix(path, leaf):
        if not path_name(path).endswith("/kernel"):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, params)


def _of(part: str) -> Callable[[dict], dict]:
    """Which leaves belong to a part of the model."""
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).split("/")[0] == part, params
    )


def _decayed(params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).endswith(("/kernel", "/to_image/weight")), params
    )
