"""The posterior, the PCA start and the autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae.checkpoints.modules import make_model
from vae.configs.fundus256 import LATENT_CHANNELS, get_config
from vae.data.synthetic import fundus_photograph
from vae.metrics import to_float, to_uint8
from vae.models import AutoencoderKL, Posterior, fit_pca, with_linear_codec
from vae.models.layers import depth_to_space, space_to_depth
from vae.tasks import task_of
from vae.training.train_state import abstract_state

SMALL = AutoencoderKL(
    latent_channels=8, width=8, deep_width=8, encoder_depth=(1, 1), decoder_depth=(1, 1)
)


@pytest.fixture(scope="module")
def images():
    photograph = fundus_photograph(3, 256)
    starts = range(64, 160, 32)
    return np.stack([photograph[y : y + 32, x : x + 32] for y in starts for x in starts])


def perturbed(variables, scale=0.3, seed=0):
    """Perturbs every parameter, so that no path is zero."""
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        leaf + scale * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return {**variables, "params": jax.tree.unflatten(tree, moved)}


def psnr(a, b):
    return 10 * np.log10(4 / np.mean(np.square(np.asarray(a, np.float64) - np.asarray(b))))


def test_space_to_depth_and_back():
    x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    y = space_to_depth(x, 4)
    assert y.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(y[1, 1, 2].reshape(4, 4, 3), x[1, 4:8, 8:12])
    np.testing.assert_array_equal(depth_to_space(y, 4), x)
    with pytest.raises(ValueError, match="divisible by 5"):
        space_to_depth(x, 5)


def test_kl_matches_scipy():
    rng = np.random.default_rng(0)
    mean, log_var = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    kl = Posterior(jnp.asarray(mean), jnp.asarray(log_var)).kl()
    # KL = cross entropy - entropy; E_q[-log N(z; 0, 1)] = (log 2 pi + mean^2 + var) / 2.
    entropy = scipy.stats.norm(mean, np.exp(log_var / 2)).entropy()
    cross = 0.5 * (np.log(2 * np.pi) + mean**2 + np.exp(log_var))
    np.testing.assert_allclose(kl, (cross - entropy).sum(axis=(1, 2)), rtol=1e-5)


def test_samples_have_the_posterior_moments_and_depend_on_the_row():
    posterior = Posterior(jnp.full((4, 64, 64, 2), 0.5), jnp.full((4, 64, 64, 2), jnp.log(0.09)))
    key, rows = jax.random.key(1), jnp.arange(4)
    z = posterior.sample_rows(key, rows)
    # Five standard errors for 32,768 values: 0.0083 for the mean, 0.0059 for the deviation.
    assert abs(float(z.mean()) - 0.5) < 0.0083
    assert abs(float(z.std()) - 0.3) < 0.0059
    part = Posterior(posterior.mean[2:3], posterior.log_var[2:3]).sample_rows(key, rows[2:3])
    np.testing.assert_array_equal(part[0], z[2])
    assert not np.array_equal(z[0], z[1])


def test_pca_matches_numpy_svd(images):
    pca = fit_pca([images[:10], images[10:]], 8, 8)
    patches = np.asarray(space_to_depth(images.astype(np.float64) / 127.5 - 1, 8)).reshape(-1, 192)
    centred = patches - patches.mean(axis=0)
    _, singular, basis = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(pca.sd, singular[:8] / np.sqrt(len(patches)), rtol=1e-4)
    # Subspaces are compared: vectors of nearly equal variance may rotate within them.
    np.testing.assert_allclose(
        pca.components @ pca.components.T, basis[:8].T @ basis[:8], atol=2e-4
    )
    residual = centred - centred @ basis[:8].T @ basis[:8]
    assert float(pca.scale) == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-4)
    decoded = pca.decode(pca.encode(to_float(images)).mean)
    expected = np.mean(residual**2)
    assert np.mean((decoded - to_float(images)) ** 2) == pytest.approx(expected, rel=1e-3)


def test_pca_refuses():
    with pytest.raises(ValueError, match="no images"):
        fit_pca([], 8, 8)
    with pytest.raises(ValueError, match="cannot keep 200"):
        fit_pca([np.zeros((1, 8, 8, 3), np.uint8)], 200, 8)


def test_pca_of_flat_images_stays_finite():
    pca = fit_pca([np.full((2, 16, 16, 3), 128, np.uint8)], 8, 8)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pca))
    assert np.isfinite(pca.encode(jnp.zeros((1, 16, 16, 3))).mean).all()


def test_step_zero_is_pca(images):
    pca = fit_pca([images], 8, 8)
    x = to_float(images)
    variables = with_linear_codec(SMALL.init(jax.random.key(0), x), pca)
    posterior = SMALL.apply(variables, x, method="encode")
    expected = pca.encode(x)
    np.testing.assert_array_equal(posterior.mean, expected.mean)
    np.testing.assert_allclose(posterior.log_var, expected.log_var, rtol=1e-6)
    decoded = SMALL.apply(variables, posterior.mean, method="decode")
    np.testing.assert_array_equal(decoded, pca.decode(expected.mean))
    log_scale = SMALL.apply(variables, method="log_scale")
    assert float(log_scale) == pytest.approx(float(np.log(pca.scale)), abs=1e-5)
    sample = posterior.sample_rows(jax.random.key(1), jnp.arange(len(x)))
    sampled = SMALL.apply(variables, sample, method="decode")
    assert psnr(sampled, x) > psnr(decoded, x) - 1.5


@pytest.mark.parametrize("preset", LATENT_CHANNELS)
def test_presets_have_the_expected_shapes(preset):
    config = get_config(preset)
    state = abstract_state(task_of(config))
    module = make_model(config)
    x = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    posterior = jax.eval_shape(lambda v, x: module.apply(v, x, method="encode"), state.variables, x)
    assert posterior.mean.shape == (2, 32, 32, LATENT_CHANNELS[preset])
    image = jax.eval_shape(
        lambda v, z: module.apply(v, z, method="decode"), state.variables, posterior.mean
    )
    assert image.shape == (2, 256, 256, 3) and image.dtype == jnp.float32


def test_likelihood_scale_never_falls_below_rounding():
    variables = SMALL.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    variables["params"]["log_scale"] = jnp.float32(-50.0)
    floor = np.log(2 / 255 / np.sqrt(12))
    assert float(SMALL.apply(variables, method="log_scale")) == pytest.approx(floor, abs=1e-6)


def test_halo_equals_the_receptive_field():
    """Pixels beyond the halo do not affect an output, and those at its edge do; in both halves."""
    x = jax.random.uniform(jax.random.key(0), (1, 96, 96, 3)) * 2 - 1
    variables = perturbed(with_linear_codec(SMALL.init(jax.random.key(0), x), _unit_pca()))
    f, halo = SMALL.downsample, SMALL.encoder_halo

    def latent(x):
        posterior = SMALL.apply(variables, x, method="encode")
        return jnp.sum(posterior.mean[0, 6, 6]) + jnp.sum(posterior.log_var[0, 6, 6])

    reached = np.abs(jax.grad(latent)(x)[0]).sum(axis=-1) > 0
    rows = np.flatnonzero(reached.any(axis=1))
    assert (rows.min(), rows.max()) == (6 * f - halo, 7 * f - 1 + halo)

    z = SMALL.apply(variables, x, method="encode").mean
    position = 6 * f + 1

    def pixel(z):
        return jnp.sum(SMALL.apply(variables, z, method="decode")[0, position, position])

    reached = np.abs(jax.grad(pixel)(z)[0]).sum(axis=-1) > 0
    columns = np.flatnonzero(reached.any(axis=0))
    assert columns.min() == 6 - SMALL.decoder_halo
    assert columns.max() <= 6 + SMALL.decoder_halo


def _unit_pca():
    rng = np.random.default_rng(0)
    return fit_pca([rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)], 8, 8)


def test_precision_of_the_linear_path_does_not_follow_the_compute_dtype(images):
    """At step 0 the convolutions give zero, so bfloat16 changes nothing."""
    pca = fit_pca([images], 8, 8)
    x = to_float(images)
    half = SMALL.clone(dtype=jnp.bfloat16)
    variables = with_linear_codec(SMALL.init(jax.random.key(0), x), pca)
    np.testing.assert_array_equal(half.apply(variables, x), SMALL.apply(variables, x))


def test_wrong_depths_are_named():
    model = AutoencoderKL(downsample=16)
    with pytest.raises(ValueError, match="downsample=16"):
        model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_other_downsampling_factors():
    x = jnp.zeros((1, 64, 64, 3))
    for factor, depth in ((4, (1,)), (16, (1, 1, 1))):
        model = AutoencoderKL(
            latent_channels=4, downsample=factor, width=8, deep_width=8,
            encoder_depth=depth, decoder_depth=depth,
        )  # fmt: skip
        variables = model.init(jax.random.key(0), x)
        assert model.apply(variables, x, method="encode").mean.shape == (
            1, 64 // factor, 64 // factor, 4
        )  # fmt: skip
        assert model.apply(variables, x).shape == x.shape


def test_rounding_to_8_bits():
    levels = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(levels)), levels)
    np.testing.assert_array_equal(to_uint8(jnp.array([-3.0, 3.0])), [0, 255])
