"""Classical enhancement with scikit-image: uint8 [H, W, 3] -> uint8 [H, W, 3]."""

from collections.abc import Callable

import numpy as np
from skimage import exposure, filters, restoration

Method = Callable[[np.ndarray], np.ndarray]


def clahe(image: np.ndarray) -> np.ndarray:
    """Applies contrast-limited adaptive histogram equalisation (Zuiderveld, 1994) to the HSV value,
    in 8 x 8 regions with clip limit 0.01."""
    return _to_uint8(exposure.equalize_adapthist(image, clip_limit=0.01))


def unsharp_mask(image: np.ndarray) -> np.ndarray:
    """Adds the image's difference from a Gaussian blur of 2 pixels."""
    # scikit-image 0.26 leaves the channels unset with channel_axis=-1.
    made = filters.unsharp_mask(image / 255, radius=2, amount=1.0, channel_axis=2)
    return _to_uint8(made)


def non_local_means(image: np.ndarray) -> np.ndarray:
    """Averages similar patches (Buades et al., 2005), with a strength from the estimated noise.

    Patches of 5 pixels, search distance 6 pixels, h = 0.8 sigma.
    """
    values = image / 255
    sigma = _noise(values)
    made = restoration.denoise_nl_means(
        values, 5, 6, h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )
    return _to_uint8(made)


def wiener(image: np.ndarray) -> np.ndarray:
    """Deconvolves a Gaussian blur of 1.5 pixels (Wiener, 1949), with regularisation 0.1."""
    offsets = np.arange(-6, 7)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    # The filter assumes a periodic image; reflected borders avoid ringing at the edges.
    wide = np.pad(image / 255, ((16, 16), (16, 16), (0, 0)), mode="symmetric")
    made = np.stack(
        [restoration.wiener(wide[..., i], kernel, 0.1, clip=False) for i in range(3)], axis=-1
    )
    return _to_uint8(made[16:-16, 16:-16])


METHODS: dict[str, Method] = {
    "clahe": clahe,
    "unsharp_mask": unsharp_mask,
    "non_local_means": non_local_means,
    "wiener": wiener,
}


def _noise(values: np.ndarray) -> float:
    """Estimates the noise's standard deviation: median of the finest diagonal Haar details (Donoho
    and Johnstone, 1994), mean over channels."""
    even, odd = values[:-1:2], values[1::2]
    details = (even[:, :-1:2] - even[:, 1::2] - odd[:, :-1:2] + odd[:, 1::2]) / 2
    return float(np.mean(np.median(np.abs(details), axis=(0, 1))) / 0.6745)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
