"""Models: arrays in, arrays out, no input or output of files."""

from vae.models.autoencoder import AutoencoderKL, with_pca
from vae.models.pca import PCA, fit_pca
from vae.models.posterior import Posterior

__all__ = ["PCA", "AutoencoderKL", "Posterior", "fit_pca", "with_pca"]
