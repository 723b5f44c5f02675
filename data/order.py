"""The order of training examples, a pure function of the seed."""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from vae.data.errors import UsageError


def checked_rows(rows: Sequence[int] | None, batch_size: int) -> Sequence[int]:
    """Returns the rows of a global batch to load; all rows for None.

    Raises:
      UsageError: `rows` is empty, or a row is outside the batch.
    """
    rows = range(batch_size) if rows is None else [int(row) for row in rows]
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise UsageError(f"rows {list(rows)}: expected rows of a batch of {batch_size}")
    return rows


class Order:
    """The record at each position of an endless stream: one permutation per epoch."""

    def __init__(self, length: int, seed: int | str):
        self._length = length
        self._epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: permutation(length, f"{seed}:{epoch}")
        )

    def at(self, position: int) -> int:
        """Returns the number of the record at a position."""
        epoch, place = divmod(position, self._length)
        return int(self._epoch(epoch)[place])


class BalancedOrder(Order):
    """A stream in which the share of a label is that in the records to the power 1 - `balance`.

    With balance 1 every label is equally frequent. The records of a label follow one another in
    permutations of their own, so all are equally frequent over several epochs.
    """

    def __init__(self, labels: np.ndarray, seed: int, balance: float):
        """Prepares the stream for `labels` str [N], the label of each record."""
        super().__init__(len(labels), seed)
        names, counts = np.unique(labels, return_counts=True)
        shares = (counts / len(labels)) ** (1 - balance)
        # Rounding the cumulated shares keeps the length of an epoch at N.
        ends = np.rint(len(labels) * np.cumsum(shares) / shares.sum()).astype(int)
        quotas = np.diff(ends, prepend=0)
        members = [np.flatnonzero(labels == name) for name in names]
        streams = [
            (found, Order(len(found), f"{seed}:{name}"), quota)
            for found, name, quota in zip(members, names, quotas, strict=True)
        ]

        def epoch(number: int) -> np.ndarray:
            records = [
                found[order.at(number * quota + place)]
                for found, order, quota in streams
                for place in range(quota)
            ]
            return np.array(records)[permutation(len(records), f"{seed}:{number}")]

        self._epoch = functools.lru_cache(maxsize=2)(epoch)


def permutation(length: int, key: str) -> np.ndarray:
    """Returns a random permutation of `length` numbers, int64 [length], a function of the key.

    It sorts raw random bits, because numpy keeps their stream the same in every version. (Grain's
    shuffle needs no array, but takes 14 us per index: 6% of the time to decode a JPEG tile.)
    """
    bits = np.random.Philox(key=draw(key)).random_raw(length)
    return np.argsort(bits, kind="stable")


def draw(key: str) -> int:
    """Returns 64 random bits, a function of the key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
