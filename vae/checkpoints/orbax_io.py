"""Reads models from Orbax checkpoints.

`checkpoints/STEP/model` holds the averaged parameters, the other variables and the latent
statistics. `checkpoints/STEP/training` is read only by training; it holds the optimizer state, and
the raw parameters if the model's are averages. `.../provenance` identifies the data and the model.
`.../checksums` holds a checksum of each array and of the provenance.
"""

import functools
import logging as python_logging
import math
import sys
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vae.checkpoints.leaves import by_path, differences
from vae.data.errors import DataError
from vae.data.schema import json_crc
from vae.multihost import sum_over_processes

MODEL, TRAINING, PROVENANCE, CHECKSUMS = "model", "training", "provenance", "checksums"


class _Raised(python_logging.Filter):
    """Drops log records of Orbax's tasks with their tracebacks: Orbax raises the same errors."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
        return not any("orbax" in path for path in (record.pathname, *(f.filename for f in frames)))


_RAISED = _Raised()  # one object, because loggers ignore a filter that they already have


def _hide_late_writes() -> None:
    """Hides the error of each write that fails after the first one has ended the save."""
    before = sys.unraisablehook
    if hasattr(before, "hides_late_writes"):
        return

    def hook(lost: Any) -> None:
        if str(lost.exc_value) != "Event loop is closed":
            before(lost)

    hook.hides_late_writes = True
    sys.unraisablehook = hook


class OrbaxCheckpoints:
    """Reader of the checkpoints of one directory; `vae.training.checkpoint` writes them."""

    def __init__(self, directory: epath.PathLike, keep: int = 3):
        self.directory = epath.Path(directory).absolute()
        for logger in (logging.get_absl_logger(), python_logging.getLogger("asyncio")):
            logger.addFilter(_RAISED)
        _hide_late_writes()
        if self.directory.exists() and not self.directory.is_dir():
            raise DataError(f"{self.directory} is no folder; expected the checkpoints of a run")
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_handlers={
                    MODEL: ocp.StandardCheckpointHandler(),
                    TRAINING: ocp.StandardCheckpointHandler(),
                    PROVENANCE: ocp.JsonCheckpointHandler(),
                    CHECKSUMS: ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                    # On the CPU backend a donated buffer may still be being written out.
                    enable_async_checkpointing=jax.default_backend() != "cpu",
                ),
            )
        except OSError:
            raise
        except Exception as error:  # Orbax raises all kinds for damaged folders.
            raise DataError(f"{self.directory}: cannot be read: {one_line(error)}") from error

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
        return self._restore(step, {PROVENANCE: ocp.args.JsonRestore()})[PROVENANCE]

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
        return {"fixed": {}, "batch_stats": {}} | self.restore_trees(step, {MODEL: abstract})[MODEL]

    def restore_trees(self, step: int, wanted: dict[str, dict]) -> dict[str, dict[str, Any]]:
        """Restores items of arrays; `wanted` has the shapes, dtypes and shardings of each item."""
        return self._restore(
            step, {item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()}
        )

    def _restore(self, step: int, args: dict[str, Any]) -> dict[str, Any]:
        """Restores items and verifies their checksums."""
        try:
            saved = self._manager.item_metadata(step)
            for item, arg in args.items():
                if isinstance(arg, ocp.args.StandardRestore):
                    _compare(self.directory / str(step), saved[item], arg.item)
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**args, **{CHECKSUMS: ocp.args.JsonRestore()})
            )
            for item in args:
                if checksums(restored[item]) != restored[CHECKSUMS][item]:
                    raise ValueError(f"the checksums of its {item} differ")
        except DataError:
            raise
        except Exception as error:  # Orbax raises all kinds, and Exception itself.
            others = [other for other in self._manager.all_steps() if other != step]
            raise DataError(
                f"checkpoint {self.directory / str(step)} cannot be read: {one_line(error)}; "
                "remove that directory, and "
                + (f"checkpoint {max(others)} is used" if others else "no checkpoint is left")
            ) from error
        return {item: restored[item] for item in args}


def checksums(item: Any) -> dict[str, str] | str:
    """Returns the checksum of each array of a tree by its path, or the checksum of JSON values.

    The checksum of an array does not depend on its sharding. All processes that hold a part of an
    array must call it.
    """
    leaves = by_path(item)
    if not all(isinstance(leaf, jax.Array) for leaf in leaves.values()):
        return f"{json_crc(item):08x}"
    parts = [
        [_sums(part.data, *_place(leaf, part)) for part in leaf.addressable_shards]
        for leaf in leaves.values()
    ]
    sums = [np.sum(part, axis=0, dtype=np.float64) for part in jax.device_get(parts)]
    # Exact: float64 holds the sum of two million uint32.
    total = np.concatenate([np.empty(0), *sums])
    if not all(leaf.is_fully_addressable for leaf in leaves.values()):
        total = sum_over_processes(total)
    pairs = (total.astype(np.int64) % 2**32).reshape(-1, 2).tolist()
    return {name: f"{a:08x}{b:08x}" for name, (a, b) in zip(leaves, pairs, strict=True)}


def _place(array: jax.Array, part: jax.Shard) -> tuple[np.uint32, np.uint32, tuple[int, ...]]:
    """Returns a factor, 0 for copies of a part, and the part's first index and its strides."""
    strides = tuple(math.prod(array.shape[axis + 1 :]) % 2**32 for axis in range(array.ndim))
    starts = [axis.start or 0 for axis in part.index]
    first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    return np.uint32(part.replica_id == 0), np.uint32(first % 2**32), strides


@functools.partial(jax.jit, static_argnames="strides")
def _sums(part: jax.Array, once: jax.Array, first: jax.Array, strides: tuple[int, ...]):
    """Returns two sums of a part's words modulo 2**32; a change of one word changes both.

    A hash of bytes would need each array on one host.
    """
    word = jnp.dtype(f"uint{8 * part.dtype.itemsize}")
    bits = part if part.dtype == bool else jax.lax.bitcast_convert_type(part, word)
    bits = bits.astype(jnp.uint32)
    index = first
    for axis, stride in enumerate(strides):
        index += jax.lax.broadcasted_iota(jnp.uint32, part.shape, axis) * jnp.uint32(stride)
    sums = bits.sum(dtype=jnp.uint32), (bits * (2 * index + 1)).sum(dtype=jnp.uint32)
    return once * jnp.stack(sums)


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
