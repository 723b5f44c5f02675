"""The examples of one shard, read from their files, and what is met on the way."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator

from vae.data import limits, storage
from vae.data.cores import available_cores
from vae.data.errors import DataError
from vae.data.fundus_tiles.collect import TileList
from vae.data.fundus_tiles.encoded import Encoded, prepare

_LOOK_AHEAD = 32  # Tiles per worker that are read before they are written.
_STOP_AFTER = 100  # Rejected tiles to list before a build that is lost is given up.


class TooManyRejectedError(DataError):
    """More tiles are damaged than the build may leave out.

    Attributes:
      rejected: (tile, reason) of those found so far.
    """

    def __init__(self, rejected: list[tuple[str, str]], total: int, limit: float):
        shown = "; ".join(f"{tile}: {reason}" for tile, reason in sorted(rejected)[:3])
        super().__init__(
            f"{len(rejected)} of {total} tiles are damaged or missing, more than --max_rejected "
            f"{limit:g} allows ({shown}{'; ...' if len(rejected) > 3 else ''}); restore or remove "
            "them, or raise the limit"
        )
        self.rejected = sorted(rejected)


@dataclasses.dataclass
class Notes:
    """What was met on the way, shared by the shards of a build.

    Attributes:
      workers: Threads that read and validate; None for one a core.
      progress: Called with the number of tiles just dealt with.
      total: Tiles of the build.
      limit: Share of them that may be rejected.
      rejected: (tile, reason).
      smallest: The tile with the shortest side: its id, height and width.
    """

    workers: int | None
    progress: Callable[[int], object] | None
    total: int = 0
    limit: float = 0.0
    rejected: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    smallest: dict[str, str | int] = dataclasses.field(default_factory=dict)

    def note(self, tile: str, height: int, width: int) -> None:
        found = self.smallest
        if not found or min(height, width) < min(found["height"], found["width"]):
            self.smallest = {"tile": tile, "height": height, "width": width}

    def merge(self, rejected: list[tuple[str, str]], smallest: dict[str, str | int]) -> None:
        """Adds what was noted elsewhere."""
        self.rejected += rejected
        if smallest:
            self.note(**smallest)


class Shard:
    """The examples of one shard.

    Attributes:
      tiles: What they are of.
      notes: Of the whole build.
    """

    def __init__(self, tiles: TileList, notes: Notes):
        self.tiles = tiles
        self.notes = notes

    def apart(self, workers: int) -> "Shard":
        """The same for another process: it notes for itself what it meets."""
        notes = Notes(workers, None, total=self.notes.total, limit=self.notes.limit)
        return Shard(self.tiles, notes)

    def __call__(self) -> Iterator[tuple[int, dict]]:
        """Yields the examples; threads read and validate the tiles, a bounded number ahead."""
        tiles, notes = self.tiles, self.notes
        workers = notes.workers or available_cores()
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            try:
                for number in range(len(tiles) + workers * _LOOK_AHEAD):
                    if number < len(tiles):
                        pending.append(pool.submit(self._read, number))
                    if number >= workers * _LOOK_AHEAD and pending:
                        done = number - workers * _LOOK_AHEAD
                        yield from self._example(done, pending.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, number: int) -> Encoded:
        path = self.tiles.root / self.tiles.paths[number]
        try:
            limits.require_bytes(int(self.tiles.sizes[number]), "the tile")
            encoded = storage.read_bytes(path)
        except OSError as error:
            raise DataError(error.strerror or str(error)) from error
        return prepare(encoded)

    def _example(self, number: int, read: concurrent.futures.Future) -> Iterator[tuple[int, dict]]:
        """Yields the example, or nothing where the tile had to be rejected."""
        notes, example = self.notes, self.tiles.example(number)
        if notes.progress:
            notes.progress(1)
        try:
            encoded = read.result()
        except DataError as error:
            notes.rejected.append((self.tiles.paths[number], str(error)))
            if len(notes.rejected) > max(notes.limit * notes.total, _STOP_AFTER):
                raise TooManyRejectedError(notes.rejected, notes.total, notes.limit) from None
            return
        notes.note(example["tile_id"], encoded.height, encoded.width)
        yield number, example | {"image": _ReadOnce(encoded.data)}


class _ReadOnce:
    """Bytes that are let go when read: tfds keeps a shard's examples until the shard is done."""

    def __init__(self, data: bytes):
        self._data = data

    def read(self) -> bytes:
        data, self._data = self._data, b""
        return data
