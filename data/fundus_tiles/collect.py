"""Search for the tiles below a folder, with or without a manifest, and their properties."""

import array
import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae.data import manifest, storage
from vae.data.errors import DataError, UsageError
from vae.data.finding import count_left_out, left_out_line, refuse_folder
from vae.data.fov import find_fov
from vae.data.images import IMAGE_SUFFIXES, read_image, require_utf8
from vae.data.inputs import PHOTOGRAPH_SIDE
from vae.data.names import composed, photograph_id, shorten
from vae.data.splits import SPLITS, assign_splits
from vae.data.storage import AnyPath, is_remote

_LOOKED_AT = 5  # images of a tree without a manifest that are searched for a field of view


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Properties shared by the tiles of one photograph: manifest columns, -1 if unknown."""

    photograph: str
    patient: str
    label: str
    split: str
    scale: float = -1.0
    photo_height: int = -1
    photo_width: int = -1
    fov_x: float = -1.0
    fov_y: float = -1.0
    fov_radius: float = -1.0
    fov_top: float = -1.0
    fov_bottom: float = -1.0
    fov_left: float = -1.0
    fov_right: float = -1.0


_ORIGIN_COLUMNS = tuple(field.name for field in dataclasses.fields(Origin))


class TileList:
    """Tiles to build a dataset from, about 150 bytes each: millions fit in memory.

    Attributes:
      root: The folder that the paths are relative to.
      paths: Relative path of each tile, with forward slashes.
      sizes: int64 [tiles], size in bytes; -1 if the file that a manifest names is missing.
      patients_known: True if the patients are known.
      photographs: Path of the table of photographs next to the manifest, or None.
      unlisted: Images below `root` that the manifest does not name.
    """

    def __init__(
        self, root: AnyPath, *, patients_known: bool = False, photographs: AnyPath | None = None
    ):
        self.root = root
        self.paths: list[str] = []
        self.sizes = np.empty(0, np.int64)
        self.patients_known = patients_known
        self.photographs = photographs
        self.unlisted: list[str] = []
        self._origins: dict[Origin, int] = {}
        self._origin_list: list[Origin] = []
        self._rows = tuple(array.array("i") for _ in ("origin", "y", "x"))

    def add(self, path: str, origin: Origin, y: int = -1, x: int = -1) -> None:
        """Appends a tile at row `y`, column `x` of its photograph."""
        number = self._origins.setdefault(origin, len(self._origins))
        if number == len(self._origin_list):
            self._origin_list.append(origin)
        self.paths.append(path)
        for column, value in zip(self._rows, (number, y, x), strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, number: int) -> dict[str, str | int | float]:
        """Returns all features of a tile except its image."""
        origin, y, x = (column[number] for column in self._rows)
        known = {name: getattr(self._origin_list[origin], name) for name in _ORIGIN_COLUMNS}
        del known["split"]
        return known | {"tile_id": tile_id(self.paths[number]), "y": y, "x": x}

    def select(self, numbers: np.ndarray) -> "TileList":
        """Returns a list of the given tiles, in the given order, with only their photographs."""
        part = TileList(
            self.root.absolute() if isinstance(self.root, Path) else self.root,
            patients_known=self.patients_known,
            photographs=self.photographs,
        )
        for number in numbers:
            origin, y, x = (column[number] for column in self._rows)
            part.add(self.paths[number], self._origin_list[origin], y, x)
        part.sizes = self.sizes[numbers]
        return part

    def order(self) -> dict[str, np.ndarray]:
        """Returns the numbers of each non-empty split's tiles, sorted by a hash of their ids.

        Every part of a shard is thus a random sample, and new tiles do not change the order.
        """
        keys = np.fromiter((_hash(tile_id(path)) for path in self.paths), np.uint64, len(self))
        order = np.argsort(keys, kind="stable")
        splits = np.array([SPLITS.index(origin.split) for origin in self._origin_list])
        of_tile = splits[np.frombuffer(self._rows[0], np.int32)][order]
        numbers = {name: order[of_tile == code] for code, name in enumerate(SPLITS)}
        return {name: of_split for name, of_split in numbers.items() if len(of_split)}

    def fingerprint(self) -> str:
        """Returns a digest of all paths, sizes and properties, independent of the tiles' order."""
        total = 0
        for number, path in enumerate(self.paths):
            origin, y, x = (column[number] for column in self._rows)
            row = f"{path}\n{self.sizes[number]}\n{self._origin_list[origin]}\n{y}\n{x}"
            total ^= int.from_bytes(hashlib.blake2b(row.encode(), digest_size=16).digest(), "big")
        return f"{total:032x}"


