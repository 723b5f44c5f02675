"""Provenance of outputs (version, command, date), and removal of local paths from models."""

import dataclasses
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

import vae
from vae.checkpoints.safetensors_io import SavedModel


def provenance(argv: Sequence[str] | None = None) -> dict[str, str]:
    """Returns the package's `version` and the `command`: `argv`, or this process's arguments."""
    argv = [Path(sys.argv[0]).name, *sys.argv[1:]] if argv is None else argv
    return {"version": vae.__version__, "command": shlex.join(argv)}


def dated_provenance() -> dict[str, str]:
    """Returns `version`, `command` and `date` (UTC), for files of metrics."""
    now = datetime.datetime.now(datetime.UTC)
    return {**provenance(), "date": now.isoformat(timespec="seconds")}


def portable(saved: SavedModel) -> SavedModel:
    """Removes folders from the paths in a model's config and command; only their names remain.

    A distributed file must not show who trained the model, or where.
    """
    config = saved.config.copy_and_resolve_references()
    for key in {"dir", "masked_dir", "cache_dir"} & set(config.data):
        config.data[key] = epath.Path(config.data[key]).name
    config.init_from = epath.Path(config.init_from).name
    # bfloat16 is for training on accelerators: it has half the digits and is slow on CPUs.
    config.train.compute_dtype = "float32"
    if "prior" in config:
        config.prior.autoencoder = epath.Path(config.prior.autoencoder).name
    made = dict(saved.provenance)
    if made.get("command"):
        made["command"] = shlex.join(map(_without_folder, shlex.split(made["command"])))
    return dataclasses.replace(saved, config=config, provenance=made)


def _without_folder(argument: str) -> str:
    name, equals, value = argument.rpartition("=")
    path = epath.Path(value)
    return f"{name}{equals}{path.name}" if path.is_absolute() else argument
