"""Atomic writes of files, and checks that a path is a writable or a regular file."""

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

_FORMULA = ("=", "+", "-", "@", "\t", "\r")

AnyPath = TypeVar("AnyPath", Path, epath.Path)

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def replacing(path: str | os.PathLike) -> contextlib.AbstractContextManager[Path]:
    """Yields a temporary path next to a local `path`, renamed to it on success, else removed.

    A symbolic link at `path` is replaced; its target stays unchanged.
    """
    return _replacing(Path(path))


def write_beside(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file, on a disk or in a bucket, under a temporary name, then renames it.

    Creates missing folders. A symbolic link at `path` is replaced; its target stays unchanged.
    """
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _replacing(epath.Path(path)) as unfinished:
        unfinished.write_bytes(content)


def make_folder(path: str | os.PathLike, option: str) -> None:
    """Creates a folder, on a disk or in a bucket, and its parents; it may exist.

    Raises:
      DataError: It cannot be created; the error names `option`.
    """
    try:
        epath.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{option}={path} cannot be made: {error.strerror or error}; give a folder that "
            "exists or can be created"
        ) from error


def write_csv(path: str | os.PathLike, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Writes a table as CSV with `write_beside`, so no partial file can appear; see `safe_cell`."""
    text = io.StringIO(newline="")
    safe = (map(safe_cell, row) for row in rows)
    csv.writer(text, lineterminator="\n").writerows([header, *safe])
    write_beside(path, text.getvalue().encode())


def safe_cell(value: object) -> object:
    """Puts ' before a text that a spreadsheet would take for a formula; `read_cell` removes it."""
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def read_cell(text: str) -> str:
    """Returns the text that `safe_cell` changed."""
    return text[1:] if text[:1] == "'" and _is_formula(text) else text


def _is_formula(text: str) -> bool:
    if not text.lstrip("'").startswith(_FORMULA):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def unfinished_name(path: str | os.PathLike) -> str:
    """Returns a hidden temporary name for `path`, of at most 30 characters.

    The length does not depend on `path`. Every call returns another name, also in other threads,
    processes and machines.
    """
    digest = hashlib.blake2b(os.fsencode(os.path.basename(path)), digest_size=4).hexdigest()
    return f".{digest}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def require_writable(path: str | os.PathLike) -> None:
    """Checks early that `replacing(path)` can write: the folder exists and is writable.

    Raises:
      OSError: It cannot; the error names `path`.
    """
    probe = Path(path).with_name(unfinished_name(path))
    try:
        probe.touch()
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    probe.unlink()


def require_regular(path: str | os.PathLike, expected: str, *, missing_ok: bool = False) -> None:
    """Refuses a path that is not a regular file; opening a named pipe would block for ever.

    Args:
      path: A local path; symbolic links are followed.
      expected: Names the expected kind of file in the error.
      missing_ok: Accepts a path that is missing or cannot be inspected.

    Raises:
      DataError: The path is missing, a folder, a named pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if missing_ok:  # Opening it reports the error.
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
        # The error of a full disk, raised while writing, names no file.
        if isinstance(error, OSError) and error.filename in (None, os.fspath(unfinished)):
            error.filename = os.fspath(path)
        raise
