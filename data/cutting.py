"""Cutting of one photograph into tiles: their positions, their selection and their files."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np

from vae.data import limits, schema
from vae.data.errors import DataError
from vae.data.files import write_beside
from vae.data.fov import FIELDS, FieldOfView
from vae.data.images import read_image, write_image
from vae.data.manifest import OVERLAYS
from vae.data.region import AUTO, FovChoice, find_region
from vae.data.thumbnails import make_thumbnail, write_thumbnail

GRID = 8  # side of JPEG's blocks in pixels; tile origins are jittered over all 8 x 8 phases

_RECORDS = ".finished"  # hidden, so that a search for labels skips it
_OVERLAY_SIDE = 800


@dataclasses.dataclass(frozen=True, slots=True)
class CutSettings:
    """Settings that determine the pixels of the tiles.

    Attributes:
      tile: Side of a tile in pixels.
      stride: Distance in pixels between neighbouring tiles, before the jitter.
      min_fov: Minimum share of a tile inside the field of view, 0 to 1.
      fov_width: Diameter in pixels to which the field of view is scaled; None keeps the scale.
      seed: Seed of the jitter.
      choice: How the field of view is found.
    """

    tile: int
    stride: int
    min_fov: float
    fov_width: int | None
    seed: int
    choice: FovChoice = AUTO


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A photograph to cut: its file, its id "<folders>/<stem>", and the output settings.

    `suffix` is that of the tiles' files; `overlay` also draws the tiles on a small copy.
    """

    path: Path
    photograph: str
    out: Path
    suffix: str
    cut: CutSettings
    overlay: bool

    @property
    def record_path(self) -> Path:
        """The file whose presence marks this photograph as finished."""
        return self.out / _RECORDS / f"{self.photograph}.json"

    @property
    def thumbnail_path(self) -> Path:
        """The photograph's thumbnail, kept until all thumbnails are packed into one file.

        It is not an image file, so that a search for tiles does not pick it up.
        """
        return self.out / _RECORDS / f"{self.photograph}.npy"

    @property
    def folder(self) -> Path:
        """The folder of the photograph's tiles."""
        return self.out / self.photograph

    def tile_name(self, y: int, x: int) -> str:
        """Returns the path of a tile relative to `out`, with forward slashes."""
        stem = self.photograph.rpartition("/")[2]
        return f"{self.photograph}/{stem}_y{y}_x{x}{self.suffix}"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """The stored result of a finished photograph.

    Attributes:
      source: Size in bytes and modification time in ns of the photograph's file.
      suffix: Suffix of the tiles' files.
      height: Height of the scaled photograph in pixels.
      width: Width of the scaled photograph in pixels.
      scale: Scaled pixels per pixel of the file.
      fov: Values of the `FieldOfView`, in scaled pixels.
      lost_share: Share of the lit area outside the field of view, 0 to 1; -1 if not searched.
      tiles: (y, x, share of the tile inside the field of view) of each tile.
      size: Total size of the tiles in bytes.
    """

    source: tuple[int, int]
    suffix: str
    height: int
    width: int
    scale: float
    fov: tuple[float, ...]
    lost_share: float
    tiles: list[tuple[int, int, float]]
    size: int


