r"""Tiles with whole optic discs, for a prior that is to draw them; docs/sampling.md has the rest.

    python benchmarks/disc_tiles.py --tiles tiles --discs docs/optic_discs.csv --out tiles_disc
    fundus-vae build --tiles tiles_disc --data_dir dataset_disc
    python run_experiment.py --config=configs/prior256.py --config.data.dir=dataset_disc \
      --config.model.labels='("chase_db1", "fives", "hrf", "idrid", "optic_disc")' \
      --config.prior.named_only='("optic_disc",)' --workdir=...

Adds to a copy of a tree that `fundus-vae make-tiles` made: tiles whose middle lies near the disc of
a training photograph, cut from the photograph reduced until the disc has a radius of 56 pixels,
under the label "optic_disc". At their own scale hrf's, fives' and idrid's discs are larger than a
tile, so that it shows an arc of the rim at most, and of a grid one tile in twenty shows any of it.
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
DARK = 18  # grey level; a tile has at most a twentieth of it
# Pixels: a disc's radius in each set of photographs, and what they are reduced to.
RADII = {"chase_db1": 78, "fives": 120, "hrf": 215, "idrid": 230}
RADIUS = 56
# Pixels between the middles of two tiles, and from the disc's middle at most: it is in the tile.
STRIDE, REACH = 18, 76


def around(rng, disc):
    """First rows and columns of tiles that have a disc in them."""
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
    rows = read_manifest(os.path.join(arguments.tiles, MANIFEST))
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
                f"{arguments.discs}: {name!r} has no tiles in {arguments.tiles}, or is of none of "
                f"{', '.join(RADII)}, whose scale is known; take its row out, or add it to RADII"
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
        for y, x in around(rng, centre):
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
        f"{len(more)} tiles of {len(discs)} discs beside {len(rows) - len(more)}: {arguments.out}"
    )


if __name__ == "__main__":
    main()
