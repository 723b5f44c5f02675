"""Reads models from Orbax checkpoints.

`checkpoints/STEP/model` holds the averaged parameters, the other variables and the latent
statistics. `checkpoints/STEP/training` is read only by training; it holds the optimizer state, and
the raw parameters if the model's are averages. `.../provenance` identifies the data and the model.
"""

import logging as python_logging
import traceback
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vae.checkpoints.leaves import by_path, differences
from vae.data.errors import DataError

MODEL, TRAINING, PROVENANCE = "model", "training", "provenance"


class _Raised(python_logging.Filter):
    """Drops log records of Orbax's tasks with their tracebacks: Orbax raises the same errors."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
        return not any("orbax" in path for path in (record.pathname, *(f.filename for f in frames)))


_RAISED = _Raised()  # one object, because loggers ignore a filter that they already have


class OrbaxCheckpoints:
    """Reader of the checkpoints of one directory; `vae.training.checkpoint` writes them."""

    def __init__(self, directory: epath.PathLike, keep: int = 3):
        self.directory = epath.Path(directory).absolute()
        for logger in (logging.get_absl_logger(), python_logging.getLogger("asyncio")):
            logger.addFilter(_RAISED)
        if self.directory.exists() and not self.directory.is_dir():
            raise DataError(f"{self.directory} is no folder; expected the checkpoints of a run")
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                MODEL: ocp.StandardCheckpointHandler(),
                TRAINING: ocp.StandardCheckpointHandler(),
                PROVENANCE: ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                # On the CPU backend a donated buffer may still be being written out.
                enable_async_checkpointing=jax.default_backend() != "cpu",
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def require_step(self) -> int:
        """Returns the step of the newest complete checkpoint; raises DataError if there is none."""
        step = self.latest_step()
        if step is None:
            raise DataError(f"{self.directory.parent} has no complete checkpoint; train it first")
        return step

    def provenance(self, step: int) -> dict[str, Any]:
        """Returns the provenance of a checkpoint; raises DataError if it cannot be read."""
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**{PROVENANCE: ocp.args.JsonRestore()})
            )
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(step, error) from error
        if not isinstance(restored[PROVENANCE], dict):
            raise self._unreadable(step, ValueError("its provenance holds something else"))
        return restored[PROVENANCE]

    def close(self) -> None:
        """Stops the threads."""
        self._manager.close()

    def restore_model(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Reads a model.

        Args:
          step: Step of a complete checkpoint.
          abstract: Shapes, dtypes and shardings, from `model_item`.

        Returns:
          A dict of step, ema_params, fixed, batch_stats, latent_mean, latent_var.

        Raises:
          DataError: The checkpoint is damaged or of another model (up to 8 differences are named).
        """
        return {"fixed": {}, "batch_stats": {}} | self._restore(step, {MODEL: abstract})[MODEL]

    def _restore(self, step: int, wanted: dict[str, dict]) -> dict[str, dict[str, Any]]:
        try:
            saved = self._manager.item_metadata(step)
            for item, tree in wanted.items():
                _compare(self.directory / str(step), saved[item], tree)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()}
                ),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unreadable(step, error) from error
        return {item: restored[item] for item in wanted}

    def _unreadable(self, step: int, error: Exception) -> DataError:
        return DataError(
            f"checkpoint {self.directory / str(step)} cannot be read: {one_line(error)}; remove "
            "that directory to use the previous checkpoint"
        )


def model_item(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a model to store; empty collections are omitted."""
    return {n: field for n, field in fields.items() if not isinstance(field, dict) or field}


def _compare(path: epath.Path, saved: Any, wanted: Any) -> None:
    """Raises if a leaf differs in shape or dtype, because a restore would silently cast dtypes."""
    if saved is None:
        raise ValueError("a part of the checkpoint is missing")

    # Orbax returns the optimizer's named tuples as dicts with the same paths.
    stored, expected = (
        {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in by_path(tree).items()}
        for tree in (saved.tree if hasattr(saved, "tree") else saved, wanted)
    )
    if problems := differences(stored, expected):
        raise DataError(
            f"checkpoint {path} belongs to another model, {len(problems)} leaves differ: "
            + "; ".join(problems[:8])
            + ("; ..." if len(problems) > 8 else "")
        )


def one_line(error: Exception) -> str:
    """Formats an error in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