_PIXELS = schema.whole(0, 1 << 20)
_RECORD = {
    "source": [schema.whole(), schema.whole(-(1 << 63), 1 << 63)],
    "suffix": schema.TEXT,
    "height": _PIXELS,
    "width": _PIXELS,
    "scale": schema.number(1e-6, 1e6),
    "fov": [schema.number()] * len(FIELDS),
    "lost_share": schema.number(-1, 1),
    "tiles": [[_PIXELS, _PIXELS, schema.number(0, 1)]],
    "size": schema.whole(),
}


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph ready to cut: scaled, and black outside its field of view.

    Attributes:
      image: uint8 `[H, W, 3]`, sRGB.
      fov: The field of view in pixels of `image`; unknown if the whole picture or a mask is used.
      inside: bool `[H, W]`, the part that is used.
      scale: Pixels of `image` per pixel of the file.
      lost_share: Share of the lit area outside the field of view, 0 to 1; -1 if not searched.
    """

    image: np.ndarray
    fov: FieldOfView
    inside: np.ndarray
    scale: float
    lost_share: float


def tile_origins(
    inside: np.ndarray,
    fov: FieldOfView,
    *,
    tile: int = 256,
    stride: int = 128,
    min_fov: float = 0.9,
    seed: int = 0,
    photograph: str = "",
) -> list[tuple[int, int, float]]:
    """Places tiles over the field of view on a jittered grid.

    Tiles aligned with the 8x8 blocks of a JPEG photograph are easier to compress. Each origin is
    therefore moved by up to 4 pixels to a random phase of the block grid, determined by the seed,
    the photograph's id and the tile's place in the tile grid.

    Args:
      inside: bool `[H, W]`, the part of the photograph that is used.
      fov: The field of view; if it is unknown, the tile grid spans the bounding box of `inside`.
      tile: Side of a tile in pixels.
      stride: Distance between grid points in pixels.
      min_fov: Tiles with a smaller share (0 to 1) inside the field of view are dropped.
      seed: Seed of the jitter.
      photograph: The photograph's id, part of the jitter's seed.

    Returns:
      (y, x, share inside the field of view) of each tile, in row-major order.
    """
    height, width = inside.shape
    if fov.known:
        rows = _grid(max(0.0, fov.top), min(height - 1.0, fov.bottom), tile, stride)
        # Where no bar cuts the circle, the margin of 1 pixel lets its fractional bounds decide.
        left = max(0.0, fov.x - fov.radius, fov.left - 1)
        right = min(width - 1.0, fov.x + fov.radius, fov.right + 1)
        columns = _grid(left, right, tile, stride)
    else:
        rows, columns = (
            _grid(float(used[0]), float(used[-1]), tile, stride)
            for used in (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        )
    placed = []
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            phase = hashlib.blake2b(f"{seed}/{photograph}/{i}/{j}".encode(), digest_size=2).digest()
            top = _move_to_phase(y, phase[0] % GRID, height - tile)
            side = _move_to_phase(x, phase[1] % GRID, width - tile)
            share = float(inside[top : top + tile, side : side + tile].mean())
            if share >= min_fov:
                placed.append((top, side, share))
    return placed


def _grid(first: float, last: float, tile: int, stride: int) -> list[int]:
    """Returns origins `stride` apart, centred between the first and the last pixel to cover."""
    room = last - first + 1 - tile
    count = 1 + max(0, int(room // stride))
    start = first + (room - (count - 1) * stride) / 2
    return [round(start + n * stride) for n in range(count)]


def _move_to_phase(origin: int, phase: int, limit: int) -> int:
    """Returns the nearest position in [0, limit] that is `phase` modulo 8, or 0 if none exists."""
    moved = origin + (phase - origin + GRID // 2) % GRID - GRID // 2
    if moved < 0:
        moved += GRID * (-moved // GRID + 1)
    if moved > limit:
        moved -= GRID * ((moved - limit - 1) // GRID + 1)
    return max(0, moved)


def load_photograph(path: Path, name: str, cut: CutSettings) -> Photograph:
    """Reads a photograph, scales it according to `cut` and blackens the surround.

    Args:
      path: The photograph's file.
      name: Its id, which also names its FOV mask.
      cut: The settings.

    Raises:
      DataError: The photograph is unreadable, has no field of view, is smaller than a tile, or
        would be scaled beyond the limit.
    """
    image = read_image(path)
    region = find_region(image, str(path), name, cut.choice)
    fov, inside, scale = region.fov, region.inside(*image.shape[:2]), 1.0
    if cut.fov_width is not None:
        used = np.flatnonzero(inside.any(axis=0))
        scale = cut.fov_width / (2.0 * fov.radius if fov.known else used[-1] - used[0] + 1)
        size = tuple(max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        if size[0] * size[1] > limits.max_pixels():
            raise DataError(
                f"{path}: {size[0]} x {size[1]} pixels at fov_width {cut.fov_width}; expected at"
                f" most {limits.max_pixels() / 1e6:g} megapixels: choose a smaller one, or set"
                f" {limits.VARIABLE}"
            )
        # Area averaging reduces without aliasing; cubic interpolation enlarges.
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, size, interpolation=method)
        inside = cv2.resize(inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        fov = fov.scaled(scale)
    fov = fov.rounded()
    if region.mask is None:
        inside = fov.mask(*image.shape[:2])
    height, width = image.shape[:2]
    if min(height, width) < cut.tile:
        raise DataError(
            f"{path}: {width} x {height} pixels{'' if scale == 1 else ' after scaling'}, smaller"
            f" than a tile of {cut.tile}"
        )
    image[~inside] = 0
    return Photograph(image, fov, inside, scale, region.lost_share)


def place_tiles(
    photograph: Photograph, name: str, cut: CutSettings
) -> list[tuple[int, int, float]]:
    """Returns `tile_origins` of the photograph with id `name` and the settings `cut`."""
    return tile_origins(
        photograph.inside,
        photograph.fov,
        tile=cut.tile,
        stride=cut.stride,
        min_fov=cut.min_fov,
        seed=cut.seed,
        photograph=name,
    )


def cut_photograph(job: Job) -> Record:
    """Writes a photograph's tiles, thumbnail and record, unless they exist already.

    Raises:
      DataError: The photograph is refused (see `load_photograph`) or yields no tiles.
    """
    overlay = job.out / OVERLAYS / f"{job.photograph}.jpg"
    record = finished(job)
    if record and job.thumbnail_path.exists() and (overlay.exists() or not job.overlay):
        return record

    photograph = load_photograph(job.path, job.photograph, job.cut)
    placed = place_tiles(photograph, job.photograph, job.cut)
    if not placed:
        rows, columns = (np.count_nonzero(photograph.inside.any(axis=axis)) for axis in (1, 0))
        raise DataError(
            f"{job.path}: no tile of {job.cut.tile} pixels is {job.cut.min_fov:.0%} inside the"
            f" field of view of {columns} x {rows} pixels; a smaller stride may help"
        )
    _write_thumbnail(job, photograph.image, photograph.fov)
    if record is None:
        record = _write_tiles(job, photograph, placed)
    if job.overlay:
        overlay.parent.mkdir(parents=True, exist_ok=True)
        write_image(overlay, _draw_overlay(photograph, placed, job.cut.tile))
    return record


def finished(job: Job) -> Record | None:
    """Returns the record if all tiles exist and the photograph's file is unchanged, else None."""
    try:
        content = job.record_path.read_bytes()
        values = schema.parse_sealed(content, job.record_path, _RECORD, remedy="cut again")
        record = Record(**values)
        source = _source(job.path)
        present = set(os.listdir(job.folder))
    except (OSError, TypeError, DataError):  # A damaged record is as none.
        return None
    if tuple(record.source) != source or record.suffix != job.suffix:
        return None
    names = (Path(job.tile_name(y, x)).name for y, x, _ in record.tiles)
    return record if all(name in present for name in names) else None


