"""Models: arrays in, arrays out, no input or output of files."""

from vae.models.autoencoder import AutoencoderKL, with_start
from vae.models.enhancer import Enhancer, with_autoencoder
from vae.models.lapped import Lapped, fit_lapped
from vae.models.pca import PCA, fit_pca
from vae.models.posterior import Posterior
from vae.models.published import FundusVAE

__all__ = [
    "PCA",
    "AutoencoderKL",
    "Enhancer",
    "FundusVAE",
    "Lapped",
    "Posterior",
    "fit_lapped",
    "fit_pca",
    "with_autoencoder",
    "with_start",
]
