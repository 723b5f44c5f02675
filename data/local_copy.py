"""A local copy of a dataset, made once and shared by the processes of a machine."""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tqdm

from vae.data import storage
from vae.data.errors import DataError, UsageError
from vae.data.files import replacing
from vae.data.fundus_tiles import NAME

_COPIES = 8  # files copied at a time
_LOCK = ".lock"


def local_copy(
    source: storage.AnyPath,
    cache_dir: str | os.PathLike,
    *,
    report: Callable[[str], None] = print,
) -> Path:
    """Copies the directory of a dataset's shards to a local disk, unless a copy exists.

    One process copies and the others wait. Each file is renamed to its name when complete, so an
    interrupted copy continues with the missing files. A rebuilt dataset gets a new copy; the old
    copy stays until the user removes it.

    Args:
      source: The directory of the shards, in a bucket or on a shared disk.
      cache_dir: Directory for copies, on a disk of this machine.
      report: Called with a line of text when a copy is made or waited for.

    Returns:
      The directory of the copy, `CACHE_DIR/fundus_tiles-<digest>`.

    Raises:
      UsageError: `cache_dir` is in a bucket.
      DataError: The disk has too little free space, or a file cannot be read or written.
    """
    if storage.is_remote(cache_dir):
        raise UsageError(f"cache_dir {cache_dir}: expected a local directory to copy to")
    files = storage.entries(source)
    digest = hashlib.sha256(f"{source}\n{files}".encode()).hexdigest()[:16]
    target = Path(cache_dir) / f"{NAME}-{digest}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _locked(target, report):
            _copy(source, target, files, report)
    except OSError as error:
        raise DataError(f"{target}: {error.strerror or error}") from error
    return target


def _copy(
    source: storage.AnyPath,
    target: Path,
    files: dict[str, storage.Entry],
    report: Callable[[str], None],
) -> None:
    wanted = {name: found for name, found in files.items() if not _there(target / name, found)}
    if not wanted:
        return
    for unfinished in target.rglob("*.tmp"):  # of killed processes: the lock excludes others
        unfinished.unlink()
    need = sum(found.size for found in wanted.values())
    if (free := shutil.disk_usage(target).free) < need:
        raise DataError(
            f"{target}: the copy of {source} needs {_size(need)} and {_size(free)} are free; free "
            "some space, choose another cache_dir, or read without one"
        )
    report(f"copying {source} to {target}: {len(wanted)} files, {_size(need)}")
    with (
        tqdm.tqdm(
            total=need, unit="B", unit_scale=True, mininterval=1.0, disable=None, file=sys.stderr
        ) as bar,
        concurrent.futures.ThreadPoolExecutor(_COPIES) as pool,
    ):
        jobs = {
            pool.submit(_copy_file, source / name, target / name, found): found
            for name, found in wanted.items()
        }
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                bar.update(jobs[job].size)
        finally:
            pool.shutdown(cancel_futures=True)


def _copy_file(source: storage.AnyPath, target: Path, found: storage.Entry) -> None:
    target.parent.mkdir(exist_ok=True)
    with replacing(target) as unfinished:
        storage.download(source, unfinished)
        if (size := unfinished.stat().st_size) != found.size:
            raise DataError(
                f"{source}: {size} of {found.size} bytes arrived; run the same command again to "
                "copy the missing files"
            )


def _there(path: Path, found: storage.Entry) -> bool:
    try:
        return path.stat().st_size == found.size
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Locks a folder for this process; the kernel frees the lock when the process ends."""
    with open(folder / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process to copy the dataset to {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
