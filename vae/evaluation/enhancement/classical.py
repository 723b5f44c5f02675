"""Classical enhancement, by scikit-image's functions: uint8 [H, W, 3] -> uint8 [H, W, 3]."""

from collections.abc import Callable

import numpy as np
from skimage import exposure, filters, restoration

Method = Callable[[np.ndarray], np.ndarray]


def clahe(image: np.ndarray) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, 1994) of HSV's value, in 8 x 8
    regions, clipped at 0.01."""
    return _to_uint8(exposure.equalize_adapthist(image, clip_limit=0.01))


def unsharp_mask(image: np.ndarray) -> np.ndarray:
    """The image plus its difference from a Gaussian blur of 2 pixels."""
    # Its channel_axis=-1 leaves the channels unset (0.26).
    made = filters.unsharp_mask(image / 255, radius=2, amount=1.0, channel_axis=2)
    return _to_uint8(made)


def non_local_means(image: np.ndarray) -> np.ndarray:
    """Means over similar patches (Buades et al., 2005), as strong as the noise that is estimated.

    Patches of 5 pixels, sought within 6; h = 0.8 sigma.
    """
    values = image / 255
    sigma = _noise(values)
    made = restoration.denoise_nl_means(
        values, 5, 6, h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )
    return _to_uint8(made)


def wiener(image: np.ndarray) -> np.ndarray:
    """Deconvolution of a Gaussian blur of 1.5 pixels (Wiener, 1949), regularised by 0.1."""
    offsets = np.arange(-6, 7)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    # It takes the image for periodic: reflected borders keep its edges from ringing.
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
    """The standard deviation of grain: median of the finest diagonal Haar details (Donoho and
    Johnstone, 1994), mean over channels."""
    even, odd = values[:-1:2], values[1::2]
    details = (even[:, :-1:2] - even[:, 1::2] - odd[:, :-1:2] + odd[:, 1::2]) / 2
    return float(np.mean(np.median(np.abs(details), axis=(0, 1))) / 0.6745)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
