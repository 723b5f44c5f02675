"""The start of a run: its data, and the state of step 0."""

from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vae.data.errors import DataError, UsageError
from vae.data.pipeline import Dataset, open_dataset
from vae.tasks.task import Task
from vae.training.train_state import TrainState, initial_state


def open_data(config: ConfigDict, workdir: epath.Path) -> Dataset:
    """The dataset of a config; the bundled sources are prepared in the workdir on first use."""
    if not config.data.source:
        if not config.data.dir:
            raise UsageError(
                "data.dir is empty; give --config.data.dir=DIR, made by `fundus-vae make-tiles` "
                "and `fundus-vae build`, or use a preset that brings its data: "
                "--config=configs/fundus256.py:demo"
            )
        return open_dataset(config.data.dir, cache_dir=config.data.cache_dir)
    from vae.data import demo

    # The first process alone: what it made, those that share its disk find finished.
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("data prepared")
    path = demo.prepare(config.data.source, workdir / "data", config.data.size)
    if jax.process_index() == 0 and jax.process_count() > 1:
        multihost_utils.sync_global_devices("data prepared")
    return open_dataset(path)


def check_splits(config: ConfigDict, dataset: Dataset) -> None:
    """Refuses a dataset without training tiles, or without those of `eval.split`."""
    for split, key in (("train", "the training"), (config.eval.split, "eval.split")):
        if not dataset.counts.get(split):
            raise DataError(
                f"{dataset.path} has no tiles for {key} split {split!r}, it has {dataset.counts}; "
                "build it with such a share of the patients, or set --config.eval.split"
            )


# Provenance that may differ from one start of a run to the next.
FREE = ("version", "command")


def check_same_run(saved: dict, now: dict, workdir: epath.Path) -> None:
    """Refuses to continue with another model or other data than the checkpoint's."""
    for key in now:
        if key not in FREE and saved.get(key) != now[key]:
            raise DataError(
                f"the checkpoint in {workdir} belongs to the {key} {saved.get(key)}, this run has "
                f"{now.get(key)}; use another --workdir, or start from it with --config.init_from"
            )


def initial_train_state(task: Task, dataset: Dataset, sharding: TrainState) -> TrainState:
    """Step 0 of a task.

    Args:
      task: Opened.
      dataset: To train on.
      sharding: Of every leaf.
    """
    return state_from_variables(task.config, task.variables(dataset, sharding.variables), sharding)


def state_from_variables(
    config: ConfigDict, variables: dict[str, Any], sharding: TrainState
) -> TrainState:
    """Step 0 from placed variables, whose buffers it takes: they are not twice in memory.

    Each goes on in the buffer that it came in. XLA gives what is donated to the first output of its
    shape: where that was another leaf's copy, on a GPU (jaxlib 0.11.2) the copy was written before
    the leaf was saved, and PCA's scale was the likelihood's.

    Args:
      config: The run's.
      variables: On the devices, as `sharding` has them; donated.
      sharding: Of every leaf.
    """
    inside = dict.fromkeys(("params", "fixed", "batch_stats"))

    def begin(variables):
        return variables, initial_state(config, variables).replace(**inside)

    where = sharding.variables, sharding.replace(**inside)
    variables, rest = jax.jit(begin, out_shardings=where, donate_argnums=0)(variables)
    whole = dict(variables)
    return rest.replace(
        params=whole.pop("params"), batch_stats=whole.pop("batch_stats", {}), fixed=whole
    )
