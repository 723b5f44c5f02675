"""Tiles for demonstrations: of a photograph bundled with scikit-image, or of procedural ones."""

import os
from collections.abc import Sequence
from pathlib import Path

from vae.data.files import write_csv
from vae.data.fundus_tiles import NAME, VERSION
from vae.data.images import write_image
from vae.data.manifest import MANIFEST
from vae.data.synthetic import write_photographs
from vae.data.tiling import make_tiles

_LEFT_SHARE = 0.6


def retina_tiles(out_dir: str | os.PathLike, *, tile: int = 256, progress: bool = True) -> Path:
    """Cuts tiles of the retina photograph (CC0, 1411 x 1411 pixels) bundled with scikit-image.

    The left 60% become the training photograph, the rest the test photograph; they share no pixel.
    Both show one eye, so test metrics measure unseen regions, not unseen patients.

    Args:
      out_dir: Directory for `photographs/retina/{left,right}.png` and the tiles; finished tiles
        there are reused.
      tile: Side of a tile in pixels.
      progress: Prints the progress.

    Returns:
      The directory of tiles, `out_dir/tiles`.
    """
    out_dir = Path(out_dir)
    tiles = out_dir / "tiles"
    if (tiles / MANIFEST).exists():
        return tiles
    from skimage import data as bundled  # takes half a second; only needed here

    photograph = bundled.retina()
    border = round(_LEFT_SHARE * photograph.shape[1])
    folder = out_dir / "photographs" / "retina"
    folder.mkdir(parents=True, exist_ok=True)
    for name, region in (("left", photograph[:, :border]), ("right", photograph[:, border:])):
        # Written once: a run that continues would cut a rewritten file again.
        if not (folder / f"{name}.png").exists():
            write_image(folder / f"{name}.png", region)
    rows = [("retina/left", "retina-left", "train"), ("retina/right", "retina-right", "test")]
    make_tiles(
        folder.parent,
        tiles,
        tile=tile,
        stride=56,
        patients=_write_patients(out_dir / "patients.csv", rows),
        val=0,
        workers=1,
        progress=progress,
    )
    return tiles


def synthetic_tiles(out_dir: str | os.PathLike, tile: int = 64) -> Path:
    """Cuts tiles of procedural photographs of 8 patients (6 train, 1 val, 1 test) within seconds.

    Args:
      out_dir: Directory for the photographs and the tiles; finished tiles there are reused.
      tile: Side of a tile in pixels.

    Returns:
      The directory of tiles, `out_dir/tiles`.
    """
    out_dir = Path(out_dir)
    tiles = out_dir / "tiles"
    if (tiles / MANIFEST).exists():
        return tiles
    paths = write_photographs(out_dir / "photographs", patients=8, eyes=1, size=4 * tile)
    splits = ["train"] * 6 + ["val", "test"]
    rows = [
        (f"{path.parent.name}/{path.stem}", path.stem.split("_")[0], split)
        for path, split in zip(paths, splits, strict=True)
    ]
    make_tiles(
        out_dir / "photographs",
        tiles,
        tile=tile,
        stride=tile // 2,
        patients=_write_patients(out_dir / "patients.csv", rows),
        workers=1,
        progress=False,
    )
    return tiles


def prepare(source: str, out_dir: str | os.PathLike, tile: int) -> Path:
    """Cuts the tiles of one of the two sources and builds their dataset, or reuses a finished one.

    Args:
      source: "retina" or "synthetic".
      out_dir: Directory for the photographs, the tiles and the dataset.
      tile: Side of a tile in pixels.

    Returns:
      The data directory for `vae.data.dataset.open_dataset`.
    """
    data_dir = Path(out_dir) / "dataset"
    if (data_dir / NAME / VERSION / "dataset_info.json").exists():
        return data_dir
    from vae.data.fundus_tiles.build import build

    tiles = {"retina": retina_tiles, "synthetic": synthetic_tiles}[source](out_dir, tile=tile)
    build(tiles, data_dir)
    return data_dir


def _write_patients(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    write_csv(path, ("photograph", "patient", "split"), rows)
    return path
