"""The two tables in a folder of tiles: `manifest.csv` and `photographs.csv`.

Lengths are in pixels of the scaled photograph. The columns of an unknown field of view are -1.
"""

import csv
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, TypeVar

from vae.data import schema, storage
from vae.data.errors import DataError
from vae.data.files import read_cell, replacing, safe_cell
from vae.data.fov import FIELDS, FieldOfView
from vae.data.names import composed
from vae.data.splits import SPLITS

MANIFEST = "manifest.csv"
PHOTOGRAPHS = "photographs.csv"
OVERLAYS = "overlays"  # Folder next to the tiles, with pictures for visual checks.

_PIXELS = schema.whole(1, 1 << 20)
_KINDS = {
    **dict.fromkeys(("height", "width", "photo_height", "photo_width"), _PIXELS),
    **dict.fromkeys(("y", "x"), schema.whole(-1, 1 << 20)),
    **{f"fov_{name}": schema.number(-1e7, 1e7) for name in FIELDS},
    "scale": schema.number(1e-6, 1e6),
    "fov_share": schema.number(-1, 1),
    "lost_share": schema.number(-1, 1),
}
_FILES = ("tile", "path")  # Columns of file names, which are not normalized.


@dataclasses.dataclass(frozen=True, slots=True)
class TileRow:
    """One tile of `manifest.csv`.

    Attributes:
      tile: Path of the file relative to the manifest, with forward slashes.
      photograph: Id of the photograph: its path below the folder of photographs, without suffix.
      patient: Name of the patient; all photographs of a patient are in one split.
      label: Label from the patients file, else the name of the photograph's folder.
      split: "train", "val" or "test".
      y: Top row of the tile in the photograph.
      x: Left column of the tile in the photograph.
      scale: Pixels of the scaled photograph per pixel of the original.
      photo_height: Height of the scaled photograph.
      photo_width: Width of the scaled photograph.
      fov_x: Column of the field of view's centre.
      fov_y: Row of the field of view's centre.
      fov_radius: Radius of the field of view.
      fov_top: First lit row of the field of view.
      fov_bottom: Last lit row of the field of view.
      fov_left: First lit column of the field of view.
      fov_right: Last lit column of the field of view.
      fov_share: Share of the tile's area inside the field of view, 0 to 1.
    """

    tile: str
    photograph: str
    patient: str
    label: str
    split: str
    y: int
    x: int
    scale: float
    photo_height: int
    photo_width: int
    fov_x: float
    fov_y: float
    fov_radius: float
    fov_top: float
    fov_bottom: float
    fov_left: float
    fov_right: float
    fov_share: float

    @property
    def tile_id(self) -> str:
        """The tile's path without its suffix."""
        return str(PurePosixPath(self.tile).with_suffix(""))

    @property
    def fov(self) -> FieldOfView:
        """The field of view of the tile's photograph."""
        return _fov(self)


@dataclasses.dataclass(frozen=True, slots=True)
class PhotographRow:
    """One photograph of `photographs.csv`.

    Attributes:
      path: Path of the original file.
      lost_share: Share of the lit area outside the field of view, 0 to 1; -1 if the whole
        picture is used (`--fov none`).

    The other columns are the same as in `TileRow`.
    """

    photograph: str
    patient: str
    label: str
    split: str
    path: str
    height: int
    width: int
    scale: float
    fov_x: float
    fov_y: float
    fov_radius: float
    fov_top: float
    fov_bottom: float
    fov_left: float
    fov_right: float
    lost_share: float

    @property
    def masked(self) -> bool:
        """True if a mask that is not stored defines the field of view: show nothing outside it."""
        return not self.fov.known and self.lost_share >= 0

    @property
    def fov(self) -> FieldOfView:
        """The photograph's field of view."""
        return _fov(self)


def _fov(row: TileRow | PhotographRow) -> FieldOfView:
    return FieldOfView(**{name: getattr(row, f"fov_{name}") for name in FIELDS})


Row = TypeVar("Row", TileRow, PhotographRow)


