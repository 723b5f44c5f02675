"""The best Gaussian model of a grid of latents with stationary statistics.

The model has one covariance of the channels for each frequency of a cosine transform over the tile.
Whitened latents have unit variance at every frequency and no correlations. Only non-Gaussian
structure remains: vessels, optic discs, the uniform colour of a photograph.
"""

import itertools
from collections.abc import Iterable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from vae.precision import HIGHEST

# Smallest variance relative to the largest of the same frequency; less is rounding error.
FLOOR = 1e-6


@flax.struct.dataclass
class Spectrum:
    """Mean of the latents, and square roots of the channel covariance at every frequency.

    Attributes:
      mean: float32 [C], the same at every position.
      colour: float32 [S, S, C, C], symmetric square root of each frequency's covariance.
      whiten: float32 [S, S, C, C], inverse of `colour`.
    """

    mean: jax.Array
    colour: jax.Array
    whiten: jax.Array


def cosines(size: int) -> np.ndarray:
    """Returns the matrix of the orthonormal DCT-II, float32 [frequency, position].

    The transform is from Ahmed, Natarajan and Rao (1974). The low frequencies of white noise are
    white noise on a coarser grid.
    """
    return scipy.fft.dct(np.eye(size), axis=0, norm="ortho").astype(np.float32)


def to_waves(x: jax.Array) -> jax.Array:
    """Transforms grids [B, S, S, C] to orthonormal DCT coefficients [B, S, S, C]."""
    waves = cosines(x.shape[1])
    return jnp.einsum("uy,byxc,vx->buvc", waves, x, waves, precision=HIGHEST)


def from_waves(coefficients: jax.Array) -> jax.Array:
    """Inverts `to_waves`."""
    waves = cosines(coefficients.shape[1])
    return jnp.einsum("uy,buvc,vx->byxc", waves, coefficients, waves, precision=HIGHEST)


def whitened(latents: jax.Array, spectrum: Spectrum) -> jax.Array:
    """Transforms latents [B, S, S, C] to coefficients [B, S, S, C] of mean 0 and covariance 1."""
    coefficients = to_waves(latents - spectrum.mean)
    return jnp.einsum("uvkc,buvc->buvk", spectrum.whiten, coefficients, precision=HIGHEST)


def coloured(coefficients: jax.Array, spectrum: Spectrum) -> jax.Array:
    """Inverts `whitened`; standard normal coefficients give a sample of the Gaussian model."""
    waves = jnp.einsum("uvkc,buvc->buvk", spectrum.colour, coefficients, precision=HIGHEST)
    return from_waves(waves) + spectrum.mean


def rings(size: int) -> np.ndarray:
    """Returns the larger of the two frequency indices of each coefficient: int [S, S]."""
    return np.maximum.outer(np.arange(size), np.arange(size))


def bands(size: int, levels: int) -> np.ndarray:
    """Returns masks of the frequencies that each level of a pyramid adds, from fine to coarse, and
    of the mean: float32 [levels + 1, S, S] of 0 and 1; each frequency is in exactly one mask."""
    edges = [size >> level for level in range(levels)] + [1, 0]
    found = [(rings(size) < high) & (rings(size) >= low) for high, low in itertools.pairwise(edges)]
    return np.stack(found).astype(np.float32)


def octaves(size: int) -> np.ndarray:
    """Returns weights that give every octave the same total: float32 [S, S], of mean 1.

    Frequencies per ring and rings per octave are both proportional to the frequency, so the weights
    are proportional to 1 / (1 + ring)^2.
    """
    weights = 1.0 / (1.0 + rings(size)) ** 2
    return (weights / weights.mean()).astype(np.float32)


def fit_spectrum(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Spectrum:
    """Fits the Gaussian model to latents, symmetrised over exchanges of rows and columns.

    Args:
      batches: Posterior means float32 [b, S, S, C] and variances of the same shape. The covariance
        of posterior samples is that of the means plus the mean of the variances.

    Returns:
      The fit as numpy arrays; sums are float64.

    Raises:
      ValueError: There are no latents, or some are not finite.
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
    # A constant mean has only the coefficient of frequency 0, which is S times the mean.
    covariance[0, 0] -= np.outer(mean, mean) * len(covariance) ** 2
    covariance = (covariance + covariance.swapaxes(0, 1)) / 2 + np.diag(noise / count)
    variance, vectors = np.linalg.eigh(covariance)
    deviation = np.sqrt(np.maximum(variance, FLOOR * variance[..., -1:]))
    roots = [
        np.einsum("uvck,uvk,uvdk->uvcd", vectors, power, vectors).astype(np.float32)
        for power in (deviation, 1 / deviation)
    ]
    return Spectrum(mean.astype(np.float32), *roots)
