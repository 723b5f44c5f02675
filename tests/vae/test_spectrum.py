"""The best stationary Gaussian of a grid of latents."""

import numpy as np
import pytest

from vae.models.spectrum import (
    coloured,
    cosines,
    fit_spectrum,
    from_waves,
    octaves,
    to_waves,
    whitened,
)


def correlated(count, side=8, channels=3, seed=0):
    """Returns latents with a mean that are correlated over space and channels."""
    rng = np.random.default_rng(seed)
    waves = rng.standard_normal((count, side, side, channels)).astype(np.float32)
    ring = np.maximum.outer(np.arange(side), np.arange(side))
    waves /= (1 + ring)[..., None]
    mixed = waves @ np.array([[2, 1, 0], [0, 1, 0.5], [0, 0, 0.3]], np.float32)
    return np.asarray(from_waves(mixed)) + np.array([1, -2, 3], np.float32)


def batches(latents, noise=0.0, size=100):
    for start in range(0, len(latents), size):
        part = latents[start : start + size]
        yield part, np.full_like(part, noise)


def test_dct_is_orthonormal_and_its_low_frequencies_are_a_coarser_grid():
    waves = cosines(8)
    np.testing.assert_allclose(waves @ waves.T, np.eye(8), atol=1e-6)
    flat = np.full((1, 8, 8, 2), 3.0, np.float32)
    coarse = from_waves(to_waves(flat)[:, :2, :2])
    # The same image on a 2 x 2 grid; the orthonormal scaling makes its values 4 times as large.
    np.testing.assert_allclose(coarse, np.full((1, 2, 2, 2), 12.0), rtol=1e-5)


def test_waves_round_trip():
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(from_waves(to_waves(x)), x, atol=1e-5)


def test_whitened_latents_are_white():
    latents = correlated(4000)
    spectrum = fit_spectrum(batches(latents))
    white = np.asarray(whitened(correlated(4000, seed=1), spectrum))
    # Five standard errors of estimates from 4,000 samples: 5 / sqrt(4000).
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=0.08)
    covariance = np.einsum("buvc,buvk->uvck", white, white) / len(white)
    # The fit is symmetric in rows and columns, so each value is a mean of two.
    np.testing.assert_allclose(covariance, np.broadcast_to(np.eye(3), covariance.shape), atol=0.13)


def test_coloured_inverts_whitened_and_draws_the_fitted_gaussian():
    latents = correlated(2000)
    spectrum = fit_spectrum(batches(latents))
    np.testing.assert_allclose(coloured(whitened(latents[:5], spectrum), spectrum), latents[:5],
                               atol=1e-3)  # fmt: skip
    noise = np.random.default_rng(2).standard_normal(latents.shape).astype(np.float32)
    made = np.asarray(coloured(noise, spectrum))
    assert made.mean(axis=(0, 1, 2)) == pytest.approx([1, -2, 3], abs=0.15)
    for axes in ((0,), (0, 1, 2)):
        np.testing.assert_allclose(made.std(axis=axes), latents.std(axis=axes), rtol=0.15)


def test_fit_includes_the_posterior_variance():
    latents = correlated(500)
    plain, noisy = (fit_spectrum(batches(latents, noise)) for noise in (0.0, 0.25))
    total = [
        np.trace(np.einsum("uvck,uvdk->uvcd", fit.colour, fit.colour), axis1=2, axis2=3)
        for fit in (plain, noisy)
    ]
    np.testing.assert_allclose(total[1] - total[0], 3 * 0.25, atol=1e-3)


def test_octaves_have_equal_weights():
    weights = octaves(32)
    ring = np.maximum.outer(np.arange(32), np.arange(32))
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    sums = [weights[(ring >= low) & (ring < 2 * low)].sum() for low in (2, 4, 8, 16)]
    assert max(sums) / min(sums) < 1.4


@pytest.mark.parametrize("bad", [[], [np.full((2, 8, 8, 1), np.nan, np.float32)]])
def test_inputs_without_a_spectrum_are_refused(bad):
    with pytest.raises(ValueError, match="finite latents"):
        fit_spectrum((array, array) for array in bad)
