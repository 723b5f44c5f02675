"""What a user names on a command line, one image after another: files, folders and datasets.

Images are decoded a little ahead of their use by a few threads, in the order they were named, and
memory does not grow with their number.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vae.data.cores import available_cores
from vae.data.errors import DataError, UsageError
from vae.data.failures import Failure, failure_of
from vae.data.finding import find_images
from vae.data.fov import UNKNOWN, FieldOfView, NoSurroundError, fov_mask
from vae.data.fundus_tiles import NAME
from vae.data.images import IMAGE_SUFFIXES, read_image, require_utf8
from vae.data.manifest import MANIFEST, TileRow, iterate_manifest
from vae.data.names import without_suffix
from vae.data.region import AUTO, FovChoice, find_region
from vae.data.splits import SPLITS

if TYPE_CHECKING:
    from vae.data.dataset import Dataset
    from vae.data.examples import Example

# An image of no known origin is searched for a field of view from this short side on: smaller
# ones are tiles, in which a vessel's edge may pass for a part of a disc.
PHOTOGRAPH_SIDE = 384

# Decoded images waiting for their turn: at most so many, and about so many bytes of them.
_AHEAD = 64
_AHEAD_BYTES = 96 << 20


@dataclasses.dataclass(frozen=True)
class Item:
    """One image as the user gave it.

    Attributes:
      item_id: The tile's id where it is known ("<label>/<photograph>/<photograph>_y0_x0"), else
        the path below the folder that was named, without its suffix where no other file there is
        called like it; unique, with "/" in it.
      path: The file, or the directory of the dataset.
      image: uint8 [H, W, 3], sRGB.
      fov: Of the photograph; `vae.data.fov.UNKNOWN` where none is known or found.
      origin: Row and column of the image in its photograph, (-1, -1) where unknown.
      photograph: "<label>/<stem>" of a tile's photograph; the item's own id for a photograph in
        which a field of view was found; "" where unknown.
      patient: "" where unknown.
      label: "" where unknown.
      split: "" where unknown.
      region: bool [H, W], the part of the image that the user chose instead of a disc; else None.
    """

    item_id: str
    path: str
    image: np.ndarray
    fov: FieldOfView = UNKNOWN
    origin: tuple[int, int] = (-1, -1)
    photograph: str = ""
    patient: str = ""
    label: str = ""
    split: str = ""
    region: np.ndarray | None = None

    @property
    def field(self) -> str:
        """How the field of view is known: "disc", "given" by the user, or the "lit region"."""
        if self.region is not None:
            return "given"
        return "disc" if self.fov.known else "lit region"

    def mask(self) -> np.ndarray:
        """The field of view, bool [H, W]: as given, the disc if known, else the lit region."""
        if self.region is not None:
            return self.region
        return fov_mask(self.fov, self.image, *self.origin)

    def inside(self, image: np.ndarray | None = None) -> np.ndarray:
        """An image with black outside the field of view; as it is if none is known.

        Dates and names are burned in outside. The lit region is no substitute: they are lit.

        Args:
          image: uint8 [H, W, 3] of the same place; None for the item's own.

        Returns:
          uint8 [H, W, 3].
        """
        image = self.image if image is None else image
        if self.field == "lit region":
            return image
        return np.where(self.mask()[..., None], image, np.uint8(0))


class Inputs:
    """Images in a stable order; made by `open_inputs`."""

    def __init__(self, parts: Sequence["_Files | _Records"], threads: int):
        self._parts = parts
        self._threads = threads

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def names(self) -> list[str]:
        """The ids of all items in order; no image is decoded, but every record is read."""
        return [name for part in self._parts for name in part.names()]

    def read(self, start: int = 0) -> Iterator[Item | Failure]:
        """Reads the images from number `start` on.

        Args:
          start: How many to pass over; they are not read.

        Yields:
          An item for each image, or a failure in its place.
        """
        jobs = itertools.islice(self._jobs(start), len(self))
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            waiting = collections.deque()
            try:
                ahead = self._threads + 1  # until the first shows how large they are
                while True:
                    for job in itertools.islice(jobs, max(0, ahead - len(waiting))):
                        waiting.append(pool.submit(job))
                    if not waiting:
                        return
                    item = waiting.popleft().result()
                    if isinstance(item, Item):
                        fit = _AHEAD_BYTES // max(item.image.nbytes, 1)
                        ahead = min(max(fit, self._threads), _AHEAD)
                    yield item
            finally:
                for future in waiting:
                    future.cancel()

    def _jobs(self, start: int) -> Iterator[Callable[[], Item | Failure]]:
        for part in self._parts:
            for number in range(min(start, len(part)), len(part)):
                yield lambda part=part, number=number: part.read(number)
            start = max(0, start - len(part))


def open_inputs(
    paths: Sequence[str | os.PathLike],
    *,
    split: str | None = None,
    threads: int | None = None,
    choice: FovChoice = AUTO,
) -> Inputs:
    """Opens images for reading, tiles and whole photographs alike.

    Args:
      paths: Each an image file; a folder, searched with its subfolders (where it has a
        `manifest.csv`, the tiles that it lists); or a dataset that `fundus-vae build` wrote.
      split: Only this split of datasets and of folders with a manifest; None takes all.
      threads: That decode; None for one a core.
      choice: How the field of view of photographs is found; tiles carry theirs.

    Returns:
      The images, none of them read yet.

    Raises:
      UsageError: No paths, a model instead of images, or `split` where there are none.
      DataError: A path is missing, a folder has no images, or two images have one id.
    """
    paths = [os.fspath(path) for path in paths]
    if not paths:
        raise UsageError("no input; name image files, folders, or a dataset")
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}: expected at least 1")
    if split is not None and split not in SPLITS:
        raise UsageError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    parts: list[_Files | _Records] = []
    for path in paths:
        parts.extend(_open(path, split, choice))
    # A dataset's tiles differ from each other by its build: alone it need not be read twice.
    if any(isinstance(part, _Files) for part in parts) or len(paths) > 1:
        _refuse_shared_ids(parts)
    return Inputs(parts, threads or available_cores())


def _open(path: str, split: str | None, choice: FovChoice) -> list["_Files | _Records"]:
    if "://" in path:
        if path.lower().endswith(IMAGE_SUFFIXES):
            raise UsageError(f"{path}: images are read from local files; mount or copy them")
        return _open_dataset(path, split)
    require_utf8(path)
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder; expected images or a dataset")
    folder = Path(path)
    if not folder.is_dir():
        _refuse_split(path, split)
        return [_Files("", [path], choice)]
    if (folder / "checkpoints").is_dir() and (folder / "config.json").is_file():
        raise UsageError(f"{path} is a model's workdir; expected images here and it as --model")
    if (folder / "dataset_info.json").is_file() or (folder / NAME).is_dir():
        return _open_dataset(path, split)
    if (folder / MANIFEST).is_file():
        rows = [row for row in iterate_manifest(folder / MANIFEST) if split in (None, row.split)]
        if not rows:
            raise DataError(f"{folder / MANIFEST}: no tiles of split {split}")
        return [_Files(path, [row.tile for row in rows], choice, rows)]
    _refuse_split(path, split)
    found = find_images(folder)
    if left_out := found.left_out_line():
        print(f"{path}: {left_out}", file=sys.stderr, flush=True)
    return [_Files(path, sorted(os.path.relpath(file, path) for file in found.paths), choice)]


def _open_dataset(path: str, split: str | None) -> list["_Records"]:
    from vae.data.dataset import open_dataset  # Takes half a second that a jpg need not wait.

    dataset = open_dataset(path)
    return [_Records(dataset, name) for name in ([split] if split else dataset.shards)]


def _refuse_split(path: str, split: str | None) -> None:
    if split is not None:
        raise UsageError(
            f"split {split}: {path} has no splits; a dataset or a folder with a {MANIFEST} has"
        )


def _refuse_shared_ids(parts: Sequence["_Files | _Records"]) -> None:
    seen: dict[str, tuple[_Files | _Records, int]] = {}
    for part in parts:
        for number, name in enumerate(part.names()):
            if name in seen:
                other, place = seen[name]
                raise DataError(
                    f"two images are called {name!r}: {other.path(place)} and {part.path(number)};"
                    " name a folder that holds both, or rename one"
                )
            seen[name] = part, number


class _Files:
    """Image files below a folder, with their manifest's rows or without; "" is no folder."""

    def __init__(
        self, root: str, paths: list[str], choice: FovChoice, rows: list[TileRow] | None = None
    ):
        self._root = root
        self._paths = paths
        self._choice = choice
        self._rows = rows
        # "a.jpg" beside "a.png": each keeps its suffix in its id.
        self._stems = collections.Counter(map(without_suffix, paths))

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, number: int) -> str:
        return os.path.join(self._root, self._paths[number])

    def name(self, number: int) -> str:
        if self._rows is not None:
            return self._rows[number].tile_id
        path = self._paths[number] if self._root else os.path.basename(self._paths[number])
        stem = without_suffix(path)
        return (stem if self._stems.get(stem, 1) == 1 else path).replace(os.sep, "/")

    def names(self) -> Iterator[str]:
        return map(self.name, range(len(self)))

    def read(self, number: int) -> Item | Failure:
        path, name = self.path(number), self.name(number)
        try:
            return self._read(number, path, name)
        except Exception as error:
            return failure_of(name, path, error)

    def _read(self, number: int, path: str, name: str) -> Item:
        image = read_image(path)
        if self._rows is not None:
            row = self._rows[number]
            return Item(
                item_id=name, path=path, image=image, fov=row.fov, origin=(row.y, row.x),
                photograph=row.photograph, patient=row.patient, label=row.label, split=row.split,
            )  # fmt: skip
        if min(image.shape[:2]) < PHOTOGRAPH_SIDE and not self._choice.given:
            return Item(name, path, image)
        try:
            region = find_region(image, path, name, self._choice)
        except NoSurroundError:
            return Item(name, path, image)  # A large tile: the lit region will do.
        return Item(
            name, path, image,
            fov=region.fov.rounded(), origin=(0, 0), photograph=name, region=region.mask,
        )  # fmt: skip


