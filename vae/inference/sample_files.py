"""Samples and interpolations as files: tiles, a contact sheet, a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vae.data.errors import DataError
from vae.data.images import read_image
from vae.inference.reconstruct import write_picture, write_table
from vae.inference.sample import CHUNK, NORMAL, Sampler

TABLE, SHEET, STRIP = "samples.csv", "sheet.png", "interpolation.png"
SHOWN = 64  # largest number of tiles on a sheet
_GAP = 4


def grid(tiles: np.ndarray, columns: int = 8, side: int | None = None) -> np.ndarray:
    """Arranges tiles uint8 [N, S, S, 3] side by side on white: uint8 [h, w, 3].

    Args:
      tiles: At least one tile.
      columns: Number of columns.
      side: Side of a tile on the sheet, pixels; None keeps the size.
    """
    side = side or tiles.shape[1]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    size = [count * (side + _GAP) + _GAP for count in (columns, rows)]
    sheet = Image.new("RGB", tuple(size), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        picture = Image.fromarray(tile)
        if side != len(tile):
            picture = picture.resize((side, side), Image.Resampling.BOX)
        sheet.paste(picture, (_GAP + column * (side + _GAP), _GAP + row * (side + _GAP)))
    return np.asarray(sheet)


def write_samples(
    sampler: Sampler,
    out: Path,
    count: int,
    *,
    seed: int,
    origin: Mapping[str, str],
    suffix: str = ".png",
    **options,
):
    """Draws and writes tiles 0 to count - 1 of a seed, a sheet of the first ones and a table.

    Args:
      sampler: The sampler.
      out: Output folder; it is created, and files of the same names are replaced.
      count: Number of tiles.
      seed: See `Sampler.latents`.
      origin: Text fields of every picture.
      suffix: ".png" or ".jpg".
      options: Further arguments of `Sampler.latents`.

    Yields:
      The number of tiles written so far.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows, shown = [], []
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        tiles = sampler.sample(numbers, seed=seed, **options)
        for number, tile in zip(numbers, tiles, strict=True):
            name = f"seed{seed}_{number:05d}{suffix}"
            fields = {**origin, "generated": f"seed {seed}, number {number}; of no person's eye"}
            write_picture(out / name, tile, fields)
            row = {"file": name, "seed": seed, "number": number}
            rows.append(row | {"label": options.get("label")})
        shown.extend(tiles[: SHOWN - len(shown)] if len(shown) < SHOWN else ())
        yield numbers[-1] + 1
    write_picture(out / SHEET, grid(np.stack(shown)), dict(origin))
    write_table(out / TABLE, rows)


def write_interpolation(
    sampler: Sampler,
    paths: Sequence[Path],
    out: Path,
    count: int,
    *,
    origin: Mapping[str, str],
    steps: int | None = None,
) -> np.ndarray:
    """Writes and returns interpolated tiles, and writes a strip of them between the two images.

    Raises:
      DataError: An image cannot be read, or is smaller than a tile.
    """
    ends = [_tile_of(path, sampler.side) for path in paths]
    tiles = sampler.between(*ends, count, steps=steps)
    out.mkdir(parents=True, exist_ok=True)
    for number, tile in enumerate(tiles):
        write_picture(out / f"between_{number:03d}.png", tile, dict(origin))
    write_picture(out / STRIP, grid(np.stack([ends[0], *tiles, ends[1]]), count + 2), dict(origin))
    return tiles


def origin_of(sampler: Sampler) -> dict[str, str]:
    """Returns the text fields that record the provenance of a picture."""
    from vae.inference.reconstruct import origin_of as of_model

    return {**of_model(sampler.model), "prior": sampler.hash if sampler.prior else NORMAL}


def _tile_of(path: Path, side: int) -> np.ndarray:
    """Reads an image; takes the middle of a larger one."""
    image = read_image(path)
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise DataError(f"{path}: {height} x {width}, expected at least {side} x {side} pixels")
    y, x = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(image[y : y + side, x : x + side])
