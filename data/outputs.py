"""Outputs of commands, protected from overwriting inputs and files of other programs.

A command claims each output once, before it writes. The claim checks the path, marks it as made by
fundus-vae, and locks it until the command ends. The marker of a folder is `.fundus-vae.json`, which
is also its lock file. Outputs in a bucket (gs://) are neither checked nor locked.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vae.data.errors import DataError, UsageError
from vae.data.locks import locked, read_holder
from vae.data.storage import is_remote

MARKER = ".fundus-vae.json"

# Later commands read the folders of these commands, so no other command may write into them. All
# other commands write results, which may share a folder.
SOURCES = ("make-tiles", "build", "train", "convert_torch_checkpoint")

AnyPath = str | os.PathLike


@contextlib.contextmanager
def claim_folder(
    out: AnyPath,
    command: str,
    *,
    reads: Iterable[AnyPath | None] = (),
    option: str = "--out",
    known: Sequence[str] = (),
) -> Iterator[None]:
    """Claims a folder for a command's files, and creates it if necessary.

    An existing folder must be empty, made by a command of the same kind (each of `SOURCES` is a
    kind), or contain only folders made by fundus-vae. A folder that stays empty is removed.

    Args:
      out: The folder.
      command: Name of the command that writes.
      reads: Files and folders that the command reads; None and missing paths are ignored.
      option: Name of the command-line option, for errors.
      known: Names that only this command writes; a folder with one of them counts as its own.

    Raises:
      UsageError: The folder is an input, lies in one or contains one; it is a file; it was not made
        by fundus-vae; a symbolic link in it leads elsewhere; or another process writes to it.
      DataError: The folder cannot be written.
    """
    if is_remote(out):
        yield
        return
    reads = [path for path in reads if path]
    refuse_overlap(out, reads, option=option)
    real = Path(os.path.realpath(out))
    if real.exists() and not real.is_dir():
        raise UsageError(f"{option} {out} cannot be written: it is a file; expected a folder")
    if real.is_dir():
        _refuse_foreign(real, out, command, option, known)
        _refuse_links(real, reads, command, option)
    with _made_folder(real), contextlib.ExitStack() as stack:
        marker = real / MARKER
        made = stack.enter_context(locked(marker, f"folder {out}", command, keep=True))
        try:
            yield
        finally:
            # Before the lock is released: afterwards the marker may belong to another process.
            if made and _names(real) == {MARKER}:
                marker.unlink()


@contextlib.contextmanager
def claim_new(
    out: AnyPath,
    command: str,
    *,
    reads: Iterable[AnyPath | None] = (),
    option: str = "--out",
    folder: bool = False,
    replaces: bool = False,
    parents: bool = False,
) -> Iterator[None]:
    """Claims the path of one file, or of a folder that is renamed into place when complete.

    The lock is a hidden file in the parent folder. It is removed when the command ends.

    Args:
      out: The file or folder.
      command: Name of the command that writes.
      reads: See `claim_folder`.
      option: Name of the command-line option, for errors.
      folder: Accepts an empty folder at `out`.
      replaces: Accepts anything at `out`: the command checks what it may replace or continue.
      parents: Creates the parent folder; otherwise it must exist.

    Raises:
      UsageError: `out` exists already, is an input or lies in one; another process writes to it; or
        its parent folder does not exist.
      DataError: The parent folder cannot be written.
    """
    if is_remote(out):
        yield
        return
    refuse_overlap(out, [path for path in reads if path], option=option)
    there = os.path.lexists(out) and not (folder and os.path.isdir(out) and not os.listdir(out))
    if there and not replaces:
        raise UsageError(
            f"{option} {out} is there already; give a new {'folder' if folder else 'name'}, or "
            "remove it first"
        )
    around = Path(os.path.realpath(os.path.dirname(os.path.abspath(out))))
    if not around.is_dir() and not parents:
        raise UsageError(f"{option} {out}: there is no folder {Path(out).parent}; make it first")
    digest = hashlib.blake2b(os.fsencode(os.path.basename(os.path.abspath(out))), digest_size=8)
    lock = around / f".fundus-vae-{digest.hexdigest()}.lock"
    with _made_folder(around), locked(lock, os.fspath(out), command, keep=False):
        yield


def refuse_overlap(out: AnyPath, reads: Iterable[AnyPath], *, option: str = "--out") -> None:
    """Refuses an output that overlaps an input. Symbolic and hard links count as their targets.

    Args:
      out: A file or folder, which need not exist.
      reads: Input files and folders; missing ones are ignored.
      option: Name of the command-line option, for errors.

    Raises:
      UsageError: `out` is one of `reads`, lies in one, or contains one.
    """
    above = _identities(out)
    itself = _identity(out)
    for path in reads:
        if is_remote(path) or not (source := _identity(path)):
            continue
        if source == itself:
            raise UsageError(f"{option} {out} is {path}, which is read; give another place")
        if source in above and os.path.isdir(path):
            raise UsageError(
                f"{option} {out} lies in {path}, which is read: the next run would read the "
                "output of this one; give another place"
            )
        if itself and itself in _identities(path):
            raise UsageError(
                f"{path} is read and lies in {option} {out}, where it could be overwritten; give "
                "another folder"
            )


def _refuse_foreign(real: Path, out: AnyPath, command: str, option: str, known) -> None:
    names = _names(real)
    # A marker alone: nothing was written yet, or another process has just started.
    if names <= {MARKER} or any(name in names for name in known):
        return
    maker = read_holder(real / MARKER).get("command")
    if maker and _kind(maker) == _kind(command):
        return
    if maker:
        raise UsageError(
            f"{option} {out} was made by {maker}, and {command} would change it; give another "
            "folder"
        )
    if MARKER not in names and all(read_holder(real / name / MARKER) for name in names):
        return
    raise UsageError(
        f"{option} {out} exists and was not made by {command}; give a new or empty folder"
    )


def _kind(command: str) -> str:
    return command if command in SOURCES else "results"


def _refuse_links(real: Path, reads: list[AnyPath], command: str, option: str) -> None:
    """Refuses links to folders outside `real`, except for training runs.

    A run may keep parts elsewhere, for example checkpoints on a larger disk.
    """
    home = _identity(real)
    for folder, names, _ in os.walk(real):
        for path in (os.path.join(folder, name) for name in names):
            if not os.path.islink(path):
                continue
            refuse_overlap(path, reads, option=option)
            if command != "train" and home not in _identities(path):
                raise UsageError(
                    f"{option} {real}: {path} is a link to {os.path.realpath(path)}, which was not "
                    f"made by {command}; remove the link"
                )


@contextlib.contextmanager
def _made_folder(folder: Path) -> Iterator[None]:
    """Creates a folder and its parents; on exit, removes the created ones that are empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise DataError(f"{folder}: cannot be written: Not a directory") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        for path in new:
            try:
                path.rmdir()
            except OSError:
                break


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _identity(path: AnyPath) -> tuple[int, int] | None:
    """Returns device and inode of the target of a path; None if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _identities(path: AnyPath) -> set[tuple[int, int]]:
    """Returns device and inode of the target of a path and of every folder above it."""
    real = Path(os.path.realpath(path))
    return {found for step in (real, *real.parents) if (found := _identity(step))}
