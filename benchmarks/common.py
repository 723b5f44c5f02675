"""Helpers of several benchmarks: tiles, a training step, and the time of a call."""

import time
from collections.abc import Callable

import jax
import numpy as np

from vae.data.synthetic import fundus_photograph
from vae.sharding import batch_sharding, make_mesh, tree_sharding
from vae.tasks import task_of
from vae.training.steps import make_train_step
from vae.training.train_state import abstract_state, initial_state


def crops(count: int, side: int) -> np.ndarray:
    """Cuts random crops from a synthetic photograph: uint8 [count, side, side, 3]."""
    photograph = fundus_photograph(0, 2 * side)
    origins = np.random.default_rng(0).integers(0, side, (count, 2))
    return np.stack([photograph[y : y + side, x : x + side] for y, x in origins])


def training_step(config, batch, fit=None) -> tuple[Callable[[], None], float]:
    """Compiles the training step of a new run.

    Args:
      config: The run's config.
      batch: The step's input as host arrays: tiles, or a dict of arrays.
      fit: Result of `fit_linear`, if the model's initialization uses one.

    Returns:
      A function that takes one step and waits for it, and the FLOPs of a step.
    """
    mesh = make_mesh()
    task = task_of(config)
    sharding = tree_sharding(abstract_state(task), mesh, config.mesh.fsdp_min_size)
    start = jax.jit(
        lambda fit: initial_state(task, task.fresh_variables(fit)), out_shardings=sharding
    )
    state, batch = start(fit), jax.device_put(batch, batch_sharding(mesh))
    lowered = make_train_step(task, mesh, sharding).lower(state, batch)
    compiled = lowered.compile()

    def step():
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    # Counted before compilation: XLA does not count the FLOPs of cuDNN's convolutions on a GPU.
    return step, lowered.cost_analysis()["flops"]


def seconds(function: Callable[[], object]) -> float:
    """Returns the wall time of one call, in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
