"""Search for the images below a folder, with counts of the other files."""

import collections
import dataclasses
import os
from pathlib import Path
from typing import NoReturn

from vae.data import dicom, jpeg2000, tiff
from vae.data.errors import DataError
from vae.data.failures import REJECTED
from vae.data.files import require_regular
from vae.data.images import IMAGE_SUFFIXES, require_utf8
from vae.data.manifest import MANIFEST, PHOTOGRAPHS
from vae.data.names import suffix_of
from vae.data.thumbnails import THUMBNAILS

# Files that this program writes next to images; not counted among the other files.
_OUR_FILES = {MANIFEST, PHOTOGRAPHS, REJECTED, THUMBNAILS}


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of `find_images`.

    Attributes:
      paths: The images, sorted.
      left_out: Number of other files by suffix; "" is no suffix.
    """

    paths: list[Path]
    left_out: collections.Counter[str]

    def left_out_line(self) -> str:
        """Formats the counts, as "left out: 3 .csv, 1 without a suffix"; "" if there are none."""
        return left_out_line(self.left_out)


def left_out_line(left_out: collections.Counter[str]) -> str:
    """Formats `Found.left_out`, the most frequent suffix first; "" if nothing is left out."""
    counts = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    kinds = (f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts)
    return f"left out: {', '.join(kinds)}" if counts else ""


def find_images(root: str | os.PathLike) -> Found:
    """Searches a folder and its subfolders for images.

    Images are recognised by their suffix, and files without a suffix by their first bytes (DICOM
    files often have none). Hidden files and folders, and the lists that this program writes, are
    skipped. Symbolic links are followed; each folder is visited once.

    Raises:
      DataError: `root` is not a directory or has no images, a folder cannot be read, or an image's
        name is not UTF-8.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; expected a folder of images")
    visited, paths, left_out = set(), [], collections.Counter()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse_folder):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            # Includes macOS's "._photo.jpg" companions and the temporary names of our writes.
            if name.startswith("."):
                continue
            if name.lower().endswith(IMAGE_SUFFIXES) or (
                not suffix_of(name) and _begins_as_image(path)
            ):
                require_utf8(path)
                paths.append(Path(folder, name))
            else:
                count_left_out(name, left_out)
    found = Found(sorted(paths), left_out)
    if not paths:
        others = found.left_out_line()
        raise DataError(
            f"{root}: no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
            + (f"; {others}" if others else "")
        )
    return found


def count_left_out(name: str, left_out: collections.Counter[str]) -> None:
    """Counts a file in `left_out` by its suffix, unless this program wrote it."""
    if os.path.basename(name) not in _OUR_FILES:
        left_out[suffix_of(name)] += 1


def _begins_as_image(path: str) -> bool:
    try:
        require_regular(path, "an image")
        with open(path, "rb") as file:
            beginning = file.read(2048)
    except (OSError, DataError):
        return False
    return (
        dicom.is_dicom(beginning)
        or tiff.is_tiff(beginning)
        or jpeg2000.is_jpeg2000(beginning)
        or beginning.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8"))
        or (beginning.startswith(b"RIFF") and beginning[8:12] == b"WEBP")
    )


def refuse_folder(error: OSError) -> NoReturn:
    """Re-raises the error of listing a folder as a one-line error for the user.

    Raises:
      DataError: Always.
    """
    raise DataError(
        f"{error.filename}: this folder cannot be read: {error.strerror}; expected readable"
        " folders of images"
    ) from error
