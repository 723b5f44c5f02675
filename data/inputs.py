"""Images named on a command line (files, folders, datasets) as one ordered sequence.

A few threads decode images ahead of their use, in the order in which they were named. Memory does
not grow with the number of images.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
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
from vae.data.manifest import MANIFEST, TileRow, read_manifest
from vae.data.names import without_suffix
from vae.data.region import AUTO, FovChoice, find_region
from vae.data.splits import SPLITS

if TYPE_CHECKING:
    from vae.data.dataset import Dataset
    from vae.data.examples import Example

# Shorter side, in pixels, from which an image of unknown origin is searched for a field of view.
# Smaller ones count as tiles, in which a vessel's edge may look like an arc of the FOV circle.
PHOTOGRAPH_SIDE = 384

# Limits on the images decoded ahead: their number, and approximately their bytes.
_AHEAD = 64
_AHEAD_BYTES = 96 << 20


@dataclasses.dataclass(frozen=True)
class Item:
    """One image from the command line.

    Attributes:
      item_id: The tile's id ("<label>/<photograph>/<photograph>_y0_x0") if known, else the path
        relative to the named folder, with "/" as separator, and without its suffix unless another
        file there differs only in the suffix; unique.
      path: The file, or the directory of the dataset.
      image: uint8 [H, W, 3], sRGB.
      fov: The photograph's field of view; `vae.data.fov.UNKNOWN` if none is known or found.
      origin: Row and column of the image in its photograph; (-1, -1) if unknown.
      photograph: "<label>/<stem>" of a tile's photograph; the item's own id for a photograph in
        which a field of view was found; "" if unknown.
      patient: "" if unknown.
      label: "" if unknown.
      split: "" if unknown.
      region: bool [H, W], a mask that the user chose instead of the detected FOV; else None.
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
        """Source of the field of view: "disc" (a circle), "given" (by the user) or "lit region"."""
        if self.region is not None:
            return "given"
        return "disc" if self.fov.known else "lit region"

    def mask(self) -> np.ndarray:
        """Returns the FOV mask, bool [H, W]: the given region, the disc, or else the lit region."""
        if self.region is not None:
            return self.region
        return fov_mask(self.fov, self.image, *self.origin)

    def inside(self, image: np.ndarray | None = None) -> np.ndarray:
        """Returns an image blackened outside the field of view; unchanged if that is unknown.

        Dates and names are burned in outside. They are lit, so the lit region cannot remove them.

        Args:
          image: uint8 [H, W, 3] of the same region; None for the item's own image.

        Returns:
          uint8 [H, W, 3].
        """
        image = self.image if image is None else image
        if self.field == "lit region":
            return image
        return np.where(self.mask()[..., None], image, np.uint8(0))


class Inputs:
    """Images in a fixed order; created by `open_inputs`."""

    def __init__(self, parts: Sequence["_Files | _Records"], threads: int):
        self._parts = parts
        self._threads = threads

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def names(self) -> list[str]:
        """Returns the ids of all items in order; reads every record but decodes no image."""
        return [name for part in self._parts for name in part.names()]

    def read(
        self, start: int = 0, without: Collection[str] = frozenset()
    ) -> Iterator[Item | Failure]:
        """Yields the images from index `start` on.

        Args:
          start: Number of images to skip without reading them.
          without: Ids of images to skip without reading them.

        Yields:
          For each image an `Item`, or a `Failure` if it cannot be read.
        """
        jobs = self._jobs(start, without)
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            waiting = collections.deque()
            try:
                ahead = self._threads + 1  # until the first image shows the size
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

    def _jobs(self, start: int, without: Collection[str]) -> Iterator[Callable[[], Item | Failure]]:
        for part in self._parts:
            names = list(part.names()) if without else [""] * len(part)
            for number in range(min(start, len(part)), len(part)):
                if names[number] not in without:
                    yield lambda part=part, number=number: part.read(number)
            start = max(0, start - len(part))


def open_inputs(
    paths: Sequence[str | os.PathLike],
    *,
    split: str | None = None,
    threads: int | None = None,
    choice: FovChoice = AUTO,
) -> Inputs:
    """Opens tiles and whole photographs for reading.

    Args:
      paths: Each is an image file; a folder, of which the tiles in its `manifest.csv` are taken or,
        without one, all images below it; or a dataset that `fundus-vae build` wrote.
      split: Takes only this split of datasets and of folders with a manifest; None takes all.
      threads: Number of decoding threads; None for one per core.
      choice: Method to find the field of view of photographs; tiles store theirs.

    Returns:
      The images, none of them read yet.

    Raises:
      UsageError: There are no paths, a path is a model, or a path has no splits but `split` is set.
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
    # The build ensures unique ids within a dataset, so a single dataset need not be read for them.
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
        raise UsageError(f"{path} is a model's workdir; expected images; pass the model as --model")
    if (folder / "dataset_info.json").is_file() or (folder / NAME).is_dir():
        return _open_dataset(path, split)
    if (folder / MANIFEST).is_file():
        rows = [row for row in read_manifest(folder / MANIFEST) if split in (None, row.split)]
        if not rows:
            raise DataError(f"{folder / MANIFEST}: no tiles of split {split}")
        return [_Files(path, [row.tile for row in rows], choice, rows)]
    _refuse_split(path, split)
    found = find_images(folder)
    if left_out := found.left_out_line():
        print(f"{path}: {left_out}", file=sys.stderr, flush=True)
    return [_Files(path, sorted(os.path.relpath(file, path) for file in found.paths), choice)]


def _open_dataset(path: str, split: str | None) -> list["_Records"]:
    from vae.data.dataset import open_dataset  # takes half a second; not needed for image files

    dataset = open_dataset(path)
    return [_Records(dataset, name) for name in ([split] if split else dataset.shards)]


def _refuse_split(path: str, split: str | None) -> None:
    if split is not None:
        raise UsageError(
            f"split {split}: {path} has no splits; expected a dataset or a folder with a {MANIFEST}"
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
    """Image files below the folder `root`, or single files if it is ""; `rows` of a manifest."""

    def __init__(
        self, root: str, paths: list[str], choice: FovChoice, rows: list[TileRow] | None = None
    ):
        self._root = root
        self._paths = paths
        self._choice = choice
        self._rows = rows
        # If there are both a.jpg and a.png, each keeps its suffix in its id.
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
            return Item(name, path, image)  # a large tile: use the lit region
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
        """Returns the name of a record whose tile_id cannot be read."""
        shard, record = self._source.locate(number)
        return f"{shard.name}/record {record}"
