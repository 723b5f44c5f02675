"""Finished files or none, on local disks and in buckets."""

import os

from etils import epath


def write_beside(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file under another name in the same folder, then renames it into place.

    The folder is made if there is none.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
