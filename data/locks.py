"""Locks between processes: files that one process holds, and that say which.

The lock is the kernel's (`flock`), so that of a process that dies, by whatever cause, is free at
once. Child processes do not hold it: Python's descriptors are not inherited over `exec`.

Local disks only. On a shared disk it depends on the server whether another machine sees the lock;
folders in a bucket (gs://) are not locked at all.
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

_SIZE = 512  # Of a lock file, bytes.

# A disk that knows no locks answers with one of these.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str, command: str, *, keep: bool) -> Iterator[bool]:
    """Holds a lock for this process.

    The file `path` names the holder, or the last one, as JSON: command, host, pid, since.

    Args:
      path: Of the lock file, in a folder that is there.
      what: Names in errors what is locked: "folder out".
      command: Of the holder.
      keep: True leaves the file there when the lock is released.

    Yields:
      True if the file was made for this lock.

    Raises:
      UsageError: Another process holds the lock.
      DataError: The file cannot be written, or is none of ours.
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
    """Reads what a lock file says of its holder; {} where it says nothing, or is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return {}
    with open(descriptor, "rb") as file:
        try:
            holder = json.loads(file.read(1 << 16))
        except (OSError, ValueError):
            return {}
    return holder if isinstance(holder, dict) and isinstance(holder.get("command"), str) else {}


def _open_locked(path: Path, what: str) -> tuple[int, bool]:
    """Returns a descriptor that holds the lock, and whether the file is new."""
    while True:
        made = not os.path.lexists(path)
        try:
            # Never through a link, and no pipe waits for its other end.
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
                f"{path.parent}: this disk has no locks; see that no other command writes there",
                file=sys.stderr,
            )
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(descriptor, path):
            return descriptor, made
        os.close(descriptor)  # Its holder removed it while we waited for our turn.


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
    # In place: a renamed file would not be the one that is locked. Of one size, and never empty in
    # between: a full disk or a kill leaves what was there.
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
