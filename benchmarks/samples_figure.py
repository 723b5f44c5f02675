"""Figure of real and sampled tiles, from the sheets of `fundus-vae evaluate-samples --out`.

python benchmarks/samples_figure.py results/samples docs/figures/samples.jpg
"""

import sys
from pathlib import Path

import numpy as np

from vae.data.images import read_image, write_image
from vae.evaluation.samples.run import SHEETS

ROWS = ("training_tiles", "gaussian", "prior")
GAP = 16


def main() -> None:
    folder, out = Path(sys.argv[1]) / SHEETS, Path(sys.argv[2])
    sheets = [read_image(folder / f"{name}.png") for name in ROWS]
    # The upper half of each sheet: two rows of tiles.
    halves = [sheet[: sheet.shape[0] // 2 + 2] for sheet in sheets]
    gap = np.full((GAP, halves[0].shape[1], 3), 255, np.uint8)
    write_image(out, np.concatenate([halves[0], gap, halves[1], gap, halves[2]]), quality=85)
    print(f"{out}: {', '.join(ROWS)} from above, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