class _Records:
    """The tiles of one split of a dataset."""

    def __init__(self, dataset: "Dataset", split: str):
        self._source = dataset.source(split)
        self._directory = str(dataset.path)
        self._split = split

    def __len__(self) -> int:
        return len(self._source)

    def path(self, number: int) -> str:
        return self._directory

    def names(self) -> Iterator[str]:
        from vae.data.examples import Example

        for number in range(len(self)):
            try:
                yield Example(self._source, number).text("tile_id")
            except DataError:
                yield self._unnamed(number)

    def read(self, number: int) -> Item | Failure:
        from vae.data.examples import Example

        name = self._unnamed(number)
        try:
            example = Example(self._source, number)
            name = example.text("tile_id")
            return self._item(example, name)
        except Exception as error:
            return failure_of(name, self._directory, error)

    def _item(self, example: "Example", name: str) -> Item:
        image = example.decode()
        fov, y, x = example.geometry()
        photograph, patient, label = map(example.text, ("photograph", "patient", "label"))
        return Item(
            item_id=name, path=self._directory, image=image, fov=fov, origin=(y, x),
            photograph=photograph, patient=patient, label=label, split=self._split,
        )  # fmt: skip

    def _unnamed(self, number: int) -> str:
        """What a record is called that is too damaged to say it."""
        shard, record = self._source.locate(number)
        return f"{shard.name}/record {record}"
