"""Names of photographs: file paths in one Unicode normal form."""

import os
import unicodedata
from collections.abc import Container, Iterable, Sequence
from pathlib import Path, PurePath

from vae.data.errors import DataError

_SHOWN = 5  # Names listed in a message before "and n more".


def composed(name: str) -> str:
    """Returns a name in Unicode NFC (composed accents), to be stored, compared and hashed.

    File systems and spreadsheets differ in the normal form that they store.
    """
    return unicodedata.normalize("NFC", name)


def photograph_id(below: str, root: PurePath) -> str:
    """Returns the id of a photograph: its path below the root, with at least one folder.

    Args:
      below: The path below `root` without an image suffix, with forward slashes.
      root: The folder that is searched, an absolute path. If `below` has no folder, the root's
        name is put first, without leading dots: a search for tiles skips hidden folders.

    Returns:
      "<folders>/<stem>" in Unicode NFC.
    """
    parts = [part for part in below.split("/") if part]
    above = [part.strip("/").lstrip(".") for part in root.parts]
    while len(parts) < 2:
        parts.insert(0, (above.pop() if above else "") or "photographs")
    return composed("/".join(parts))


def path_below(root: Path, path: Path) -> str:
    """Returns a photograph's path below the root without suffix, with forward slashes."""
    return without_suffix(path.relative_to(root).as_posix())


def suffix_of(name: str) -> str:
    """Returns the suffix of a file's name in lower case, with its dot; "" if there is none.

    The last number of a DICOM file's name, such as "1.2.840.10008", is not a suffix.
    """
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix[1:].isdigit() else suffix


def without_suffix(name: str) -> str:
    """Returns a file's name or path without the suffix that `suffix_of` finds."""
    return name[: len(name) - len(suffix_of(name))]


def name_photographs(
    root: Path, paths: Sequence[Path], taken: Container[str] = ()
) -> dict[str, Path]:
    """Returns the file of each id (`photograph_id`), in the order of `paths`.

    Args:
      root: The folder that was searched, an absolute path.
      paths: Files below `root`.
      taken: Names that may not be the first folder of an id.

    Raises:
      DataError: Two files would have one id, or the first folder of an id is in `taken`.
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
    """Returns the name of the folder that directly contains a photograph."""
    return id.split("/")[-2]


def shorten(names: Iterable[str]) -> str:
    """Returns the first five names, separated by commas, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