def tile_id(path: str) -> str:
    """Returns a tile's relative path without its suffix."""
    return path.rpartition(".")[0]


def collect(
    root: str | os.PathLike,
    *,
    patients: str | os.PathLike | None = None,
    patient_regex: str | None = None,
    patients_unknown: bool = False,
    val: float = 0.1,
    test: float = 0.1,
    stratify: str | None = None,
    report: Callable[[str], None] = print,
) -> TileList:
    """Lists the tiles below a folder.

    A `manifest.csv` gives all properties. Without one, the path of a tile's folder below `root` is
    its photograph, the parent of that folder is its label, and the options decide the splits.

    Args:
      root: Folder of tiles, local or in a bucket.
      patients: CSV file with photograph, patient and optionally label, split.
      patient_regex: Regular expression that is searched in the paths of the tile folders below
        `root`; its first group, else the whole match, is the patient.
      patients_unknown: Accepts each photograph as its own patient.
      val: Share of the patients for validation.
      test: Share of the patients for the test.
      stratify: "label" applies these shares to the patients of each label.
      report: Receives one-line warnings.

    Raises:
      UsageError: Patients are unknown, or two options define them.
      DataError: There are no tiles, or photographs instead of tiles; the manifest is invalid; two
        tiles have one name; or a split is empty.
    """
    root = storage.as_path(root)
    there = storage.names(root)
    if not there and not (isinstance(root, Path) and root.is_dir()):
        raise DataError(f"{root}: no such directory; expected a folder of tiles")
    if manifest.MANIFEST in there:
        if patients or patient_regex or stratify:
            raise UsageError(
                f"{root / manifest.MANIFEST} says already whose the tiles are; give --patients, "
                "--patient_regex or --stratify to make-tiles, or build a tree without a manifest"
            )
        table = root / manifest.PHOTOGRAPHS if manifest.PHOTOGRAPHS in there else None
        return _from_manifest(root, table, report)
    return _from_tree(
        root,
        report,
        patients=patients,
        patient_regex=patient_regex,
        photograph_is_patient=patients_unknown,
        val=val,
        test=test,
        stratify=stratify,
    )


def _from_manifest(root: AnyPath, table: AnyPath | None, report: Callable[[str], None]) -> TileList:
    tiles = TileList(root, photographs=table)
    patients: set[str] = set()
    photographs: set[str] = set()
    for row in manifest.read_manifest(root / manifest.MANIFEST):
        origin = Origin(**{name: getattr(row, name) for name in _ORIGIN_COLUMNS})
        tiles.add(row.tile, origin, row.y, row.x)
        patients.add(row.patient)
        photographs.add(row.photograph)
    # Without patients, make-tiles names each patient after its photograph, or after another
    # photograph with the same content.
    tiles.patients_known = not patients <= photographs

    sizes = dict.fromkeys(tiles.paths, -1)
    for path, size in _files(root, collections.Counter()):
        if path in sizes:
            sizes[path] = size
        elif not path.startswith(f"{manifest.OVERLAYS}/"):
            tiles.unlisted.append(path)
    tiles.sizes = np.fromiter(sizes.values(), np.int64, len(tiles))
    if tiles.unlisted:
        report(
            f"{root / manifest.MANIFEST} does not name {len(tiles.unlisted)} images, which are "
            f"left out: {shorten(tiles.unlisted)}"
        )
    return tiles


