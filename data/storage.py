"""Access to files on a local disk or in a bucket such as gs://.

Paths in a bucket are `epath.Path`s. Their contents are read through fsspec, not through `epath`:
with tensorflow installed, `epath` would use tensorflow's reader, which has no concurrent range
reads, and would import tensorflow into every process that reads tiles.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import fsspec
from etils import epath
from fsspec.implementations.local import LocalFileSystem

from vae.data.errors import DataError, FundusError, UsageError
from vae.data.files import require_regular

AnyPath = Path | epath.Path
_SCHEMES = ("gs://", "s3://", "az://", "hf://")
_CHUNK = 8 << 20  # Bytes per request when a file is read from end to end.


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file as listed by its storage.

    Attributes:
      size: Size in bytes.
      tag: Changes when the file is replaced: a checksum if the storage has one, else a time.
    """

    size: int
    tag: str


def is_remote(path: str | os.PathLike) -> bool:
    """Returns True for a path in a bucket, such as "gs://bucket/folder"."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> AnyPath:
    """Returns a `pathlib.Path` for a local path, an `epath.Path` for one in a bucket.

    Raises:
      UsageError: The scheme of the path is not supported.
    """
    if not is_remote(path):
        return Path(path)
    if not os.fspath(path).startswith(_SCHEMES):
        raise UsageError(f"{path}: expected a local path, or one that begins {', '.join(_SCHEMES)}")
    return epath.Path(path)


def names(folder: AnyPath) -> set[str]:
    """Returns the names of the entries of a folder; empty if the folder does not exist."""
    if not is_remote(folder):
        try:
            return set(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return set()
    with _told(folder):
        fs, path = filesystem(folder)
        fs.invalidate_cache(path)  # A cached listing may be of an older dataset.
        try:
            return {os.path.basename(name.rstrip("/")) for name in fs.ls(path, detail=False)}
        except (FileNotFoundError, NotADirectoryError):
            return set()


def entries(folder: AnyPath) -> dict[str, Entry]:
    """Returns every file below a folder by its relative path, without hidden files."""
    with _told(folder):
        fs, path = filesystem(folder)
        fs.invalidate_cache(path)
        found = fs.find(path, detail=True)
    root = path.rstrip("/") + "/"
    files = {name.removeprefix(root): _entry(info) for name, info in found.items()}
    return {name: files[name] for name in sorted(files) if not _hidden(name)}


def entry(path: AnyPath) -> Entry:
    """Returns size and tag of one file.

    Raises:
      FileNotFoundError: The file does not exist.
    """
    if not is_remote(path):
        stat = os.stat(path)
        return Entry(stat.st_size, str(stat.st_mtime_ns))
    with _told(path):
        fs, name = filesystem(path)
        return _entry(fs.info(name))


def read_bytes(path: AnyPath) -> bytes:
    """Returns the content of a file.

    Raises:
      OSError: The file does not exist or cannot be read.
      DataError: It is not a regular file, or the storage client failed.
    """
    if not is_remote(path):
        require_regular(path, "a file to read", missing_ok=True)
        return Path(path).read_bytes()
    with _told(path):
        fs, name = filesystem(path)
        return fs.cat_file(name)


def download(path: AnyPath, target: Path) -> None:
    """Copies a file to the local disk."""
    with _told(path):
        fs, name = filesystem(path)
        fs.get_file(name, os.fspath(target))


@contextlib.contextmanager
def open_binary(path: AnyPath) -> Iterator[IO[bytes]]:
    """Opens a file for reading from beginning to end.

    Raises:
      DataError: It is not a regular file, or the storage client failed.
    """
    if not is_remote(path):
        require_regular(path, "a file to read", missing_ok=True)
        with open(path, "rb", buffering=1 << 20) as file:
            yield file
        return
    with _told(path):
        fs, name = filesystem(path)
        with fs.open(name, "rb", block_size=_CHUNK) as file:
            yield file


@contextlib.contextmanager
def open_text(path: AnyPath) -> Iterator[IO[str]]:
    """Opens a UTF-8 file; drops a byte-order mark and keeps line ends, as `csv` requires."""
    with open_binary(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        yield text


def read_ranges(paths: Sequence[AnyPath], starts: Sequence[int], ends: Sequence[int]) -> list:
    """Reads byte ranges of files in one bucket by concurrent requests, one per range.

    Args:
      paths: The file of each range.
      starts: First byte of each range.
      ends: End of each range in bytes, exclusive.

    Returns:
      The bytes of each range, or the exception that reading it raised.
    """
    if not paths:
        return []
    with _told(paths[0]):
        fs, _ = filesystem(paths[0])
        wanted = [os.fspath(path) for path in paths]
        return fs.cat_ranges(wanted, list(starts), list(ends), on_error="return")


def filesystem(path: AnyPath) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a path, and the path's name in it.

    Raises:
      UsageError: The package that reads such paths is missing.
    """
    if not is_remote(path):
        return LocalFileSystem(), os.path.abspath(path)
    # By default gcsfs queries the type of the bucket at every read without credentials. Only zonal
    # buckets need the type; their users set the variable to true.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        return fsspec.core.url_to_fs(os.fspath(path))
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{path}: {error}; `pip install 'fundus-vae[gcs]'` reads gs://, or copy the files to a "
            "disk"
        ) from error


@contextlib.contextmanager
def _told(path: AnyPath) -> Iterator[None]:
    """Turns any exception of a storage client into a one-line `DataError` that names the path."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, FundusError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error


def _entry(info: dict) -> Entry:
    tags = (info.get(key) for key in ("md5Hash", "etag", "ETag", "mtime", "created"))
    return Entry(int(info["size"]), str(next((tag for tag in tags if tag), "")))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
