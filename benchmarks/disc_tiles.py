r"""Tiles with whole optic discs as training data of a prior; see docs/sampling.md.

    python benchmarks/disc_tiles.py --tiles tiles --discs docs/optic_discs.csv --out tiles_disc
    fundus-vae build --tiles tiles_disc --data_dir dataset_disc
    python run_experiment.py --config=configs/prior256.py --config.data.dir=dataset_disc \
      --config.model.labels='("chase_db1", "fives", "hrf", "idrid", "optic_disc")' \
      --config.prior.always_labelled='("optic_disc",)' --workdir=...

Copies a tree of `fundus-vae make-tiles` and adds tiles with the label "optic_disc". Their centres
are near the disc of a training photograph, which is reduced until the disc has a radius of 56
pixels. At the original scale, discs of hrf, fives and idrid are larger than a tile: a tile shows at
most an arc of the rim, and only one tile in twenty of a grid shows any part of a disc.
"""

import argparse
import csv
import dataclasses
import os
import shutil

import cv2
import numpy as np

from vae.data.images import read_image, write_image
from vae.data.manifest import MANIFEST, PHOTOGRAPHS, read_manifest, read_photographs, write_manifest

LABEL = "optic_disc"
TILE = 256
DARK = 18  # grey level; at most a twentieth of a tile's pixels may be darker
# Disc radius in each set of photographs, and after the reduction, pixels.
RADII = {"chase_db1": 78, "fives": 120, "hrf": 215, "idrid": 230}
RADIUS = 56
# Pixels between tile centres, and at most to the disc's centre, so that the tile contains the disc.
STRIDE, REACH = 18, 76


def tile_origins_near_disc(rng, disc):
    """Yields the first row and column of tiles that contain the disc."""
    steps = REACH // STRIDE + 1
    for i in range(-steps, steps + 1):
        for j in range(-steps, steps + 1):
            jitter = rng.integers(-STRIDE // 3, STRIDE // 3 + 1, 2)
            offset = STRIDE * np.array([i, j]) + jitter
            if np.hypot(*offset) <= REACH:
                yield (disc + offset - TILE // 2).astype(int)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("tiles", "discs", "out"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    rows = list(read_manifest(os.path.join(arguments.tiles, MANIFEST)))
    photographs = {
        row.photograph: row for row in read_photographs(os.path.join(arguments.tiles, PHOTOGRAPHS))
    }
    first = {row.photograph: row for row in reversed(rows)}
    with open(arguments.discs, encoding="utf-8", newline="") as file:
        discs = list(csv.DictReader(file))
    for disc in discs:
        name = disc["photograph"]
        if name not in first or name.split("/")[0] not in RADII:
            raise SystemExit(
                f"{arguments.discs}: {name!r} has no tiles in {arguments.tiles}, or its set is not "
                f"one of {', '.join(RADII)}; remove its row, or add the set's radius to RADII"
            )
    shutil.copytree(arguments.tiles, arguments.out)
    rng, more = np.random.default_rng(0), []
    taken = {row.tile for row in rows}
    for disc in discs:
        row = first[disc["photograph"]]
        if row.split != "train":
            continue
        factor = RADIUS / RADII[row.photograph.split("/")[0]]
        image = read_image(photographs[row.photograph].path)
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        centre = factor * np.array([float(disc["y"]), float(disc["x"])])
        for y, x in tile_origins_near_disc(rng, centre):
            tile = image[max(y, 0) : y + TILE, max(x, 0) : x + TILE]
            if tile.shape[:2] != (TILE, TILE) or (tile.max(axis=-1) < DARK).mean() > 0.05:
                continue
            name = f"{row.photograph}/{row.photograph.rpartition('/')[2]}_disc_y{y}_x{x}.png"
            if name not in taken:
                taken.add(name)
                write_image(os.path.join(arguments.out, name), tile)
                more.append(
                    dataclasses.replace(
                        row, tile=name, label=LABEL, y=int(y), x=int(x), fov_share=1.0
                    )
                )
    rows = sorted([*rows, *more], key=lambda row: row.tile)
    write_manifest(os.path.join(arguments.out, MANIFEST), rows)
    print(
        f"{len(more)} tiles of {len(discs)} discs added to {len(rows) - len(more)}: {arguments.out}"
    )


if __name__ == "__main__":
    main()
