"""Models as functions of arrays. This package reads and writes no files."""

from vae.models.autoencoder import AutoencoderKL, with_linear_codec
from vae.models.enhancer import Enhancer
from vae.models.overlapping_ppca import OverlappingPPCA, fit_overlapping_ppca
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
    "LatentFlow",
    "OverlappingPPCA",
    "Posterior",
    "Spectrum",
    "fit_overlapping_ppca",
    "fit_pca",
    "fit_spectrum",
    "with_linear_codec",
    "with_spectrum",
]
