"""Provenance of outputs (version, command, date), and removal of local paths from models."""

import dataclasses
import datetime
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

import vae
from vae.checkpoints.safetensors_io import SavedModel


def provenance(argv: Sequence[str] | None = None) -> dict[str, str]:
    """Returns the package's `version` and the `command`: `argv`, or this process's arguments."""
    argv = [Path(sys.argv[0]).name, *sys.argv[1:]] if argv is None else argv
    return {"version": vae.__version__, "command": shlex.join(argv)}


def dated_provenance() -> dict[str, str]:
    """Returns `version`, `command` without folders and `date` (UTC), for files of metrics."""
    now = datetime.datetime.now(datetime.UTC)
    made = provenance()
    made["command"] = portable_text(made["command"])
    return {**made, "date": now.isoformat(timespec="seconds")}


def portable(saved: SavedModel) -> SavedModel:
    """Removes folders from all paths in a model's config and provenance; their names remain.

    A distributed file must not show who trained the model, or where.
    """
    config = ConfigDict(_portable(saved.config.copy_and_resolve_references().to_dict()))
    for group, key in (("data", "dir"), ("data", "masked_dir"), ("data", "cache_dir"),
                       ("prior", "autoencoder")):  # fmt: skip
        if key in config.get(group, {}):
            config[group][key] = epath.Path(config[group][key]).name
    config.init_from = epath.Path(config.init_from).name
    # bfloat16 is for training on accelerators: it has half the digits and is slow on CPUs.
    config.train.compute_dtype = "float32"
    return dataclasses.replace(saved, config=config, provenance=_portable(saved.provenance))


def portable_text(text: str) -> str:
    """Removes the folders of the paths in a text, for example a command.

    Paths begin with /, ~, ./, ../, a drive or a scheme; a path ends at a quote, comma or bracket,
    and at a blank unless the path is quoted.
    """
    try:
        words = shlex.split(text)
    except ValueError:  # No command: an unpaired quote.
        words = None
    if words and shlex.join(words) == text:
        return shlex.join(map(_without_folders, words))
    return " ".join(map(_without_folders, text.split(" ")))


def _without_folders(word: str) -> str:
    return _PATH.sub("", word.rstrip("/\\")) or word


# The folders of a path: a root after the start or a delimiter, then everything to the last slash.
_PATH = re.compile(
    r"""(?<![^\s'"=,;:()\[\]{}])(?:~[^/\\'",]*|\.{0,2}|[A-Za-z]:|[a-z][a-z0-9]*:/)[/\\]"""
    r"""(?:[^'",;:()\[\]{}=]*[/\\])?"""
)


def _portable(value: Any) -> Any:
    if isinstance(value, str):
        return portable_text(value)
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    return type(value)(map(_portable, value)) if isinstance(value, list | tuple) else value
