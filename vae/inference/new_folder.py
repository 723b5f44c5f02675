"""A folder of exported files, written whole or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vae.data.errors import UsageError
from vae.data.files import unfinished_name


def require_new(out: str | os.PathLike) -> None:
    """Checks that a folder is new or empty.

    Raises:
      UsageError: It is a file or not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; give a new folder")


def write_folder(out: str | os.PathLike, files: Mapping[str, bytes]) -> dict[str, int]:
    """Writes files into a folder that is new or empty, under a temporary name at first.

    Returns:
      Size of each file in bytes, by name.

    Raises:
      UsageError: The folder is a file or not empty.
    """
    require_new(out)
    out = Path(out)
    unfinished = out.with_name(unfinished_name(out))
    unfinished.mkdir(parents=True)
    try:
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        if out.exists():
            out.rmdir()  # empty, as checked at the start
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return {name: len(content) for name, content in files.items()}
