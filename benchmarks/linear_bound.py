"""Upper bound of a linear codec over PCA, by preset: the principal component filter bank.

    python benchmarks/linear_bound.py --data_dir D [--tiles 1536]

The best linear codec with kernels of any length keeps the leading eigenvectors of the patches'
spectral density at each spatial frequency (Tsatsanis and Giannakis, 1995). The spectra are those of
the sample itself, which is optimistic by about 0.1 dB (6,144 windows for 192 x 192 values).
"""

import argparse

import numpy as np

from vae.configs.fundus256 import LATENT_CHANNELS
from vae.data.pipeline import first_tiles, open_dataset
from vae.models import fit_pca
from vae.models.overlapping_ppca import patch_spectra


def main() -> None:
    """Estimates the spectra and prints a line per preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--tiles", type=int, default=1536)
    options = parser.parse_args()
    dataset = open_dataset(options.data_dir)

    def tiles():
        return first_tiles(dataset, size=256, seed=0, count=options.tiles)

    spectra = patch_spectra(tiles(), fit_pca(tiles(), 1, 8), kernel=1)
    eigenvalues = np.linalg.eigvalsh(spectra.density)
    # The weighted mean of the density over frequencies is the covariance of single patches.
    covariance = np.tensordot(spectra.weights, spectra.density, (0, 0)).real
    variances = np.linalg.eigvalsh(covariance)
    for preset, channels in LATENT_CHANNELS.items():
        pca = variances[:-channels].sum()
        bound = spectra.weights @ eigenvalues[:, :-channels].sum(axis=1)
        print(f"{preset:6} {10 * np.log10(pca / bound):+.2f} dB above PCA")


if __name__ == "__main__":
    main()
