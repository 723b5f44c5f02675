"""The best Gaussian model of a grid of latents whose statistics are the same everywhere.

Cosine waves over the tile, and of each wave the covariance of the channels: whitened by it, latents
have unit variance at every frequency and no correlations. What is left is what is not Gaussian:
vessels, discs, and that a photograph has one colour.
"""

import itertools
from collections.abc import Iterable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from vae.precision import HIGHEST

# Of a frequency's largest variance: less than this is rounding.
FLOOR = 1e-6


@flax.struct.dataclass
class Spectrum:
    """Mean, and at every frequency the roots of the covariance of channels.

    Attributes:
      mean: float32 [C], of every position.
      colour: float32 [S, S, C, C], symmetric: the square root of each frequency's covariance.
      whiten: float32 [S, S, C, C], its inverse.
    """

    mean: jax.Array
    colour: jax.Array
    whiten: jax.Array


def cosines(size: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) of `size` values: float32 [frequency, place].

    Ahmed, Natarajan and Rao (1974). The leading frequencies of white noise are white noise on a
    coarser grid.
    """
    return scipy.fft.dct(np.eye(size), axis=0, norm="ortho").astype(np.float32)


def to_waves(x: jax.Array) -> jax.Array:
    """Grids [B, S, S, C] -> coefficients of cosine waves [B, S, S, C], orthonormal."""
    waves = cosines(x.shape[1])
    return jnp.einsum("uy,byxc,vx->buvc", waves, x, waves, precision=HIGHEST)


def from_waves(coefficients: jax.Array) -> jax.Array:
    """The inverse of `to_waves`."""
    waves = cosines(coefficients.shape[1])
    return jnp.einsum("uy,buvc,vx->byxc", waves, coefficients, waves, precision=HIGHEST)


def whitened(latents: jax.Array, spectrum: Spectrum) -> jax.Array:
    """Latents [B, S, S, C] -> coefficients [B, S, S, C] of mean 0 and covariance 1."""
    coefficients = to_waves(latents - spectrum.mean)
    return jnp.einsum("uvkc,buvc->buvk", spectrum.whiten, coefficients, precision=HIGHEST)


def coloured(coefficients: jax.Array, spectrum: Spectrum) -> jax.Array:
    """The inverse of `whitened`; of standard normal values, a sample of the Gaussian."""
    waves = jnp.einsum("uvkc,buvc->buvk", spectrum.colour, coefficients, precision=HIGHEST)
    return from_waves(waves) + spectrum.mean


def rings(size: int) -> np.ndarray:
    """Distance of each frequency from 0, the larger of its two: int [S, S]."""
    return np.maximum.outer(np.arange(size), np.arange(size))


def bands(size: int, levels: int) -> np.ndarray:
    """Which frequencies each level of a pyramid adds, from fine to coarse, and last the mean:
    float32 [levels + 1, S, S] of 0 and 1, every frequency in one of them."""
    edges = [size >> level for level in range(levels)] + [1, 0]
    found = [(rings(size) < high) & (rings(size) >= low) for high, low in itertools.pairwise(edges)]
    return np.stack(found).astype(np.float32)


def octaves(size: int) -> np.ndarray:
    """Weights of frequencies by which every octave counts alike: float32 [S, S], of mean 1.

    A square ring of frequencies has as many of them as its distance from 0 is long, and an octave
    as many rings.
    """
    weights = 1.0 / (1.0 + rings(size)) ** 2
    return (weights / weights.mean()).astype(np.float32)


def fit_spectrum(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Spectrum:
    """Fits to latents, which may lie in all eight symmetries of the square.

    Args:
      batches: Posterior means float32 [b, S, S, C] and variances of the same shape; a sample's
        covariance is that of the means and the mean of the variances.

    Returns:
      The fit, numpy arrays; sums are float64.

    Raises:
      ValueError: No latents, or some that are not finite.
    """
    count, total = 0, 0.0
    moments = noise = None
    for means, variances in batches:
        means, variances = (np.asarray(array, np.float64) for array in (means, variances))
        waves = cosines(means.shape[1]).astype(np.float64)
        coefficients = np.einsum("uy,byxc,vx->buvc", waves, means, waves, optimize=True)
        moment = np.einsum("buvc,buvk->uvck", coefficients, coefficients, optimize=True)
        spread = variances.mean(axis=(1, 2)).sum(axis=0)
        moments, noise = (moment, spread) if count == 0 else (moments + moment, noise + spread)
        total = total + means.mean(axis=(1, 2)).sum(axis=0)
        count += len(means)
    if count == 0 or not np.isfinite(moments).all():
        raise ValueError(f"a spectrum needs finite latents, got {count} images")
    mean = total / count
    covariance = moments / count
    # The mean is the same everywhere: a wave of frequency 0, of side times its height.
    covariance[0, 0] -= np.outer(mean, mean) * len(covariance) ** 2
    covariance = (covariance + covariance.swapaxes(0, 1)) / 2 + np.diag(noise / count)
    variance, vectors = np.linalg.eigh(covariance)
    deviation = np.sqrt(np.maximum(variance, FLOOR * variance[..., -1:]))
    roots = [
        np.einsum("uvck,uvk,uvdk->uvcd", vectors, power, vectors).astype(np.float32)
        for power in (deviation, 1 / deviation)
    ]
    return Spectrum(mean.astype(np.float32), *roots)
