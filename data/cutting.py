"""One photograph into tiles: where they lie, which are kept, and their files."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from data.errors import DataError
from data.fov import FieldOfView, find_fov
from data.images import read_image, write_beside, write_image

GRID = 8  # side of JPEG's blocks: origins are jittered over all of its phases

_RECORDS = ".finished"  # hidden, so that no tree walk takes it for a label
_OVERLAYS = "overlays"
_OVERLAY_SIDE = 800


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """What decides the pixels of a tile.

    Attributes:
      tile: Side of a tile in pixels.
      stride: Pixels between neighbouring tiles, before the jitter.
      min_fov: Smallest share of a tile inside the field of view.
      fov_width: Diameter in pixels to which the field of view is scaled, or None.
      seed: Of the jitter.
    """

    tile: int
    stride: int
    min_fov: float
    fov_width: int | None
    seed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A photograph to cut: its file, its id "<label>/<stem>", where to, and the tiles' suffix."""

    path: Path
    photograph: str
    out: Path
    suffix: str
    cut: Cut
    overlay: bool

    @property
    def record_path(self) -> Path:
        """The file that says this photograph is finished."""
        return self.out / _RECORDS / f"{self.photograph}.json"

    @property
    def folder(self) -> Path:
        """Where the photograph's tiles lie."""
        return self.out / self.photograph

    def tile_name(self, y: int, x: int) -> str:
        """Path of a tile relative to `out`, with forward slashes."""
        stem = self.photograph.split("/", 1)[1]
        return f"{self.photograph}/{stem}_y{y}_x{x}{self.suffix}"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a finished photograph; sizes are of the scaled photograph.

    Attributes:
      source: Size in bytes and modification time in ns of the photograph's file.
      suffix: Of the tiles' files.
      height: In pixels.
      width: In pixels.
      scale: Pixels here per pixel of the file.
      fov: `FieldOfView`'s values.
      tiles: (y, x, share of the tile inside the field of view) of each tile.
      size: Bytes of all tiles together.
    """

    source: tuple[int, int]
    suffix: str
    height: int
    width: int
    scale: float
    fov: tuple[float, ...]
    tiles: list[tuple[int, int, float]]
    size: int


def tile_origins(
    height: int,
    width: int,
    fov: FieldOfView,
    *,
    tile: int = 256,
    stride: int = 128,
    min_fov: float = 0.9,
    seed: int = 0,
    photograph: str = "",
) -> list[tuple[int, int, float]]:
    """Places tiles over the field of view on a jittered grid.

    A photograph stored as JPEG has a grid of 8x8 blocks, and tiles that coincide with it are
    easier to compress. So every origin is moved by up to 4 pixels to a random phase of that grid,
    the same for the same seed, photograph and place in the grid.

    Args:
      height: Of the photograph, in pixels.
      width: Of the photograph, in pixels.
      fov: Its field of view.
      tile: Side of a tile.
      stride: Distance of the grid's points.
      min_fov: Tiles with a smaller share inside the field of view are dropped.
      seed: Of the jitter.
      photograph: Its id, part of the jitter's seed.

    Returns:
      (y, x, share inside the field of view) of each tile, row by row.
    """
    rows = _grid(max(0.0, fov.y - fov.radius, fov.top), min(height - 1.0, fov.bottom), height, tile)
    columns = _grid(max(0.0, fov.x - fov.radius), min(width - 1.0, fov.x + fov.radius), width, tile)
    inside = fov.mask(height, width)
    placed = []
    for i, y in enumerate(rows(stride)):
        for j, x in enumerate(columns(stride)):
            phase = hashlib.blake2b(f"{seed}/{photograph}/{i}/{j}".encode(), digest_size=2).digest()
            top = _move_to_phase(y, phase[0] % GRID, height - tile)
            left = _move_to_phase(x, phase[1] % GRID, width - tile)
            share = float(inside[top : top + tile, left : left + tile].mean())
            if share >= min_fov:
                placed.append((top, left, share))
    return placed
