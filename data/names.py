"""Names of photographs: the paths of their files, with accents in one form."""

import os
import unicodedata
from collections.abc import Container, Iterable, Sequence
from pathlib import Path, PurePath

from vae.data.errors import DataError

_SHOWN = 5  # names listed in a message before "and n more"


def composed(name: str) -> str:
    """A name as it is stored, compared and hashed: Unicode NFC, accents composed.

    File systems and spreadsheets differ in the form that they keep.
    """
    return unicodedata.normalize("NFC", name)


def photograph_id(below: str, root: PurePath) -> str:
    """The id of a photograph: its path below the root, with at least one folder in it.

    Args:
      below: The path below `root` without an image suffix, with forward slashes.
      root: The folder that is searched, an absolute path. Its name comes first where `below` has
        no folder; leading dots are left out, for hidden folders are skipped by all who look for
        tiles.

    Returns:
      "<folders>/<stem>", composed.
    """
    parts = [part for part in below.split("/") if part]
    above = [part.strip("/").lstrip(".") for part in root.parts]
    while len(parts) < 2:
        parts.insert(0, (above.pop() if above else "") or "photographs")
    return composed("/".join(parts))


def path_below(root: Path, path: Path) -> str:
    """The path of a photograph below the root without its suffix, with forward slashes."""
    return without_suffix(path.relative_to(root).as_posix())


def suffix_of(name: str) -> str:
    """The suffix of a file's name in small letters, with its dot.

    It is "" where there is none, and for the last number of a name such as "1.2.840.10008",
    which DICOM files have.
    """
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix[1:].isdigit() else suffix


def without_suffix(name: str) -> str:
    """A file's name or path without the suffix that `suffix_of` finds."""
    return name[: len(name) - len(suffix_of(name))]


def name_photographs(
    root: Path, paths: Sequence[Path], taken: Container[str] = ()
) -> dict[str, Path]:
    """Gives each file its id (`photograph_id`).

    Args:
      root: The folder that was searched, an absolute path.
      paths: Files below it.
      taken: Names that no id may begin with.

    Raises:
      DataError: Two files would have one id, or an id would begin with a name that is taken.
    """
    files: dict[str, Path] = {}
    for path in paths:
        id = photograph_id(path_below(root, path), root)
        if (first := id.split("/")[0]) in taken:
            raise DataError(
                f"{path}: make-tiles writes a file or folder of its own called {first!r} beside"
                f" the tiles; rename that folder of photographs"
            )
        if (other := files.setdefault(id, path)) is not path:
            raise DataError(
                f"two photographs would be called {id!r}, the path without the suffix: {other} and"
                f" {path}; rename one of the two files"
            )
    return files


def label_of(id: str) -> str:
    """The name of the folder that a photograph lies in."""
    return id.split("/")[-2]


def shorten(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
