"""What a linear codec gains that knows where JPEG's blocks begin, by preset and label.

    python benchmarks/jpeg_grid.py --data_dir D [--preset f8c32 f8c48]

PCA of patches, and with the components of each phase beside it (`vae.models.grid`), both fitted to
training tiles, on val tiles: SSIM and PSNR of what they reconstruct, rounded to 8 bits.
"""

import argparse

import jax
import numpy as np
from recipe import score, val_tiles

from vae.configs.fundus256 import LATENT_CHANNELS
from vae.data.pipeline import first_tiles, open_dataset
from vae.models import AutoencoderKL, fit_pca, grid, with_start

PRESETS = ("f8c32", "f8c48")


def main() -> None:
    """Fits, and prints a line for each preset and label."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--preset", nargs="+", default=PRESETS, choices=PRESETS)
    options = parser.parse_args()
    dataset = open_dataset(options.data_dir)

    def training():
        return first_tiles(dataset, size=256, seed=0)

    tiles = val_tiles(dataset, 256, 0)
    for preset in options.preset:
        pca = fit_pca(training(), LATENT_CHANNELS[preset], 8)
        components = grid.fit_grid(training(), pca)
        found = {}
        for jpeg_grid in ("", "both"):
            model = AutoencoderKL(LATENT_CHANNELS[preset], linear_kernel=1, jpeg_grid=jpeg_grid)
            blank = model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
            start = with_start(blank, pca, components=components if jpeg_grid else None)
            found[jpeg_grid] = score(_codec(model), start, tiles)
        for label, before in found[""].items():
            after = found["both"][label]
            print(
                f"{preset:6} {label:10} {before['ssim']:.4f} / {before['psnr']:.2f} dB, knowing "
                f"the grid {after['ssim']:.4f} / {after['psnr']:.2f} dB "
                f"({after['psnr'] - before['psnr']:+.2f})"
            )


def _codec(model: AutoencoderKL):
    def reconstruct(variables, x):
        posterior = model.apply(variables, x, method="encode")
        return model.apply(variables, posterior.mean, method="decode"), posterior.kl()

    return reconstruct


if __name__ == "__main__":
    main()
