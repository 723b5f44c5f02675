"""Models: arrays in, arrays out, no input or output of files."""

from vae.models.autoencoder import AutoencoderKL, with_start
from vae.models.enhancer import Enhancer
from vae.models.lapped import Lapped, fit_lapped
from vae.models.pca import PCA, fit_pca
from vae.models.posterior import Posterior
from vae.models.prior import LatentFlow, with_spectrum
from vae.models.published import FundusVAE
from vae.models.spectrum import Spectrum, fit_spectrum

__all__ = [
    "PCA",
    "AutoencoderKL",
    "Enhancer",
    "FundusVAE",
    "Lapped",
    "LatentFlow",
    "Posterior",
    "Spectrum",
    "fit_lapped",
    "fit_pca",
    "fit_spectrum",
    "with_spectrum",
    "with_start",
]
