"""The terms of the objective, compared with closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae.metrics import ssim
from vae.models import Posterior
from vae.tasks.losses import Terms, negative_log_likelihood, objective_terms


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    return x, (x + rng.normal(0, 0.1, x.shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("likelihood", "distribution"),
    [("gaussian", scipy.stats.norm), ("laplace", scipy.stats.laplace)],
)
def test_likelihood_matches_scipy(pair, likelihood, distribution):
    x, mean = pair
    nll = negative_log_likelihood(x, mean, jnp.log(0.07), likelihood)
    expected = -distribution(mean, 0.07).logpdf(x).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_per_example_scale(pair):
    x, mean = pair
    nll = negative_log_likelihood(x, mean, jnp.float32(5), "per_example_gaussian")
    deviation = np.sqrt(np.square(x - mean).mean(axis=(1, 2, 3)))
    expected = [
        -scipy.stats.norm(m, d).logpdf(a).sum() for a, m, d in zip(x, mean, deviation, strict=True)
    ]
    # The variance of 8-bit rounding is added to every variance.
    np.testing.assert_allclose(nll, expected, rtol=1e-3)
    halved = negative_log_likelihood(x, (x + mean) / 2, jnp.float32(5), "per_example_gaussian")
    np.testing.assert_allclose(nll - halved, x[0].size * np.log(2), rtol=2e-3)
    same = negative_log_likelihood(x, x, jnp.float32(5), "per_example_gaussian")
    assert np.isfinite(same).all() and (same < halved).all()


def test_details_count_even_if_the_colour_is_wrong(pair):
    x, mean = pair
    nll = functools.partial(negative_log_likelihood, log_scale=jnp.float32(5))
    # Without mean errors of the channels both terms are equal.
    even = mean + jnp.mean(x - mean, axis=(1, 2), keepdims=True)
    expected = nll(x, even, likelihood="per_example_gaussian")
    np.testing.assert_allclose(nll(x, even, likelihood="per_example_details"), expected, rtol=1e-5)
    off = even + jnp.array([0.3, -0.2, 0.1])
    half = (expected + nll(x, off, likelihood="per_example_gaussian")) / 2
    np.testing.assert_allclose(nll(x, off, likelihood="per_example_details"), half, rtol=1e-4)


def test_unknown_likelihood(pair):
    with pytest.raises(ValueError, match="'cauchy'"):
        negative_log_likelihood(*pair, jnp.float32(0), "cauchy")


def test_units(pair):
    x, mean = pair
    rng = np.random.default_rng(1)
    posterior = Posterior(
        jnp.asarray(rng.normal(size=(3, 2, 2, 4)), jnp.float32), jnp.full((3, 2, 2, 4), -1.0)
    )
    terms = objective_terms(x, mean, jnp.float32(-2.0), posterior, "gaussian")
    assert terms.values == 16 * 16 * 3
    assert terms.nll.shape == terms.kl.shape == terms.ssim.shape == (3,)
    loss = terms.loss(beta=0.5, ssim_weight=4.0)
    expected = (terms.nll + 0.5 * terms.kl) / 768 + 4 * (1 - ssim((x + 1) / 2, (mean + 1) / 2))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    bits = (terms.nll + terms.kl) / 768 / np.log(2) + np.log2(127.5)
    np.testing.assert_allclose(terms.bits_per_dim(), bits, rtol=1e-6)


def test_bits_of_a_perfect_uniform_code():
    """The uniform density 1/2 over [-1, 1] corresponds to 256 equally likely levels: 8 bits."""
    flat = Terms(nll=48 * jnp.log(jnp.array([2.0])), kl=jnp.zeros(1), ssim=jnp.ones(1), values=48)
    assert float(flat.bits_per_dim()[0]) == pytest.approx(8 - np.log2(256 / 255), abs=1e-6)


def test_calibrated_scale_minimises_the_likelihood(pair):
    x, mean = pair
    best = np.log(np.sqrt(np.mean((x - mean) ** 2)))
    gradient = jax.grad(lambda s: negative_log_likelihood(x, mean, s, "gaussian").sum())
    assert abs(float(gradient(jnp.float32(best)))) < 1e-2 * x.size * 0.01
