"""The order of training: which record stands where, a pure function of the seed."""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from vae.data.errors import UsageError


def checked_rows(rows: Sequence[int] | None, batch_size: int) -> Sequence[int]:
    """Which rows of a global batch are wanted: all for None.

    Raises:
      UsageError: There are no such rows.
    """
    rows = range(batch_size) if rows is None else [int(row) for row in rows]
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise UsageError(f"rows {list(rows)} are no rows of a batch of {batch_size}")
    return rows


class Order:
    """Which record stands at each position of an endless training: a permutation each epoch."""

    def __init__(self, length: int, seed: int):
        self._length = length
        self._epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: permutation(length, f"{seed}:{epoch}")
        )

    def at(self, position: int) -> int:
        """The record's number."""
        epoch, place = divmod(position, self._length)
        return int(self._epoch(epoch)[place])


def permutation(length: int, key: str) -> np.ndarray:
    """A random order of `length` numbers, int64 [length], a function of the key.

    From raw random bits, whose stream numpy keeps the same in every version. (Grain's own shuffle
    finds each place on its own, without the array, at 14 us a row: 6% of decoding a JPEG tile.)
    """
    bits = np.random.Philox(key=draw(key)).random_raw(length)
    return np.argsort(bits, kind="stable")


def draw(key: str) -> int:
    """64 random bits, a function of the key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
