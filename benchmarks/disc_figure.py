"""Figure of tiles with whole optic discs: training tiles, samples, and samples with guidance.

    python benchmarks/disc_figure.py tiles_disc docs/figures/optic_discs.jpg

Uses the tree of tiles of `benchmarks/disc_tiles.py` and the bundled prior. Prints the distance of
sampled tiles to the nearest training tile with a disc, and that of real tiles to the nearest tile
of another photograph: a copy would be much nearer.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

import vae
from vae.data.images import read_image, write_image
from vae.data.manifest import MANIFEST, read_manifest
from vae.evaluation.samples.measures import nearest
from vae.evaluation.samples.summary import shrunk

LABEL = "optic_disc"
COLUMNS, SIDE, GAP = 12, 112, 8
COMPARED = 48  # tiles per set of distances


def row(tiles) -> np.ndarray:
    small = [cv2.resize(tile, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for tile in tiles]
    return np.concatenate(small, axis=1)


def print_distances(drawn, training, photographs) -> None:
    """Prints distances of sampled tiles, and of real tiles to other photographs, in grey levels."""
    training, real = shrunk(training), []
    for i in np.random.default_rng(1).choice(len(training), COMPARED, replace=False):
        real.append(nearest(training[[i]], training[photographs != photographs[i]])[0])
    for name, found in (("drawn", nearest(shrunk(drawn), training)), ("real", np.array(real))):
        print(
            f"{name}: the nearest training tile is {np.median(found):.1f} grey levels away "
            f"(median of {len(found)}; {found.min():.1f} to {found.max():.1f})"
        )


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    discs = [tile for tile in read_manifest(folder / MANIFEST) if tile.label == LABEL]
    chosen = np.random.default_rng(0).choice(len(discs), COLUMNS, replace=False)
    sampler = vae.load_sampler()
    training = np.stack([read_image(folder / disc.tile) for disc in discs])
    rows = [row(training[chosen])]
    drawn = sampler.sample(range(COMPARED), seed=0, label=LABEL)
    guided = sampler.sample(range(COLUMNS), seed=0, label=LABEL, guidance=2.0)
    rows += [row(drawn[:COLUMNS]), row(guided)]
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    write_image(out, np.concatenate([rows[0], gap, rows[1], gap, rows[2]]), quality=88)
    print(f"{out}: {out.stat().st_size:,} bytes")
    print_distances(drawn, training, np.array([disc.photograph for disc in discs]))


if __name__ == "__main__":
    main()
