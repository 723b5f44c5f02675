"""The initialization of a run: its dataset, and the train state of step 0."""

from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vae.data.errors import DataError, UsageError
from vae.data.pipeline import Dataset, open_dataset
from vae.tasks.task import Task
from vae.training.train_state import TrainState, initial_state

# Provenance that may differ when a run is continued.
MAY_DIFFER = ("version", "command")


def open_data(config: ConfigDict, workdir: epath.Path) -> Dataset:
    """Opens a config's dataset (UsageError without one); prepares bundled sources on first use."""
    if not config.data.source:
        if not config.data.dir:
            raise UsageError(
                "data.dir is empty; give --config.data.dir=DIR, made by `fundus-vae make-tiles` "
                "and `fundus-vae build`, or use a preset with bundled data: "
                "--config=configs/fundus256.py:demo"
            )
        return open_dataset(config.data.dir, cache_dir=config.data.cache_dir)
    from vae.data import demo

    # The first process prepares the data; processes that share its disk then find it complete.
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("data prepared")
    path = demo.prepare(config.data.source, workdir / "data", config.data.size)
    if jax.process_index() == 0 and jax.process_count() > 1:
        multihost_utils.sync_global_devices("data prepared")
    return open_dataset(path)


def check_splits(config: ConfigDict, dataset: Dataset) -> None:
    """Raises DataError for a dataset without training tiles or without tiles of `eval.split`."""
    for split, key in (("train", "for training"), (config.eval.split, "eval.split")):
        if not dataset.counts.get(split):
            raise DataError(
                f"{dataset.path} has no tiles in split {split!r} ({key}), it has {dataset.counts}; "
                "build it with patients in that split, or set --config.eval.split"
            )


def check_same_run(saved: dict, now: dict, workdir: epath.Path) -> None:
    """Raises DataError if the checkpoint's model or data differ from those of this run."""
    for key in now:
        if key not in MAY_DIFFER and saved.get(key) != now[key]:
            raise DataError(
                f"the checkpoint in {workdir} belongs to the {key} {saved.get(key)}, this run has "
                f"{now.get(key)}; use another --workdir, or start from it with --config.init_from"
            )


def state_from_variables(task: Task, variables: dict[str, Any], sharding: TrainState) -> TrainState:
    """Returns the train state of step 0 from variables, which are donated to save memory.

    Each variable is returned in its own buffer. XLA assigns a donated buffer to the first output of
    the same shape. If that is the copy of another leaf, a GPU (jaxlib 0.11.2) overwrites the buffer
    before its leaf is read.

    Args:
      task: Task of the run.
      variables: Variables on the devices with the shardings of `sharding`; donated.
      sharding: The sharding of every leaf.
    """
    inside = dict.fromkeys(("params", "fixed", "batch_stats"))

    def begin(variables):
        return variables, initial_state(task, variables).replace(**inside)

    where = sharding.variables, sharding.replace(**inside)
    variables, rest = jax.jit(begin, out_shardings=where, donate_argnums=0)(variables)
    whole = dict(variables)
    return rest.replace(
        params=whole.pop("params"), batch_stats=whole.pop("batch_stats", {}), fixed=whole
    )
