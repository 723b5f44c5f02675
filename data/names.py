"""Names of photographs: the paths of their files, with accents in one form."""

import unicodedata
from collections.abc import Iterable
from pathlib import PurePath

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


def label_of(id: str) -> str:
    """The name of the folder that a photograph lies in."""
    return id.split("/")[-2]


def shorten(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