def _from_tree(root: AnyPath, report: Callable[[str], None], **options: Any) -> TileList:
    """Lists a tree without a manifest; `options` are those of `assign_splits`."""
    left_out: collections.Counter[str] = collections.Counter()
    files = dict(_files(root, left_out))
    others = left_out_line(left_out)
    if not files:
        raise DataError(
            f"{root}: no tiles; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
            + (f"; {others}" if others else "")
        )
    if others:
        report(f"{root}: {others}")
    _refuse_photographs(root, list(files))
    above = root.resolve() if isinstance(root, Path) else root
    folders: dict[str, str] = {}
    for folder in sorted(set(map(_folder, files))):
        id = photograph_id(folder, above)
        if (other := folders.setdefault(id, folder)) != folder:
            raise DataError(
                f"{root}: tiles in the folders {other!r} and {folder!r} would be of one photograph"
                f" {id!r}; rename one of the folders"
            )
    assigned = assign_splits(
        list(folders),
        # The root has no path below itself, so its id is searched, which is its name.
        searched=[folder or id for id, folder in folders.items()],
        report=report,
        **options,
    )
    origins = {
        folders[id]: Origin(found.photograph, found.patient, found.label, found.split)
        for id, found in assigned.items()
    }
    known = bool(options["patients"] or options["patient_regex"])
    tiles = TileList(root, patients_known=known)
    seen: dict[str, str] = {}
    for path in files:
        if (other := seen.setdefault(composed(tile_id(path)), path)) != path:
            raise DataError(f"{root}: {other} and {path} would be one tile; rename one")
        tiles.add(path, origins[_folder(path)])
    tiles.sizes = np.fromiter(files.values(), np.int64, len(files))
    return tiles


def _refuse_photographs(root: AnyPath, files: Sequence[str]) -> None:
    """Refuses a tree whose images are whole photographs.

    Raises:
      DataError: A few images, spread over the tree, all show a whole field of view.
    """
    if not isinstance(root, Path):
        return  # Reading whole images from a bucket would take long.
    for path in files[:: -(-len(files) // _LOOKED_AT)]:
        try:
            image = read_image(root / path)
            height, width = image.shape[:2]
            fov = find_fov(image)
        except DataError:
            return  # A tile has no field of view; damaged files are listed later.
        # A tile at the rim shows a part of a disc that is larger than the tile.
        whole = 0 <= fov.x < width and 0 <= fov.y < height and fov.radius < max(height, width)
        if min(height, width) < PHOTOGRAPH_SIDE or not whole:
            return
    raise DataError(
        f"{root}: these are photographs, for example {files[0]}, not tiles; cut them first: "
        f"fundus-vae make-tiles --photographs {root} --out DIR"
    )


def _files(root: AnyPath, left_out: collections.Counter[str]) -> Iterator[tuple[str, int]]:
    """Lists every image below `root` except hidden ones, sorted.

    `find_images` is not used: its list of `Path`s for millions of tiles would need too much memory.

    Args:
      root: Folder of tiles.
      left_out: Counts the other files by their suffix; see `vae.data.finding.Found`.

    Yields:
      Relative path, and size in bytes (-1 for a broken link).

    Raises:
      DataError: A folder cannot be read, or the name of an image is not UTF-8.
    """
    found = _remote_files(root) if is_remote(root) else _local_files(root, "", set())
    for path, size in found:
        if path.lower().endswith(IMAGE_SUFFIXES):
            require_utf8(path)
            yield path, size
        else:
            count_left_out(path, left_out)


def _remote_files(root: AnyPath) -> Iterator[tuple[str, int]]:
    for path, found in storage.entries(root).items():
        yield path, found.size


def _local_files(root: Path, folder: str, visited: set[str]) -> Iterator[tuple[str, int]]:
    real = os.path.realpath(root / folder)
    if real in visited:  # A link to a folder that is already listed.
        return
    visited.add(real)
    try:
        with os.scandir(root / folder) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        refuse_folder(error)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _local_files(root, f"{folder}{entry.name}/", visited)
            continue
        try:
            size = entry.stat().st_size
        except OSError:
            size = -1
        yield f"{folder}{entry.name}", size


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
