"""Overlapping PPCA: its gradient, its gain over PCA, and the model at step 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.data.synthetic import fundus_photograph
from vae.metrics import to_float
from vae.models import AutoencoderKL, fit_overlapping_ppca, fit_pca, with_linear_codec
from vae.models.overlapping_ppca import _Problem, from_pca, patch_spectra
from vae.tasks.losses import objective_terms

MODEL = AutoencoderKL(
    latent_channels=6, width=8, deep_width=8, encoder_depth=(1, 1), decoder_depth=(1, 1)
)
init = jax.jit(MODEL.init)
apply = jax.jit(MODEL.apply, static_argnames="method")


def tiles(seed, count=48, size=64):
    photograph = fundus_photograph(seed, 400)
    origins = np.random.default_rng(seed).integers(80, 250, (count, 2))
    return np.stack([photograph[y : y + size, x : x + size] for y, x in origins])


@pytest.fixture(scope="module")
def fitted():
    images = tiles(0)
    pca = fit_pca([images], 6, 8)
    return images, pca, fit_overlapping_ppca([images[:20], images[20:]], pca, 3)


def test_gradient_is_that_of_the_loss(fitted):
    images, pca, _ = fitted
    problem = _Problem.of(patch_spectra([images], pca, 3), pca, 3, beta=0.5)
    rng = np.random.default_rng(0)
    point = problem.start + 0.01 * rng.standard_normal(problem.start.size)
    gradient = problem.loss_and_gradient(point)[1]
    for direction in [*rng.standard_normal((3, point.size)), np.eye(1, point.size, -1)[0]]:
        direction[-1] = direction[-1] or 1.0  # the last unknown is the scale
        step = 1e-6 * direction / np.linalg.norm(direction)
        low, high = (problem.loss_and_gradient(point + sign * step)[0] for sign in (-1, 1))
        assert (high - low) / 2 == pytest.approx(gradient @ step, rel=1e-4)


def test_start_is_the_elbo_of_pca(fitted):
    """The initial loss is that of PCA on independent patches, up to the tapering."""
    images, pca, _ = fitted
    problem = _Problem.of(patch_spectra([images], pca, 3), pca, 3, beta=1.0)
    analysis, synthesis, log_s = problem.kernels(problem.start)
    np.testing.assert_allclose(analysis[:, 4], pca.components.T, atol=1e-6)
    np.testing.assert_allclose(synthesis[:, 4], pca.components, atol=1e-6)
    assert np.abs(np.delete(analysis, 4, axis=1)).max() < 1e-6
    assert log_s == pytest.approx(np.log(pca.scale), abs=1e-6)


def test_overlap_beats_pca_on_other_photographs(fitted):
    """At least 0.25 dB in the mean, and a better ELBO; real photographs gain 0.75 dB."""
    _, pca, overlapping = fitted
    x = to_float(tiles(1))
    fresh = init(jax.random.key(0), x[:1])
    error, elbo = {}, {}
    for name, start in (("pca", None), ("overlapping", overlapping)):
        variables = with_linear_codec(fresh, pca, start)
        posterior = apply(variables, x, method="encode")
        image, sample = (
            apply(variables, z, method="decode")
            for z in (posterior.mean, posterior.sample_rows(jax.random.key(1), jnp.arange(len(x))))
        )
        log_scale = apply(variables, method="log_scale")
        terms = objective_terms(x, sample, log_scale, posterior, "gaussian")
        error[name] = float(jnp.mean(jnp.square(image - x)))
        elbo[name] = -float(jnp.mean(terms.loss(beta=1.0, ssim_weight=0.0)))
    assert 10 * np.log10(error["pca"] / error["overlapping"]) > 0.25
    assert elbo["overlapping"] > elbo["pca"]


def test_step_zero_is_the_fit(fitted):
    images, pca, overlapping = fitted
    x = to_float(images)
    variables = with_linear_codec(init(jax.random.key(0), x), pca, overlapping)
    posterior = apply(variables, x, method="encode")
    log_var = jnp.broadcast_to(overlapping.log_var, posterior.mean.shape)
    np.testing.assert_allclose(posterior.log_var, log_var)
    assert float(apply(variables, method="log_scale")) == pytest.approx(
        float(np.log(overlapping.scale)), abs=1e-4
    )
    # Latents have unit variance as in the prior, except that the fit used tapered windows.
    power = jnp.mean(jnp.square(posterior.mean), axis=(0, 1, 2)) + jnp.exp(overlapping.log_var)
    np.testing.assert_allclose(power, 1, atol=0.35)


def test_constant_images_stay_constant_at_the_border(fitted):
    _, pca, overlapping = fitted
    x = jnp.broadcast_to(jnp.array([0.3, -0.2, -0.6]), (1, 64, 64, 3))
    image = apply(with_linear_codec(init(jax.random.key(0), x), pca, overlapping), x)
    np.testing.assert_allclose(image[0, :8, :8], image[0, 24:32, 24:32], atol=1e-5)


def test_a_kernel_of_one_patch_is_pca(fitted):
    images, pca, _ = fitted
    for a, b in zip(
        jax.tree.leaves(fit_overlapping_ppca([images], pca, 1)),
        jax.tree.leaves(from_pca(pca)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_flat_images_stay_finite():
    images = np.full((2, 32, 32, 3), 128, np.uint8)
    overlapping = fit_overlapping_ppca([images], fit_pca([images], 6, 8), 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(overlapping))


@pytest.mark.parametrize(
    ("images", "kernel", "message"),
    [
        (np.zeros((1, 32, 32, 3), np.uint8), 2, "odd, got 2"),
        (np.zeros((1, 32, 32, 3), np.uint8), 5, "5 x 5 patches of 8 pixels does not fit"),
        (None, 3, "no images"),
    ],
)
def test_refuses(fitted, images, kernel, message):
    with pytest.raises(ValueError, match=message):
        fit_overlapping_ppca([] if images is None else [images], fitted[1], kernel)
