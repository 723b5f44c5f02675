"""The region of a photograph to use: the detected FOV disc, the whole picture, or a given mask.

The commands share three options for the region: `--fov`, `--fov_mask` and `--max_lost_share`.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from vae.data.errors import DataError, UsageError
from vae.data.fov import MAX_LOST_SHARE, UNKNOWN, FieldOfView, lit_region, locate_fov
from vae.data.images import IMAGE_SUFFIXES, read_image

CHOICES = ("auto", "none")

# A mask counts as a disc if its rim is at most this far from a circle: pixels, share of the radius.
_RIM, _RIM_SHARE = 2, 0.005


@dataclasses.dataclass(frozen=True, slots=True)
class FovChoice:
    """How the field of view of photographs is found.

    Attributes:
      fov: "auto" detects the lit disc, "none" takes the whole picture.
      fov_mask: Folder with a mask for each photograph, used instead of detection; or None.
      max_lost_share: Largest accepted share of the lit area outside the disc, 0 to 1.
    """

    fov: str = "auto"
    fov_mask: str | None = None
    max_lost_share: float = MAX_LOST_SHARE

    def __post_init__(self):
        """Checks the values.

        Raises:
          UsageError: A value is invalid, or `fov_mask` is given with `fov` "none".
        """
        if self.fov not in CHOICES:
            raise UsageError(f"fov {self.fov!r}: expected one of {', '.join(CHOICES)}")
        if not 0 <= self.max_lost_share <= 1:
            raise UsageError(f"max_lost_share {self.max_lost_share}: expected a share from 0 to 1")
        if self.fov_mask is not None and self.fov == "none":
            raise UsageError("fov none takes the whole picture, fov_mask a part of it: choose one")
        if self.fov_mask is not None and not os.path.isdir(self.fov_mask):
            raise UsageError(f"fov_mask {self.fov_mask}: no such folder; expected one of masks")

    @property
    def given(self) -> bool:
        """True if the disc is not detected: the whole picture or a mask is used."""
        return self.fov == "none" or self.fov_mask is not None


AUTO = FovChoice()


@dataclasses.dataclass(frozen=True)
class Region:
    """The region of a photograph to use.

    Attributes:
      fov: The disc; unknown if the region is not a disc.
      mask: bool [H, W] for the whole picture or a given mask; None for the detected disc.
      lost_share: Share of the lit area outside the region, 0 to 1; -1 for the whole picture.
    """

    fov: FieldOfView
    mask: np.ndarray | None
    lost_share: float

    def inside(self, height: int, width: int) -> np.ndarray:
        """Returns the region as bool [height, width], the size of the photograph in pixels."""
        return self.fov.mask(height, width) if self.mask is None else self.mask


def add_options(parser: argparse.ArgumentParser) -> None:
    """Registers the options of `FovChoice`."""
    parser.add_argument(
        "--fov",
        choices=CHOICES,
        default="auto",
        help="auto finds the lit disc; none takes the whole picture: disc crops, ultra-wide field",
    )
    parser.add_argument(
        "--fov_mask",
        metavar="DIR",
        help="use masks instead of detection: DIR/<path or name of the photograph>[_mask].png or "
        "another image format, with the size of the photograph, white inside",
    )
    parser.add_argument(
        "--max_lost_share",
        type=float,
        default=MAX_LOST_SHARE,
        metavar="SHARE",
        help="refuse a photograph if a larger share of its lit area is outside the detected disc "
        f"({MAX_LOST_SHARE})",
    )


def find_region(image: np.ndarray, path: str, name: str, choice: FovChoice) -> Region:
    """Finds the region of a photograph to use.

    Args:
      image: uint8 [H, W, 3].
      path: Path of its file, for errors.
      name: Its path below the searched folder, without suffix; the mask has the same name.
      choice: The options.

    Raises:
      NoSurroundError: See `vae.data.fov.locate_fov`.
      DataError: See `locate_fov`; or the mask is missing, unreadable, empty, or of another size.
    """
    height, width = image.shape[:2]
    if choice.fov == "none":
        return Region(UNKNOWN, np.ones((height, width), bool), -1.0)
    if choice.fov_mask is None:
        located = locate_fov(image, path, choice.max_lost_share)
        return Region(located.fov, None, located.lost_share)
    mask = _read_mask(choice.fov_mask, name, path, (height, width))
    lit = lit_region(image)
    lost_share = float((lit & ~mask).sum() / max(1, lit.sum()))
    return Region(_disc_of(mask), mask, lost_share)


def _disc_of(mask: np.ndarray) -> FieldOfView:
    """Returns the disc that a mask shows, or the unknown field of view if it is not a disc."""
    picture = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    try:
        disc = locate_fov(picture).fov
    except DataError:
        return UNKNOWN
    # The disc replaces the mask, so it must not show pixels that the mask hides.
    side = 2 * math.ceil(max(_RIM, _RIM_SHARE * disc.radius)) + 1
    wider = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    found, given = disc.mask(*mask.shape).astype(np.uint8), mask.astype(np.uint8)
    apart = (found > cv2.dilate(given, wider)) | (given > cv2.dilate(found, wider))
    return UNKNOWN if apart.any() else disc


def _read_mask(folder: str, name: str, path: str, size: tuple[int, int]) -> np.ndarray:
    file = next((file for file in _candidates(Path(folder), name) if file.exists()), None)
    if file is None:
        stem = name.rpartition("/")[2]
        raise DataError(
            f"{path}: no mask in {folder}; expected {name}.png, {stem}.png or {stem}_mask.png, or "
            "another image format"
        )
    mask = read_image(file).max(axis=2) > 127
    if mask.shape != size:
        raise DataError(
            f"{file}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels and {path}"
            f" {size[1]} x {size[0]}; expected the same size"
        )
    if not mask.any():
        raise DataError(
            f"{file}: the mask is black everywhere; expected white inside, values above 127"
        )
    return mask


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    for stem in dict.fromkeys((name, name.rpartition("/")[2])):
        for end in ("", "_mask"):
            for suffix in IMAGE_SUFFIXES:
                for spelled in (suffix, suffix.upper()):
                    yield folder / f"{stem}{end}{spelled}"