def write_manifest(path: str | os.PathLike, rows: Iterable[TileRow]) -> None:
    """Writes `manifest.csv` to a temporary file and renames it into place."""
    _write(path, TileRow, rows)


def write_photographs(path: str | os.PathLike, rows: Iterable[PhotographRow]) -> None:
    """Writes `photographs.csv` to a temporary file and renames it into place."""
    _write(path, PhotographRow, rows)


def read_manifest(path: str | os.PathLike) -> Iterator[TileRow]:
    """Reads and checks `manifest.csv` row by row, so that the rows need not fit in memory.

    Raises:
      DataError: The file is missing or empty, a column is missing, a value has the wrong type, a
        split is unknown, two rows name one tile, a path leaves the folder, or a patient is in two
        splits. The message names the file and the line.
    """
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    for line, row in _read(path, TileRow):
        if PurePosixPath(row.tile).is_absolute() or ".." in PurePosixPath(row.tile).parts:
            raise DataError(f"{path} line {line}: tile {row.tile!r} is outside the folder")
        name = composed(row.tile_id)
        if name in seen:
            raise DataError(f"{path} line {line}: a second row for tile {row.tile_id!r}")
        seen.add(name)
        if split_of.setdefault(row.patient, row.split) != row.split:
            raise DataError(
                f"{path} line {line}: patient {row.patient!r} is in {split_of[row.patient]} and in"
                f" {row.split}; a patient belongs to one split"
            )
        yield row
    if not seen:
        raise DataError(f"{path}: no rows; expected one row per tile")


def read_photographs(path: str | os.PathLike) -> list[PhotographRow]:
    """Reads and checks `photographs.csv`.

    Raises:
      DataError: The file is missing, a column is missing, a value has the wrong type, a split is
        unknown, or two rows name one photograph. The message names the file and the line.
    """
    rows: dict[str, PhotographRow] = {}
    for line, row in _read(path, PhotographRow):
        if row.photograph in rows:
            raise DataError(f"{path} line {line}: a second row for {row.photograph!r}")
        rows[row.photograph] = row
    return list(rows.values())


def _columns(kind: type) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(kind)}


def _write(path: str | os.PathLike, kind: type, rows: Iterable[TileRow | PhotographRow]) -> None:
    columns = _columns(kind)
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            values = (getattr(row, column) for column in columns)
            writer.writerow(f"{v:.9g}" if isinstance(v, float) else safe_cell(v) for v in values)


def _read(path: str | os.PathLike, kind: type[Row]) -> Iterator[tuple[int, Row]]:
    """Yields (line number, row) with every value converted to its column's type."""
    columns = _columns(kind)
    try:
        # `open_text` drops the byte-order mark that spreadsheets write before the first column.
        with storage.open_text(storage.as_path(path)) as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: lacks the column(s) {', '.join(missing)};"
                    f" expected {','.join(columns)}"
                )
            for record in reader:
                yield reader.line_num, _convert(record, kind, columns, path, reader.line_num)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a UTF-8 CSV file: {error}") from error


def _convert(
    record: dict[str, str], kind: type[Row], columns: dict[str, Any], path: Any, line: int
) -> Row:
    values = {}
    for name, of in columns.items():
        text = record[name]
        if text is None or (of is str and not text):
            raise DataError(f"{path} line {line}: no {name}")
        try:
            if of is str:
                text = read_cell(text)
                # Interned, because labels and photographs repeat on every row.
                values[name] = text if name in _FILES else sys.intern(composed(text))
            else:
                values[name] = of(text)
                if name in _KINDS and not _KINDS[name].test(values[name]):
                    raise ValueError
        except ValueError:
            raise DataError(
                f"{path} line {line}: {name} is {text!r}, expected "
                + (_KINDS[name].words if name in _KINDS else of.__name__)
            ) from None
    if values["split"] not in SPLITS:
        raise DataError(
            f"{path} line {line}: split is {values['split']!r}, expected one of {', '.join(SPLITS)}"
        )
    return kind(**values)
