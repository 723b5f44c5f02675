"""The filters that an enhancer mixes at each patch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vae.models.filter_bank import KERNELS, REACH, FilterBank

HEIGHT, WIDTH, PATCH, FEATURES = 24, 16, 4, 5


@pytest.fixture(scope="module")
def bank():
    module = FilterBank(jnp.float32)
    x = np.random.default_rng(0).uniform(-1, 1, (2, HEIGHT, WIDTH, 3)).astype(np.float32)
    features = np.random.default_rng(1).normal(size=(2, HEIGHT // PATCH, WIDTH // PATCH, FEATURES))
    variables = module.init(jax.random.key(0), x, features)
    return module, variables, x, features.astype(np.float32)


def mixed_by(variables, bias):
    """The same with a mixture that is the same everywhere, [3, KERNELS]."""
    params = dict(variables["params"])
    params["mixing"] = {**params["mixing"], "bias": jnp.asarray(bias, jnp.float32).ravel()}
    return {"params": params}


def test_changes_nothing_at_the_start(bank):
    module, variables, x, features = bank
    np.testing.assert_array_equal(module.apply(variables, x, features), np.zeros_like(x))


@pytest.mark.parametrize("number", [0, 3, KERNELS - 1])
def test_is_the_filter_that_scipy_computes(bank, number):
    module, variables, x, features = bank
    bias = np.zeros((3, KERNELS))
    bias[1, number] = 2.0
    made = np.asarray(module.apply(mixed_by(variables, bias), x, features))
    kernel = np.asarray(variables["params"]["kernels"])[..., number]
    kernel = kernel - kernel.mean()
    for image, changed in zip(x, made, strict=True):
        expected = 2 * ndimage.correlate(image[..., 1].astype(np.float64), kernel, mode="nearest")
        # Sums of 169 products of float32.
        np.testing.assert_allclose(changed[..., 1], expected, atol=1e-5)
        assert not changed[..., [0, 2]].any()


def test_patches_have_mixtures_of_their_own(bank):
    module, variables, x, features = bank
    params = dict(variables["params"])
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=params["mixing"]["kernel"].shape).astype(np.float32)
    params["mixing"] = {**params["mixing"], "kernel": kernel}
    apply = jax.jit(module.apply)
    before = apply({"params": params}, x, features)
    features = features.copy()
    features[0, 2, 1] += 1
    moved = np.abs(apply({"params": params}, x, features) - before).max(axis=-1)
    rows, columns = np.nonzero(moved[0])
    assert set(rows // PATCH) == {2} and set(columns // PATCH) == {1}
    assert not moved[1].any()


def test_an_even_brightness_stays_one(bank):
    module, variables, x, features = bank
    variables = mixed_by(variables, np.ones((3, KERNELS)))
    made = module.apply(variables, np.full_like(x, 0.7), features)
    np.testing.assert_allclose(made, 0, atol=2e-5)


def test_kernels_are_orthonormal_and_see_no_even_brightness(bank):
    kernels = np.asarray(bank[1]["params"]["kernels"]).reshape(-1, KERNELS)
    assert len(kernels) == (2 * REACH + 1) ** 2
    np.testing.assert_allclose(kernels.T @ kernels, np.eye(KERNELS), atol=1e-5)
    np.testing.assert_allclose(kernels.sum(axis=0), 0, atol=1e-5)