def _write_tiles(job: Job, photograph: Photograph, placed: list[tuple[int, int, float]]) -> Record:
    image = photograph.image
    job.record_path.unlink(missing_ok=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    # Remove the tiles of an interrupted run or of an older file with this name. Subfolders belong
    # to other photographs: the tiles of a/b/c.jpg lie in a subfolder of those of a/b.jpg.
    for path in job.folder.iterdir():
        if path.is_symlink() or not path.is_dir():
            path.unlink()
    size = 0
    for y, x, _ in placed:
        tile = image[y : y + job.cut.tile, x : x + job.cut.tile]
        size += write_image(job.out / job.tile_name(y, x), tile)
    height, width = image.shape[:2]
    record = Record(
        source=_source(job.path),
        suffix=job.suffix,
        height=height,
        width=width,
        scale=photograph.scale,
        fov=dataclasses.astuple(photograph.fov),
        lost_share=photograph.lost_share,
        tiles=placed,
        size=size,
    )
    job.record_path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(job.record_path, json.dumps(schema.sealed(dataclasses.asdict(record))).encode())
    return record


def _write_thumbnail(job: Job, image: np.ndarray, fov: FieldOfView) -> None:
    job.thumbnail_path.parent.mkdir(parents=True, exist_ok=True)
    write_thumbnail(job.thumbnail_path, make_thumbnail(image, fov))


def _source(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _draw_overlay(
    photograph: Photograph, placed: list[tuple[int, int, float]], tile: int
) -> np.ndarray:
    """Returns a small, brightened copy with the field of view in green and the tiles in blue."""
    image = photograph.image
    factor = min(1.0, _OVERLAY_SIDE / max(image.shape[:2]))
    canvas = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    canvas = cv2.convertScaleAbs(canvas, alpha=1.3, beta=40)
    for y, x, _ in placed:
        first = (round(x * factor), round(y * factor))
        last = (round((x + tile) * factor), round((y + tile) * factor))
        cv2.rectangle(canvas, first, last, (90, 140, 255), 1)
    size = (canvas.shape[1], canvas.shape[0])
    inside = cv2.resize(photograph.inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    outline, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outline, -1, (0, 255, 0), 2)
    return canvas
