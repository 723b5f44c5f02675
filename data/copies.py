"""Detection of files with the same content under several names."""

import collections
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import TypeVar

Name = TypeVar("Name")


def find_copies(files: Mapping[Name, str | os.PathLike]) -> list[list[Name]]:
    """Groups the files that are identical byte for byte.

    Only files of equal size are read. Empty and unreadable files are in no group; the code that
    decodes them reports them.

    Args:
      files: Path of each file by name.

    Returns:
      The names in each group of two or more files, in the order of `files`.
    """
    sizes = _grouped((name, _size(path)) for name, path in files.items())
    return [
        group
        for same_size in sizes
        for group in _grouped((name, _digest(files[name])) for name in same_size)
    ]


def _grouped(keys: Iterable[tuple[Name, int | bytes | None]]) -> list[list[Name]]:
    """Groups two or more names with equal keys; names with key 0 or None are left out."""
    groups: dict[int | bytes, list[Name]] = collections.defaultdict(list)
    for name, key in keys:
        if key:
            groups[key].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _size(path: str | os.PathLike) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _digest(path: str | os.PathLike) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None
