"""Saves checkpoints of a run, and restores the complete train state."""

from typing import Any

import orbax.checkpoint as ocp

from vae.checkpoints.modules import join_variables
from vae.checkpoints.orbax_io import (
    CHECKSUMS,
    MODEL,
    PROVENANCE,
    TRAINING,
    OrbaxCheckpoints,
    checksums,
    model_item,
    one_line,
)
from vae.data.errors import DataError
from vae.training.train_state import TrainState


class Checkpoints(OrbaxCheckpoints):
    """The checkpoints of one directory.

    A checkpoint is written under a temporary name and renamed when complete, so a killed process
    leaves no incomplete one. The `keep` newest are kept.
    """

    def save(self, step: int, state: TrainState, provenance: dict[str, Any]) -> None:
        """Saves the state before step `step`, unless this is already the latest checkpoint.

        Raises:
          DataError: It could not be written; earlier checkpoints are unchanged.
        """
        if step == self.latest_step():
            return
        trees = _items(state)
        sums = {name: checksums(item) for name, item in (trees | {PROVENANCE: provenance}).items()}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{PROVENANCE: ocp.args.JsonSave(provenance)},
                    **{CHECKSUMS: ocp.args.JsonSave(sums)},
                    **{item: ocp.args.StandardSave(tree) for item, tree in trees.items()},
                ),
            )
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            # A full disk is a ValueError of tensorstore, or a RuntimeError of an Orbax thread.
            raise self._not_saved(step, error) from error

    def wait(self) -> None:
        """Waits until all saved checkpoints are on disk; raises DataError as `save` does."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_saved(self.latest_step(), error) from error

    def close(self) -> None:
        """Waits for the last checkpoint and stops the threads.

        Raises:
          DataError: The last checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Restores the train state of a step.

        Args:
          step: Step of a complete checkpoint.
          abstract: Shapes, dtypes and shardings, from `jax.eval_shape` and the sharding rules.

        Raises:
          DataError: The checkpoint is damaged or of another model (up to 8 differences are named).
        """
        fields = self.restore_trees(step, _items(abstract))
        fields = {"fixed": {}, "batch_stats": {}, **fields[MODEL], **fields[TRAINING]}
        fields["statistics"] = {name: fields.pop(name) for name in abstract.statistics}
        averaged = fields.pop("ema_params")
        if abstract.ema_params is None:
            return TrainState(**fields, params=averaged, ema_params=None)
        return TrainState(**fields, ema_params=averaged)

    def restore_variables(self, step: int, abstract: TrainState) -> dict[str, Any]:
        """Restores the variables for evaluation of a step; arguments and errors as in `restore`."""
        fields = self.restore_model(step, _items(abstract)[MODEL])
        return join_variables(fields["ema_params"], fields["fixed"], fields["batch_stats"])

    def _not_saved(self, step: int | None, error: Exception) -> DataError:
        return DataError(
            f"checkpoint {step} could not be written to {self.directory}: {one_line(error)}; the "
            f"last complete one is {self.latest_step()}; free some disk space and run the same "
            "command again"
        )


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """Returns the items of a checkpoint and their fields."""
    fields = {
        "step": state.step,
        "ema_params": state.averaged,
        "fixed": state.fixed,
        "batch_stats": state.batch_stats,
        **state.statistics,
    }
    training = {"opt_state": state.opt_state}
    if state.ema_params is not None:
        training["params"] = state.params
    return {MODEL: model_item(fields), TRAINING: training}
