"""Checkpoints of a run, by Orbax: what inference needs in one item, the rest in another.

`checkpoints/STEP/model` holds the averaged parameters, the other variables and the latent
statistics; `checkpoints/STEP/training` the optimizer's state, and the raw parameters where those of
the model are averages; `.../about` says which data and model they belong to.
"""

import logging as python_logging
import traceback
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vae.data.errors import DataError
from vae.training.state import TrainState

MODEL, TRAINING = "model", "training"


class _Raised(python_logging.Filter):
    """Drops records about Orbax's tasks, with their tracebacks: it raises the same."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
        return not any("orbax" in path for path in (record.pathname, *(f.filename for f in frames)))


_RAISED = _Raised()  # one object: adding it again changes nothing


class Checkpoints:
    """The checkpoints of one directory.

    A checkpoint is written beside and renamed when complete, so a killed process leaves no half
    one; the `keep` newest stay.
    """

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
                "about": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                # On the CPU backend a donated buffer may still be being written out.
                enable_async_checkpointing=jax.default_backend() != "cpu",
            ),
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, about: dict[str, Any]) -> None:
        """Saves the state before step `step`, unless it is there already.

        Raises:
          DataError: It could not be written; the checkpoints before it are untouched.
        """
        if step == self.latest_step():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    about=ocp.args.JsonSave(about),
                    **{item: ocp.args.StandardSave(tree) for item, tree in _items(state).items()},
                ),
            )
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            # tensorstore reports a full disk as ValueError.
            raise self._not_saved(step, error) from error

    def wait(self) -> None:
        """Returns when everything handed to `save` is on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._not_saved(self.latest_step(), error) from error

    def close(self) -> None:
        """Waits and releases the threads.

        Raises:
          DataError: The last checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def about(self, step: int) -> dict[str, Any]:
        """What `save` was told about the checkpoint."""
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
            )
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(step, error) from error
        if not isinstance(restored["about"], dict):
            raise self._unreadable(step, ValueError("its item about holds something else"))
        return restored["about"]

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step.

        Args:
          step: Of a complete checkpoint.
          abstract: Shapes, dtypes and shardings, from `jax.eval_shape` and the sharding rules.

        Raises:
          DataError: Damaged, or of another model (every differing leaf is named).
        """
        fields = self._restore(step, _items(abstract))
        fields = {"fixed": {}, "batch_stats": {}, **fields[MODEL], **fields[TRAINING]}
        averaged = fields.pop("ema_params")
        if abstract.ema_params is None:
            return TrainState(**fields, params=averaged, ema_params=None)
        return TrainState(**fields, ema_params=averaged)

    def restore_model(self, step: int, abstract: TrainState) -> dict[str, Any]:
        """What inference needs: step, ema_params, fixed, batch_stats, latent_mean, latent_var."""
        wanted = _items(abstract)[MODEL]
        return {"fixed": {}, "batch_stats": {}} | self._restore(step, {MODEL: wanted})[MODEL]

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

    def _not_saved(self, step: int | None, error: Exception) -> DataError:
        return DataError(
            f"checkpoint {step} could not be written to {self.directory}: {_one_line(error)}; the "
            f"last complete one is {self.latest_step()}; free some disk space and run the same "
            "command again"
        )

    def _unreadable(self, step: int, error: Exception) -> DataError:
        return DataError(
            f"checkpoint {self.directory / str(step)} cannot be read: {_one_line(error)}; remove "
            "that directory to fall back to the one before it"
        )


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """The items of a checkpoint and their fields; what is empty is not stored."""
    model = {
        "step": state.step,
        "ema_params": state.averaged,
        "fixed": state.fixed,
        "batch_stats": state.batch_stats,
        "latent_mean": state.latent_mean,
        "latent_var": state.latent_var,
    }
    training = {"opt_state": state.opt_state}
    if state.ema_params is not None:
        training["params"] = state.params
    return {
        MODEL: {n: field for n, field in model.items() if not isinstance(field, dict) or field},
        TRAINING: training,
    }


def _compare(path: epath.Path, saved: Any, wanted: Any) -> None:
    """Raises unless every leaf has its shape and dtype: a restore would cast a dtype silently."""
    if saved is None:
        raise ValueError("an item of it is missing")

    def leaves(tree):
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
        # Named tuples of the optimizer come back as dicts: keys are compared as text.
        return {
            tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): (
                tuple(leaf.shape),
                str(leaf.dtype),
            )
            for path, leaf in flat
        }

    have, want = leaves(saved.tree if hasattr(saved, "tree") else saved), leaves(wanted)
    problems = [
        f"{'/'.join(key)}: {have.get(key, 'absent')} saved, {want.get(key, 'none')} expected"
        for key in sorted(have.keys() | want.keys())
        if have.get(key) != want.get(key)
    ]
    if problems:
        raise DataError(
            f"checkpoint {path} belongs to another model, {len(problems)} leaves differ: "
            + "; ".join(problems[:8])
            + ("; ..." if len(problems) > 8 else "")
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
