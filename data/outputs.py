"""Outputs of commands: nothing is written over or into what is read, or what others made.

A command claims each of its outputs once, before it writes: the place is checked, marked as ours,
and locked until the command ends. A folder of ours holds the marker `.fundus-vae.json`, which is
the lock file, too. Outputs in a bucket (gs://) are taken as they are.
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

# Later commands read the folders of these: no other command writes into them. All others write
# results, which may share a folder.
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
    """Takes a folder for a command's files; where it is new it is made.

    A folder that is there must be empty, or made by us: by a command of the same kind (`SOURCES`
    each are one), or of nothing but such folders. Left empty, it goes again.

    Args:
      out: The folder.
      command: Who writes.
      reads: Files and folders that the command reads; what is empty or not there is passed over.
      option: Of the command line, for errors.
      known: Names that only this command writes; a folder with one of them is of this command.

    Raises:
      UsageError: The folder is one that is read, lies in one or holds one; it is a file; it was not
        made by us; a symbolic link in it leads elsewhere; or another process is writing to it.
      DataError: It cannot be written.
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
            # Before the lock is released, or it might be another's.
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
    """Takes the place of one file, or of a folder that appears whole, for a command.

    The lock is a hidden file beside it, which goes when the command ends.

    Args:
      out: The file or folder.
      command: Who writes.
      reads: As for `claim_folder`.
      option: Of the command line, for errors.
      folder: An empty folder may be there.
      replaces: Anything may be there: the command itself knows what it may replace or continue.
      parents: True makes the folder around it; else it must be there.

    Raises:
      UsageError: Something is there already; the place is one that is read or lies in one; another
        process is writing there; or there is no folder around it.
      DataError: The folder around it cannot be written.
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
    """Refuses to write where a command reads. Symbolic and hard links count as what they lead to.

    Args:
      out: A file or folder, there or not.
      reads: Files and folders; what is not there is passed over.
      option: Of the command line, for errors.

    Raises:
      UsageError: `out` is one of `reads`, lies in one, or holds one.
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
                f"{option} {out} lies in {path}, which is read: the next run would read what this "
                "one writes; give another place"
            )
        if itself and itself in _identities(path):
            raise UsageError(
                f"{path} is read and lies in {option} {out}, where it could be overwritten; give "
                "another folder"
            )


def _refuse_foreign(real: Path, out: AnyPath, command: str, option: str, known) -> None:
    names = _names(real)
    # A marker alone: nothing was written yet, or somebody else begins at this moment.
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
    """Folders in a folder of ours may be links to what is not ours.

    Only runs may keep parts elsewhere, checkpoints on a larger disk for instance.
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
    """Makes a folder and those above it; those that are empty at the end go again."""
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
    """Device and inode of what a path leads to; None where there is nothing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _identities(path: AnyPath) -> set[tuple[int, int]]:
    """Of what a path leads to and of every folder above it."""
    real = Path(os.path.realpath(path))
    return {found for step in (real, *real.parents) if (found := _identity(step))}
