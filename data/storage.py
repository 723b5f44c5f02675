"""Files wherever they are: on a disk of this machine, or in a bucket such as gs://.

Paths in a bucket are `epath.Path`s. What is in them is read through fsspec, not through `epath`:
where tensorflow is installed that would take tensorflow's reader, which knows no concurrent reads
of parts, and would bring tensorflow into every process that reads tiles.
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
_CHUNK = 8 << 20  # Bytes of a request where a file is read from end to end.


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file as a listing tells of it.

    Attributes:
      size: Bytes.
      tag: Changes when the file is replaced: a checksum where the storage knows one, else a time.
    """

    size: int
    tag: str


def is_remote(path: str | os.PathLike) -> bool:
    """True for a path in a bucket, "gs://bucket/folder"."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> AnyPath:
    """A path to join and to print: a `pathlib.Path` on this machine, else an `epath.Path`.

    Raises:
      UsageError: Nothing here reads from such a place.
    """
    if not is_remote(path):
        return Path(path)
    if not os.fspath(path).startswith(_SCHEMES):
        raise UsageError(f"{path}: expected a local path, or one that begins {', '.join(_SCHEMES)}")
    return epath.Path(path)


def names(folder: AnyPath) -> set[str]:
    """The names of what is in a folder, by one listing; empty where there is no such folder."""
    if not is_remote(folder):
        try:
            return set(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return set()
    with _told(folder):
        fs, path = filesystem(folder)
        fs.invalidate_cache(path)  # A listing kept from before may be of the dataset before.
        try:
            return {os.path.basename(name.rstrip("/")) for name in fs.ls(path, detail=False)}
        except (FileNotFoundError, NotADirectoryError):
            return set()


def entries(folder: AnyPath) -> dict[str, Entry]:
    """Every file below a folder by its relative path, hidden ones left out."""
    with _told(folder):
        fs, path = filesystem(folder)
        fs.invalidate_cache(path)
        found = fs.find(path, detail=True)
    root = path.rstrip("/") + "/"
    files = {name.removeprefix(root): _entry(info) for name, info in found.items()}
    return {name: files[name] for name in sorted(files) if not _hidden(name)}


def entry(path: AnyPath) -> Entry:
    """Size and tag of one file.

    Raises:
      FileNotFoundError: There is none.
    """
    if not is_remote(path):
        stat = os.stat(path)
        return Entry(stat.st_size, str(stat.st_mtime_ns))
    with _told(path):
        fs, name = filesystem(path)
        return _entry(fs.info(name))


def read_bytes(path: AnyPath) -> bytes:
    """A whole file.

    Raises:
      OSError: It is not there or cannot be read.
      DataError: It is no regular file.
    """
    if not is_remote(path):
        require_regular(path, "a file to read", missing_ok=True)
        return Path(path).read_bytes()
    with _told(path):
        fs, name = filesystem(path)
        return fs.cat_file(name)


def download(path: AnyPath, target: Path) -> None:
    """Copies a file to this machine's disk."""
    with _told(path):
        fs, name = filesystem(path)
        fs.get_file(name, os.fspath(target))


@contextlib.contextmanager
def open_binary(path: AnyPath) -> Iterator[IO[bytes]]:
    """Opens a file to be read from its beginning to its end.

    Raises:
      DataError: It is no regular file.
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
    """Opens a UTF-8 file, with or without a byte-order mark; line ends stay as `csv` needs them."""
    with open_binary(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        yield text


def read_ranges(paths: Sequence[AnyPath], starts: Sequence[int], ends: Sequence[int]) -> list:
    """Parts of files in one bucket: a request each, all under way at once.

    Args:
      paths: The file of each part.
      starts: Its first byte.
      ends: The byte after its last.

    Returns:
      The bytes of each, or the exception that reading it raised.
    """
    if not paths:
        return []
    with _told(paths[0]):
        fs, _ = filesystem(paths[0])
        wanted = [os.fspath(path) for path in paths]
        return fs.cat_ranges(wanted, list(starts), list(ends), on_error="return")


def filesystem(path: AnyPath) -> tuple[fsspec.AbstractFileSystem, str]:
    """What reads a path, and the path's name there.

    Raises:
      UsageError: The package that reads such paths is missing.
    """
    if not is_remote(path):
        return LocalFileSystem(), os.path.abspath(path)
    # Else gcsfs asks at every read, where nobody is logged in, of which kind the bucket is. Only
    # zonal buckets are read in another way: who has one sets it to true.
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
    """What storage clients raise, which is anything, becomes one line that names the path."""
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
