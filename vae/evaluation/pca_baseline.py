"""The PCA baseline of a model."""

import math
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from vae.data.pipeline import Dataset, first_tiles
from vae.evaluation.scoring import latent_size
from vae.models.pca import PCA, fit_pca

# Patches along a tile's side for the PCA of a model with one vector per tile: with so few values,
# large patches give the better PCA.
PATCHES = 8


def pca_of_equal_size(
    module: nn.Module, config: ConfigDict, variables: Any, dataset: Dataset
) -> PCA | None:
    """Returns the PCA of about the model's latent size, for the row `pca`.

    An AutoencoderKL contains the PCA of its initialization. For other models, a PCA is fitted to
    the dataset's training tiles; None without training tiles.
    """
    if "pca" in variables:
        return variables["pca"]["fit"]
    side = config.data.size
    patch = math.gcd(side, max(side // PATCHES, 1))
    latents = latent_size(module, variables, (side, side, 3))
    channels = round(latents / (side // patch) ** 2)
    return _fit(config, dataset, min(max(channels, 1), 3 * patch**2), patch)


def wider_pca(pca: PCA | None, config: ConfigDict, dataset: Dataset) -> PCA | None:
    """Fits a PCA with twice the components, for curves beyond the model's own size."""
    if pca is None:
        return None
    return _fit(config, dataset, min(2 * pca.sd.size, pca.mean.size), pca.downsample) or pca


def _fit(config: ConfigDict, dataset: Dataset, channels: int, patch: int) -> PCA | None:
    if not dataset.counts.get("train"):
        return None
    tiles = first_tiles(
        dataset, size=config.data.size, seed=config.seed, count=config.data.fit_tiles
    )
    return fit_pca(tiles, channels, patch)
