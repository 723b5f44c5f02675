"""Records of items that failed while the run goes on: a reason and, for a bug, the traceback."""

import dataclasses
import errno
import os
import traceback
from collections.abc import Iterable
from pathlib import Path

from vae.data.errors import FundusError, one_line
from vae.data.files import write_csv

# The file in a command's output folder that lists its failures.
REJECTED = "rejected.csv"

_OPENCV_NO_MEMORY = -4  # cv2.error.code
# These errors end the run, because the next item would fail in the same way.
_ENDS_THE_RUN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@dataclasses.dataclass(frozen=True)
class Failure:
    """An item that could not be processed; the run goes on.

    Attributes:
      item_id: As in `vae.data.inputs.Item`.
      path: As in `vae.data.inputs.Item`.
      reason: One line that names the file.
      traceback: Traceback of an unexpected error, which is a bug of this program; else "".
    """

    item_id: str
    path: str
    reason: str
    traceback: str = ""


def failure_of(item_id: str, path: str | os.PathLike, error: Exception) -> Failure:
    """Describes the error of one item. Call it in the `except` block.

    Args:
      item_id: The item's id.
      path: Its file, named in the reason.
      error: The exception.

    Returns:
      The failure; with a traceback unless `error` is a `FundusError`, `OSError` or `MemoryError`.

    Raises:
      OSError: `error` itself, if the disk is full or cannot be written.
    """
    path = os.fspath(path)
    if isinstance(error, OSError) and error.errno in _ENDS_THE_RUN:
        raise error
    if isinstance(error, FundusError):
        return Failure(item_id, path, one_line(error))
    if isinstance(error, MemoryError) or getattr(error, "code", None) == _OPENCV_NO_MEMORY:
        return Failure(item_id, path, f"{path}: not enough memory; reduce the picture")
    if isinstance(error, OSError) and error.strerror:
        return Failure(item_id, path, one_line(f"{error.filename or path}: {error.strerror}"))
    reason = (
        f"{path}: unexpected {type(error).__name__}: {error}; this is a fault of fundus-vae,"
        f" please report it with its traceback in {REJECTED}"
    )
    return Failure(item_id, path, one_line(reason), traceback.format_exc())


def write_rejected(path: str | os.PathLike, failures: Iterable[Failure]) -> None:
    """Writes the failures as CSV with columns item, path, reason, traceback.

    Without failures, removes the list of an earlier run and writes none.
    """
    path, failures = Path(path), list(failures)
    if not failures:
        path.unlink(missing_ok=True)
        return
    header = ("item", "path", "reason", "traceback")
    write_csv(path, header, map(dataclasses.astuple, failures))
