"""Finished files or none, and regular files only."""

import contextlib
import csv
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from etils import epath

from vae.data.errors import DataError

AnyPath = TypeVar("AnyPath", Path, epath.Path)

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def replacing(path: str | os.PathLike) -> contextlib.AbstractContextManager[Path]:
    """Yields a name beside a local `path` to write to; renamed on success, else removed.

    A symbolic link at `path` is replaced; the file that it leads to stays as it is.
    """
    return _replacing(Path(path))


def write_beside(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file, on a disk or in a bucket, under another name, then renames it.

    Its folder is made if there is none. A symbolic link at `path` is replaced; the file that it
    leads to stays as it is.
    """
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _replacing(epath.Path(path)) as unfinished:
        unfinished.write_bytes(content)


def write_csv(path: str | os.PathLike, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Writes a table as CSV, whole as `write_beside` does."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_beside(path, text.getvalue().encode())


def unfinished_name(path: str | os.PathLike) -> str:
    """Makes up a name for `path` while it is written: hidden, of at most 30 characters.

    The name is as short for a long name as for a short one, and differs at every call: between
    threads, processes and machines.
    """
    digest = hashlib.blake2b(os.fsencode(os.path.basename(path)), digest_size=4).hexdigest()
    return f".{digest}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def require_writable(path: str | os.PathLike) -> None:
    """Fails now where `replacing(path)` would fail later: the folder is missing or read-only.

    Raises:
      OSError: Names `path`.
    """
    probe = Path(path).with_name(unfinished_name(path))
    try:
        probe.touch()
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    probe.unlink()


def require_regular(path: str | os.PathLike, expected: str, *, missing_ok: bool = False) -> None:
    """Refuses what is no regular file: to open a named pipe is to wait for ever.

    Args:
      path: A local path; a symbolic link counts as what it leads to.
      expected: Says in the error what the file should be.
      missing_ok: Passes over a path where nothing can be seen.

    Raises:
      DataError: There is nothing, a folder, a named pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if missing_ok:  # Who opens it says so.
            return
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{os.fspath(path)}: no such file; expected {expected}") from None
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{os.fspath(path)}: {reason}; expected {expected}") from error
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise DataError(f"{os.fspath(path)} is {kind}, no regular file; expected {expected}")


@contextlib.contextmanager
def _replacing(path: AnyPath) -> Iterator[AnyPath]:
    unfinished = path.with_name(unfinished_name(path))
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        # A full disk is noticed while writing, where no error knows of names.
        if isinstance(error, OSError) and error.filename in (None, os.fspath(unfinished)):
            error.filename = os.fspath(path)
        raise
