"""Progress of long work on stderr: a bar on a terminal, elsewhere a line every 30 seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

SECONDS = 30.0  # between two lines
T = TypeVar("T")


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields a function that reports so many more units as done; says the remaining time.

    Args:
      what: The work, for example "evaluating".
      total: Number of units.
      unit: Name of a unit, in the singular.
    """
    if sys.stderr.isatty():
        with tqdm(desc=what, total=total, unit=unit, leave=False, dynamic_ncols=True) as bar:
            yield bar.update
        return
    start = said = time.monotonic()
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said < SECONDS or not 0 < done < total:
            return
        said, left = now, (now - start) / done * (total - done)
        print(f"{what}: {done:,} of {total:,} {unit}s, {left:,.0f} s left", file=sys.stderr)

    yield advance


def watched(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Yields the items and reports each as done when the next one is asked for; see `progress`."""
    with progress(what, total, unit) as advance:
        for item in items:
            yield item
            advance(1)
