"""Tiles with whole optic discs: of training photographs, drawn ones, drawn ones with guidance.

    python benchmarks/disc_figure.py tiles_disc docs/figures/optic_discs.jpg

Takes the tree of tiles that `benchmarks/disc_tiles.py` made, and the prior that ships.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

import vae
from data.images import read_image, write_image
from data.manifest import MANIFEST, read_manifest

LABEL = "optic_disc"
COLUMNS, SIDE, GAP = 12, 112, 8


def row(tiles) -> np.ndarray:
    small = [cv2.resize(tile, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for tile in tiles]
    return np.concatenate(small, axis=1)


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    discs = [tile for tile in read_manifest(folder / MANIFEST) if tile.label == LABEL]
    chosen = np.random.default_rng(0).choice(len(discs), COLUMNS, replace=False)
    sampler = vae.load_sampler()
    rows = [row([read_image(folder / discs[i].tile) for i in chosen])]
    for guidance in (1.0, 2.0):
        rows.append(row(sampler.sample(range(COLUMNS), seed=0, label=LABEL, guidance=guidance)))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    write_image(out, np.concatenate([rows[0], gap, rows[1], gap, rows[2]]), quality=88)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
