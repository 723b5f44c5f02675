"""Finished files or none."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from etils import epath

AnyPath = TypeVar("AnyPath", Path, epath.Path)


def replacing(path: str | os.PathLike) -> contextlib.AbstractContextManager[Path]:
    """Yields a name beside a local `path` to write to; renamed on success, else removed."""
    return _replacing(Path(path))


def write_beside(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file, on a disk or in a bucket, under another name, then renames it.

    Its folder is made if there is none.
    """
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _replacing(epath.Path(path)) as unfinished:
        unfinished.write_bytes(content)


@contextlib.contextmanager
def _replacing(path: AnyPath) -> Iterator[AnyPath]:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        # A full disk is noticed while writing, where no error knows of names.
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)
        raise
