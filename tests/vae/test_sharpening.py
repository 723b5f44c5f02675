"""Sharpening: what a photograph's periodogram tells of it, and the filters made from that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vae.models.periodogram import FLOOR, HOP, SIDE, SPREAD, signature, window_powers
from vae.models.sharpening import REACH, Sharpening, correlate_each


def grain(height, width, seed=0):
    """White noise of 10 grey levels in each channel, as [1, H, W, 3] in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(0, 10, (1, height, width, 3))
    return (noise / 127.5).astype(np.float32)


def mean_power(x, inside=None):
    inside = np.ones(x.shape[:-1], bool) if inside is None else inside
    powers, count = window_powers(x, inside)
    return np.asarray(powers / count[:, None, None, None]), count


def test_white_noise_has_its_variance_everywhere():
    power, count = mean_power(grain(512, 512))
    assert count == (512 // HOP - 1) ** 2
    waves = np.hypot(np.fft.fftfreq(SIDE, 1 / SIDE)[:, None], np.arange(SIDE // 2 + 1))
    # Slower waves are taken out with the windows' means. Of 961 windows, a third as many by
    # themselves: 6% of each frequency.
    high = power[..., waves >= 3]
    assert high.mean() == pytest.approx(100, rel=0.02)
    assert high.min() > 70 and high.max() < 130


def test_a_blur_multiplies_it():
    x = grain(512, 512)
    kernel = np.zeros((5, 5))
    kernel[2] = 0.2  # a line of five pixels
    blurred = ndimage.correlate(x, kernel[None, :, :, None], mode="wrap")
    ratio = mean_power(blurred)[0] / mean_power(x)[0]
    u = np.arange(SIDE // 2 + 1) / SIDE
    transfer = (0.2 * (1 + 2 * np.cos(2 * np.pi * u) + 2 * np.cos(4 * np.pi * u))) ** 2
    # The taper leaks a little into where the line lets nothing pass.
    np.testing.assert_allclose(ratio[0, 0].mean(axis=0), transfer, atol=0.06)


def test_parts_add_up_to_the_whole():
    x = grain(160, 96)
    inside = np.ones(x.shape[:-1], bool)
    inside[:, :40, :50] = False
    whole = window_powers(x, inside)
    parts = [
        window_powers(x[:, rows], inside[:, rows])
        for rows in (slice(0, 64 + SIDE - HOP), slice(64, 160))
    ]
    for total, upper, lower in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(upper + lower, total, rtol=1e-5)


def test_windows_that_are_not_inside_do_not_count():
    x = grain(128, 128)
    inside = np.ones(x.shape[:-1], bool)
    inside[:, :, 70:] = False
    black = np.where(inside[..., None], x, -1)
    powers, count = window_powers(black, inside)
    assert count == 7 * 3
    np.testing.assert_allclose(powers, window_powers(x[:, :, :64], inside[:, :, :64])[0], rtol=1e-5)


def test_signature_is_in_deviations_from_the_usual():
    x = grain(64, 64)
    powers, count = window_powers(x, np.ones(x.shape[:-1], bool))
    once, tenfold = (np.asarray(signature(factor * powers, count)) for factor in (1, 10))
    assert once.shape == (1, 3 * SIDE * (SIDE // 2 + 1)) and np.abs(once).max() < 20
    high = np.asarray(powers / count).reshape(1, -1) > 100 * FLOOR
    np.testing.assert_allclose((tenfold - once)[high], 1 / SPREAD, atol=0.02)
    assert not np.asarray(signature(powers, 0 * count)).any()


@pytest.fixture(scope="module")
def moved():
    """The module, and variables whose head is not zero."""
    module = Sharpening()
    powers = jnp.ones((1, 3, SIDE, SIDE // 2 + 1))
    variables = jax.jit(module.init)(jax.random.key(0), powers, jnp.ones(1))
    assert not np.asarray(module.apply(variables, powers, jnp.ones(1))).any()
    params = dict(variables["params"])
    kernel = params["head"]["kernel"]
    params["head"] = {
        **params["head"],
        "kernel": jax.random.normal(jax.random.key(1), kernel.shape),
    }
    return module, {"params": params}


def test_kernels_keep_an_even_brightness(moved):
    module, variables = moved
    x = np.concatenate([grain(64, 64), grain(64, 64, seed=1)])
    powers, count = window_powers(x, np.ones(x.shape[:-1], bool))
    kernels = module.apply(variables, powers, count * np.array([1, 0]))
    assert kernels.shape == (2, 3, 2 * REACH + 1, 2 * REACH + 1)
    assert np.abs(kernels[0]).max() > 0.01
    np.testing.assert_allclose(kernels[0].sum(axis=(-2, -1)), 0, atol=1e-4)
    # Nothing is known of it: nothing is changed.
    assert not np.asarray(kernels[1]).any()


def test_correlates_each_as_scipy_does():
    x = grain(40, 33, seed=2)
    x = np.concatenate([x, x[:, ::-1]])
    kernels = np.random.default_rng(3).normal(size=(2, 3, 17, 17)).astype(np.float32)
    made = np.asarray(correlate_each(x, kernels))
    for image, of_image, result in zip(x, kernels, made, strict=True):
        for channel, kernel in enumerate(of_image):
            plane = image[..., channel].astype(np.float64)
            expected = ndimage.correlate(plane, kernel, mode="nearest")
            # FFTs of float32, values up to 5.
            np.testing.assert_allclose(result[..., channel], expected, atol=1e-5)
