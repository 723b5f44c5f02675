"""Locks between processes: lock files that name the process that holds them.

The kernel's `flock` frees the lock when the holder ends for any reason. Child processes do not hold
the lock, because Python's descriptors are not inherited over `exec`.

Locks work on local disks. On a shared disk, it depends on the server whether another machine sees
the lock. Folders in a bucket (gs://) are not locked.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae.data.errors import DataError, UsageError
from vae.data.schema import TEXT, parse_json

_SIZE = 512  # size of a lock file in bytes

# Errors of a file system without locks.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str, command: str, *, keep: bool) -> Iterator[bool]:
    """Holds a lock for this process.

    The file `path` describes the current or last holder as JSON: command, host, pid, since.

    Args:
      path: The lock file, in an existing folder.
      what: Name of the locked object in errors, such as "folder out".
      command: The holder's command, written to the file.
      keep: Keeps the file when the lock is released.

    Yields:
      True if the lock file is new.

    Raises:
      UsageError: Another process holds the lock.
      DataError: The file cannot be written, or is not a lock file of this program.
    """
    path = Path(path)
    descriptor, made = _open_locked(path, what)
    try:
        try:
            _describe(descriptor, command)
        except OSError as error:
            if made:
                path.unlink()
            raise DataError(f"{path.parent}: cannot be written: {error.strerror}") from error
        yield made
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def read_holder(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the description of the holder; {} if there is none or `path` is not a lock file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return {}
    with open(descriptor, "rb") as file:
        try:
            return parse_json(file.read(1 << 16), path, {"command": TEXT}, remedy="remove it")
        except (OSError, DataError):
            return {}


def _open_locked(path: Path, what: str) -> tuple[int, bool]:
    """Returns a descriptor that holds the lock, and True if the file is new."""
    while True:
        made = not os.path.lexists(path)
        try:
            # O_NOFOLLOW refuses links; O_NONBLOCK keeps a named pipe from blocking.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DataError(f"{path} is a symbolic link; remove it") from None
            raise DataError(f"{path.parent}: cannot be written: {error.strerror}") from error
        try:
            if not made and os.fstat(descriptor).st_size and not read_holder(path):
                raise DataError(f"{path} was not made by fundus-vae; remove it")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(_in_use(path, what)) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise DataError(f"{path}: cannot be locked: {error.strerror}") from error
            print(
                f"{path.parent}: no locks on this disk; ensure that no other command writes there",
                file=sys.stderr,
            )
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(descriptor, path):
            return descriptor, made
        os.close(descriptor)  # the last holder has removed the file


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _describe(descriptor: int, command: str) -> None:
    holder = {
        "command": command,
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    # Written in place, because the lock belongs to this inode. The size is fixed, so a full disk or
    # a kill leaves the earlier content and never an empty file.
    content = json.dumps(holder).encode().ljust(_SIZE - 1) + b"\n"
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))


def _in_use(path: Path, what: str) -> str:
    holder = read_holder(path)
    who = "another process"
    if holder:
        who = (
            f"process {holder.get('pid')} on host {holder.get('host')} ({holder['command']}) since "
            f"{holder.get('since')}"
        )
    return f"{what} is in use by {who}; wait for it, or choose another"
