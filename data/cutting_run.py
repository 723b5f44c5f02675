"""Cutting of many photographs into tiles: an estimate of the cost, and the parallel run."""

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import tqdm

from vae.data.cutting import Job, Record, cut_photograph, load_photograph, place_tiles
from vae.data.errors import DataError
from vae.data.failures import Failure, failure_of
from vae.data.images import encode_image

_SAMPLED = 4  # photographs that are cut for the estimate
_SAMPLED_TILES = 8  # tiles of each that are encoded for the estimate


def estimate(todo: Sequence[Job], workers: int, out: Path) -> str:
    """Estimates the cost of the jobs from a few tiles of a few photographs.

    Returns:
      One line with the number of tiles, their size and the time.

    Raises:
      DataError: The disk of `out` has too little free space.
    """
    tiles = size = seconds = 0.0
    readable = 0
    sampled = todo[:: max(1, len(todo) // _SAMPLED)][:_SAMPLED]
    for job in sampled:
        start = time.monotonic()
        try:
            photograph = load_photograph(job.path, job.photograph, job.cut)
        except Exception:  # cutting meets the same error again and reports it
            continue
        readable += 1
        image = photograph.image
        placed = place_tiles(photograph, job.photograph, job.cut)
        loaded = time.monotonic()
        some = placed[:: max(1, len(placed) // _SAMPLED_TILES)]
        encoded = [
            len(encode_image(image[y : y + job.cut.tile, x : x + job.cut.tile], job.suffix))
            for y, x, _ in some
        ]
        tiles += len(placed)
        share = len(placed) / max(1, len(some))
        size += sum(encoded) * share
        seconds += loaded - start + (time.monotonic() - loaded) * share
    if not readable:
        return f"no estimate: none of the {len(sampled)} sampled photographs can be cut"
    factor = len(todo) / readable
    free = shutil.disk_usage(out).free
    if size * factor > free:
        raise DataError(
            f"{out}: about {format_bytes(size * factor)} are needed and {format_bytes(free)} are"
            f" free; choose another disk, a larger stride, or --format jpg"
        )
    return (
        f"about {tiles * factor:,.0f} tiles, {format_bytes(size * factor)} (free:"
        f" {format_bytes(free)}), {format_time(seconds * factor / workers)} with {workers}"
        f" process{'es' if workers > 1 else ''}"
    )


def run(jobs: Sequence[Job], workers: int, progress: bool) -> list[Record | Failure]:
    """Cuts photographs in `workers` processes, or in this process if `workers` is 1.

    Returns:
      For each job, in order, its record, or the failure that rejects the photograph.

    Raises:
      DataError: The disk is full or cannot be written, or a worker process died.
      KeyboardInterrupt: The run was interrupted; the photographs in progress are finished first.
    """
    results: dict[int, Record | Failure] = {}
    bar = tqdm.tqdm(total=len(jobs), unit="photograph", disable=not progress)
    try:
        with bar, contextlib.closing(_results(jobs, workers)) as arriving:
            for i, result in arriving:
                results[i] = result
                bar.update()
    except KeyboardInterrupt:
        if progress:
            print(
                f"interrupted: {len(results):,} of {len(jobs):,} photographs are finished; the same"
                f" command continues"
            )
        raise
    except concurrent.futures.BrokenExecutor:
        raise DataError(
            f"a worker process died, perhaps for lack of memory, after {len(results):,}"
            f" photographs; the same command continues; --workers 1 needs the least memory"
        ) from None
    except OSError as error:
        raise DataError(
            f"{error.filename or jobs[0].out}: cannot be written: {error.strerror}; once this is"
            f" solved, the same command continues"
        ) from error
    return [results[i] for i in range(len(jobs))]


def _results(jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Record | Failure]]:
    if workers == 1:
        yield from ((i, _work(job)) for i, job in enumerate(jobs))
        return
    # Spawn: forking a process that runs threads (jax, a progress bar) can deadlock.
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        pending = {executor.submit(_work, job): i for i, job in enumerate(jobs)}
        for future in concurrent.futures.as_completed(pending):
            yield pending[future], future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    """Ends this process when its parent has ended, for instance because it was killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(job: Job) -> Record | Failure:
    try:
        return cut_photograph(job)
    except Exception as error:
        return failure_of(job.photograph, job.path, error)


def format_bytes(count: float) -> str:
    """Formats a size in bytes with three digits and a decimal unit, such as "397 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_time(seconds: float) -> str:
    """Formats a duration in seconds, minutes or hours, such as "12 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
