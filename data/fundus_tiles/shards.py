"""The examples of one shard, read from their files, and notes on rejected tiles."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator

from vae.data import limits, storage
from vae.data.cores import available_cores
from vae.data.errors import DataError
from vae.data.fundus_tiles.collect import TileList
from vae.data.fundus_tiles.encoded import Encoded, prepare

_LOOK_AHEAD = 32  # Tiles per worker that are read ahead of the writer.
_STOP_AFTER = 100  # A failing build continues until this many rejected tiles are listed.


class TooManyRejectedError(DataError):
    """More tiles are damaged than the build may leave out.

    Attributes:
      rejected: (tile, reason) of each rejected tile so far, sorted.
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
    """Settings and notes shared by the shards of a build.

    Attributes:
      workers: Threads that read and validate; None for one per core.
      progress: Called with the number of newly processed tiles.
      total: Number of tiles of the build.
      limit: Largest accepted share of rejected tiles.
      rejected: (tile, reason) of each rejected tile.
      smallest: Id, height and width in pixels of the tile with the shortest side.
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
        """Adds the notes of another process."""
        self.rejected += rejected
        if smallest:
            self.note(**smallest)


class Shard:
    """The examples of one shard.

    Attributes:
      tiles: The tiles of the shard.
      notes: Notes of the whole build.
    """

    def __init__(self, tiles: TileList, notes: Notes):
        self.tiles = tiles
        self.notes = notes

    def apart(self, workers: int) -> "Shard":
        """Returns a copy for another process, with notes of its own."""
        notes = Notes(workers, None, total=self.notes.total, limit=self.notes.limit)
        return Shard(self.tiles, notes)

    def __call__(self) -> Iterator[tuple[int, dict]]:
        """Yields (number, example); threads read and validate a bounded number of tiles ahead."""
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
        """Yields (number, example), or nothing if the tile is rejected."""
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
    """Bytes that are freed when read: tfds keeps a shard's examples until the shard is complete."""

    def __init__(self, data: bytes):
        self._data = data

    def read(self) -> bytes:
        data, self._data = self._data, b""
        return data
