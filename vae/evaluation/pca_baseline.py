"""The linear codec that stands beside a model."""

import math
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from vae.data.pipeline import Dataset, first_tiles
from vae.evaluation.scoring import latent_size
from vae.models.pca import PCA, fit_pca

# Patches along a side of a tile, of the PCA beside a model with one vector a tile: its few values
# go further over large patches.
PATCHES = 8


def pca_beside(
    module: nn.Module, config: ConfigDict, variables: Any, dataset: Dataset
) -> PCA | None:
    """The linear codec of about the model's latent size, for the row `pca`.

    An AutoencoderKL brings the fit that it started from. For another model one is made of the
    dataset's training tiles; None where there are none.
    """
    if "pca" in variables:
        return variables["pca"]["fit"]
    side = config.data.size
    patch = math.gcd(side, max(side // PATCHES, 1))
    latents = latent_size(module, variables, (side, side, 3))
    channels = round(latents / (side // patch) ** 2)
    return _fit(config, dataset, min(max(channels, 1), 3 * patch**2), patch)


def wider_pca(pca: PCA | None, config: ConfigDict, dataset: Dataset) -> PCA | None:
    """A fit to the dataset with twice the components, for curves beyond the model's own size."""
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
