"""The interface between the training loop and a product."""

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
from vae.checkpoints.leaves import by_path
from vae.checkpoints.loading import load_saved
from vae.checkpoints.modules import blank_statistics, initial_variables, make_model
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
      batches: This process's rows of each batch, from the first step on; with `tile_id` str [rows].
      to_device: (host batch, step) -> the global device batch that `Task.example` takes.
    """

    batches: Iterator[HostBatch]
    to_device: Callable[[HostBatch, int], Any]


class Task(abc.ABC):
    """A product as the training loop sees it.

    The loop calls `check` (through `vae.training.validation`), `open`, `variables`, `feed`; for
    each step `example`, `loss` and `after_step`; and `evaluate` and `report`.

    Attributes:
      config: The run's; after `open` with the settings that depend on the data filled in.
      model: The flax module.
      evaluates_checkpoint: True where `evaluate` reads the newest checkpoint: the loop saves first.
    """

    evaluates_checkpoint: ClassVar[bool] = False

    def __init__(self, config: ConfigDict):
        self.config = config

    @functools.cached_property
    def model(self) -> nn.Module:
        """The flax module that the config describes."""
        return make_model(self.config)

    # ---- Settings -------------------------------------------------------------------------------

    @classmethod
    def reference(cls, config: ConfigDict) -> ConfigDict:
        """Returns all settings of the config's file; a run has these, of the same types.

        Raises:
          ValueError: There is no such architecture.
        """
        return reference_config(config.model.get("architecture"))

    @abc.abstractmethod
    def check(self, problems: Any) -> None:
        """Adds what is wrong with the task's own settings to `vae.training.validation.Problems`."""

    def rate_factor(self, part: str) -> float:
        """Returns the factor of the learning rate for a part of the model; 0 freezes it.

        Args:
          part: First name of the parameters' path, as "decoder".
        """
        del part
        return 1.0

    def reads(self) -> list[str]:
        """Returns the paths and models that a run reads; its workdir must be none of them."""
        return [self.config.data.dir, self.config.init_from]

    # ---- The start of a run ---------------------------------------------------------------------

    def open(self, dataset: Dataset) -> None:
        """Reads what the task needs besides the dataset, and fills in the config."""
        del dataset

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that a checkpoint must share with the run that continues it."""
        return {}

    def fresh_variables(self, start: Any = None) -> dict:
        """Variables of step 0. Traceable by `jax.eval_shape`.

        Args:
          start: Of `fit_initialization`, or its shapes; None for none.
        """
        return initial_variables(self.config, start)

    def abstract_initialization(self) -> Any:
        """Shapes and dtypes of what `fit_initialization` gives."""
        return None

    def fit_initialization(self, dataset: Dataset) -> Any:
        """Fits what training starts from to the training tiles; the same on every process."""
        del dataset
        return None

    def from_saved(self, saved: SavedModel) -> dict:
        """Returns variables of step 0: those of a saved model, and fresh ones where it has none.

        Fresh ones are listed on the console.

        Raises:
          DataError: The saved model has variables that this one lacks, or of other shapes.
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
                f" variables do not fit: {'; '.join(problems[:8])}; give the --config.model.* that"
                f" it was made with: {plain(saved.config.model)}"
            )
        if new := sorted(wanted.keys() - have.keys()):
            say(f"init_from={self.config.init_from} lacks these, which start fresh: {new}")
            have = by_path(jax.jit(self.fresh_variables)()) | have
        return jax.tree.unflatten(jax.tree.structure(abstract), [have[name] for name in wanted])

    def variables(self, dataset: Dataset, where: Any) -> dict:
        """Placed variables of step 0: from `init_from`, else fresh ones.

        Args:
          dataset: To train on.
          where: The sharding of every leaf.
        """
        if self.config.init_from:
            return jax.device_put(self.from_saved(load_saved(self.config.init_from)), where)
        start = self.fit_initialization(dataset)
        return jax.jit(self.fresh_variables, out_shardings=where)(start)

    def statistics(self, variables: dict) -> dict[str, jax.Array]:
        """`latent_mean` and `latent_var` of step 0, float32 [C]."""
        return blank_statistics(self.config, variables)

    # ---- Steps ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def feed(self, dataset: Dataset, mesh: Mesh, start: int) -> Feed:
        """Opens the training data from step `start` on."""

    @abc.abstractmethod
    def example(self, batch: Any, rows: jax.Array, step: jax.Array) -> Any:
        """Makes training examples of a device batch: crops, degradations. Traced.

        Args:
          batch: Of `Feed.to_device`, or some of its rows.
          rows: int32 [b], the numbers of these rows in the batch; randomness depends on them.
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
        """The loss [] of examples, with metrics and the new batch statistics. Traced."""

    def after_step(
        self, state: Any, params: dict, batch_stats: dict, metrics: Metrics
    ) -> tuple[dict[str, jax.Array], Metrics]:
        """Fields of the train state that follow from a step, and the metrics to log. Traced.

        Args:
          state: Before the step.
          params: After it.
          batch_stats: After it.
          metrics: Means over the batch.
        """
        del state, params, batch_stats
        return {}, metrics

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
        """The scheduled evaluation: metrics and pictures to the log, a line to the console."""

    @abc.abstractmethod
    def report(
        self, variables: dict, step: int, dataset: Dataset, mesh: Mesh, workdir: epath.Path
    ) -> None:
        """The closing evaluation: tables and metrics in the workdir, a table on the console."""


def read_batches(
    config: ConfigDict, dataset: Dataset, mesh: Mesh, start: int, **columns: bool
) -> Iterator[HostBatch]:
    """This process's rows of the training batches; see `vae.data.pipeline.train_batches`."""
    return train_batches(
        dataset,
        size=config.data.size,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=local_rows(mesh, config.batch_size),
        start_step=start,
        threads=config.data.threads or None,
        **columns,
    )


def check_same_model(saved: SavedModel, config: ConfigDict, name: str) -> None:
    """Refuses a config of another model than the saved one; `name` is what the user called it."""
    if plain(saved.config.model) != plain(config.model):
        raise DataError(
            f"{name} holds the model {plain(saved.config.model)}, the config asks for "
            f"{plain(config.model)}; give the config it was made with"
        )


def plain(config: ConfigDict) -> dict[str, Any]:
    """Settings as JSON would give them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
