"""The interface between the training loop and a product (reconstruction, enhancement, prior)."""

import abc
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vae.checkpoints.config import reference_config
from vae.checkpoints.leaves import by_path, from_paths
from vae.checkpoints.loading import load_saved
from vae.checkpoints.modules import initial_variables, make_model
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError
from vae.data.pipeline import Dataset, train_batches
from vae.multihost import say
from vae.sharding import local_rows

HostBatch = dict[str, np.ndarray]
Metrics = dict[str, jax.Array]


class Feed(NamedTuple):
    """The training data of a run.

    Attributes:
      batches: This process's rows of each batch, from the start step on; with `tile_id` str [rows].
      to_device: Maps (host batch, step) to the global device batch that `Task.example` takes.
    """

    batches: Iterator[HostBatch]
    to_device: Callable[[HostBatch, int], Any]


class Task(abc.ABC):
    """A product as the training loop sees it.

    The loop calls `check` (through `vae.training.validation`), `open`, `variables`, `feed`; for
    each step `example`, `loss` and `after_step`; and `evaluate` and `report`.

    Attributes:
      config: Config of the run; `open` adds the settings that depend on the data.
      model: The flax module.
      console_metrics: Names of metrics to print, next to the loss and the gradient norm.
      quality: Name of a metric that `evaluate` logs and that rises with quality. The run says if it
        is lower at the end than at step 0; "" for no such metric.
      evaluates_checkpoint: True if `evaluate` reads the newest checkpoint; the loop saves it first.
    """

    quality: ClassVar[str] = ""
    evaluates_checkpoint: ClassVar[bool] = False
    console_metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ConfigDict):
        self.config = config

    @functools.cached_property
    def model(self) -> nn.Module:
        """Returns the flax module that the config describes."""
        return make_model(self.config)

    # ---- Settings -------------------------------------------------------------------------------

    @classmethod
    def reference(cls, config: ConfigDict) -> ConfigDict:
        """Returns the reference config, whose settings and types every run of the task must have.

        Raises:
          ValueError: The architecture is unknown.
        """
        return reference_config(config.model.get("architecture"))

    @abc.abstractmethod
    def check(self, problems: Any) -> None:
        """Adds problems of the task's own settings to a `vae.training.validation.Problems`."""

    def rate_factor(self, part: str) -> float:
        """Returns the learning-rate factor of a part of the model; 0 freezes the part.

        Args:
          part: First name of the parameters' path, for example "decoder".
        """
        del part
        return 1.0

    def decays(self, name: str) -> bool:
        """Returns True for parameters with weight decay: kernels, not biases, norms and scales.

        Args:
          name: Path of the parameters, for example "decoder/head/kernel".
        """
        return name.endswith("/kernel")

    def reads(self) -> list[str]:
        """Returns the paths and models that a run reads, none of which may be its workdir."""
        return [self.config.data.dir, self.config.init_from]

    # ---- Initialization -------------------------------------------------------------------------

    def open(self, dataset: Dataset) -> None:
        """Reads the task's inputs other than the dataset, and completes the config."""
        del dataset

    @property
    def identity(self) -> dict[str, Any]:
        """Returns JSON values that must be the same in a checkpoint and in a run continuing it."""
        return {}

    def fresh_variables(self, fit: Any = None) -> dict:
        """Returns the variables of step 0. Traceable by `jax.eval_shape`.

        Args:
          fit: Result of `fit_initialization`; None for variables of the same shapes without it.
        """
        return initial_variables(self.config, fit)

    def fit_initialization(self, dataset: Dataset) -> Any:
        """Fits the initialization to the training tiles; all processes get the same result."""
        del dataset
        return None

    def from_saved(self, saved: SavedModel) -> dict:
        """Returns the variables of step 0 from a saved model.

        Variables that the saved model lacks are initialized anew and listed on the console.

        Raises:
          DataError: The saved model has unknown variables, or variables of other shapes.
        """
        abstract = jax.eval_shape(self.fresh_variables)
        wanted, have = by_path(abstract), by_path(saved.variables)
        shapes = {name: leaf.shape for name, leaf in wanted.items()}
        problems = [
            f"{name}: {leaf.shape} there, {shapes.get(name, 'none')} here"
            for name, leaf in have.items()
            if shapes.get(name) != leaf.shape
        ]
        if problems:
            raise DataError(
                f"init_from={self.config.init_from} is another model, {len(problems)} of its"
                f" variables do not fit: {'; '.join(problems[:8])}; set --config.model.* to the"
                f" values of that model: {plain(saved.config.model)}"
            )
        if new := sorted(wanted.keys() - have.keys()):
            say(f"init_from={self.config.init_from} lacks some variables, which start fresh: {new}")
            have = by_path(jax.jit(self.fresh_variables)()) | have
        return from_paths(have, abstract)

    def variables(self, dataset: Dataset, where: Any) -> dict:
        """Returns the variables of step 0 on the devices, from `init_from` or freshly initialized.

        Args:
          dataset: Training dataset.
          where: The sharding of every leaf.
        """
        if self.config.init_from:
            return jax.device_put(self.from_saved(load_saved(self.config.init_from)), where)
        fit = self.fit_initialization(dataset)
        return jax.jit(self.fresh_variables, out_shardings=where)(fit)

    def statistics(self, variables: dict) -> dict[str, jax.Array]:
        """Returns `TrainState.statistics` of step 0. Traced."""
        del variables
        return {}

    # ---- Steps ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def feed(self, dataset: Dataset, mesh: Mesh, start: int) -> Feed:
        """Opens the training data from step `start` on."""

    @abc.abstractmethod
    def example(self, batch: Any, rows: jax.Array, step: jax.Array) -> Any:
        """Makes training examples from a device batch: crops, degradations. Traced.

        Args:
          batch: Result of `Feed.to_device`, or some of its rows.
          rows: int32 [b], indices of these rows in the batch, which determine the random draws.
          step: int32 [].
        """

    @abc.abstractmethod
    def loss(
        self,
        params: dict,
        fixed: dict,
        batch_stats: dict,
        example: Any,
        rows: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[Metrics, dict]]:
        """Returns the loss [] of examples, with metrics and new batch statistics. Traced."""

    def after_step(
        self, state: Any, params: dict, batch_stats: dict, metrics: Metrics
    ) -> tuple[dict[str, jax.Array], Metrics]:
        """Returns the statistics after a step, and the metrics to log. Traced.

        Args:
          state: Train state before the step.
          params: Parameters after the step.
          batch_stats: Batch statistics after the step.
          metrics: Means over the batch.
        """
        del params, batch_stats
        return state.statistics, metrics

    # ---- Evaluation -----------------------------------------------------------------------------

    @abc.abstractmethod
    def evaluate(
        self,
        variables: dict,
        step: int,
        dataset: Dataset,
        mesh: Mesh,
        workdir: epath.Path,
        log: Any,
    ) -> None:
        """Runs the scheduled evaluation: logs metrics and pictures, prints a line."""

    @abc.abstractmethod
    def report(
        self, variables: dict, step: int, dataset: Dataset, mesh: Mesh, workdir: epath.Path
    ) -> None:
        """Runs the final evaluation: writes tables and metrics to the workdir, prints a table."""


def read_batches(
    config: ConfigDict, dataset: Dataset, mesh: Mesh, start: int, **options: Any
) -> Iterator[HostBatch]:
    """Reads this process's rows of the training batches (`vae.data.pipeline.train_batches`)."""
    return train_batches(
        dataset,
        size=config.data.size,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=local_rows(mesh, config.batch_size),
        start_step=start,
        threads=config.data.threads or None,
        **options,
    )


def check_crops(config: ConfigDict, problems: Any) -> None:
    """Adds invalid values of crop settings to a `vae.training.validation.Problems`."""
    problems.positive(config, "data.crop", "data.fit_tiles")
    problems.whole_numbers(config, "data.scales")


def check_reach(config: ConfigDict, problems: Any) -> None:
    """Adds a problem if crops do not fit into tiles at every scale."""
    data = config.data
    reach = data.crop * max(data.scales)
    problems.require(
        reach <= data.size,
        f"data.crop={data.crop} is larger than data.size={data.size}"
        if data.crop > data.size
        else f"data.crop={data.crop} at data.scales={data.scales} is cut from {reach} pixels, but "
        f"data.size={data.size}",
    )


def plain(config: ConfigDict) -> dict[str, Any]:
    """Converts settings to the values that JSON would restore."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
