"""The sharpening stage: periodogram features and the filters predicted from them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vae.models.periodogram import FINE, HOP, SIDE, signature, turned, window_powers
from vae.models.sharpening import REACH, Sharpening, correlate_each

TYPICAL = (35.0, 26.0, 6.0)  # of configs/enhance256.py


def grain(height, width, seed=0):
    """Returns white noise with a deviation of 10 grey levels, [1, H, W, 3] in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(0, 10, (1, height, width, 3))
    return (noise / 127.5).astype(np.float32)


def mean_power(x, inside=None):
    inside = np.ones(x.shape[:-1], bool) if inside is None else inside
    powers, count = window_powers(x, inside)
    return np.asarray(powers / count[:, None, None, None]), count


def test_white_noise_has_its_variance_everywhere():
    power, count = mean_power(grain(1024, 1024))
    assert count == (1024 // HOP - 1) ** 2
    waves = np.hypot(np.fft.fftfreq(SIDE, 1 / SIDE)[:, None], np.arange(SIDE // 2 + 1))
    # Lower frequencies are removed with the means of the windows. 961 overlapping windows count as
    # a third as many independent ones, so the standard error of each frequency is 6%.
    high = power[..., waves >= 3]
    assert high.mean() == pytest.approx(100, rel=0.02)
    assert high.min() > 70 and high.max() < 130


def test_a_blur_multiplies_the_periodogram():
    x = grain(1024, 1024)
    kernel = np.zeros((5, 5))
    kernel[2] = 0.2  # a line of five pixels
    blurred = ndimage.correlate(x, kernel[None, :, :, None], mode="wrap")
    ratio = mean_power(blurred)[0] / mean_power(x)[0]
    u = np.arange(SIDE // 2 + 1) / SIDE
    transfer = (0.2 * (1 + 2 * np.cos(2 * np.pi * u) + 2 * np.cos(4 * np.pi * u))) ** 2
    # The taper leaks a little power into the zeros of the blur.
    np.testing.assert_allclose(ratio[0, 0].mean(axis=0), transfer, atol=0.06)


def test_parts_add_up_to_the_whole():
    x = grain(320, 192)
    inside = np.ones(x.shape[:-1], bool)
    inside[:, :80, :100] = False
    whole = window_powers(x, inside)
    parts = [
        window_powers(x[:, rows], inside[:, rows])
        for rows in (slice(0, 128 + SIDE - HOP), slice(128, 320))
    ]
    for total, upper, lower in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(upper + lower, total, rtol=1e-5)


def test_windows_outside_the_field_of_view_are_ignored():
    x = grain(256, 256)
    inside = np.ones(x.shape[:-1], bool)
    inside[:, :, 140:] = False
    black = np.where(inside[..., None], x, -1)
    powers, count = window_powers(black, inside)
    assert count == 7 * 3
    np.testing.assert_allclose(
        powers, window_powers(x[:, :, :128], inside[:, :, :128])[0], rtol=1e-5
    )


def test_signature_is_in_deviations_from_the_typical_spectrum():
    x = grain(128, 128)
    powers, count = window_powers(x, np.ones(x.shape[:-1], bool))
    once, tenfold = (np.asarray(signature(factor * powers, count, TYPICAL)) for factor in (1, 10))
    smooth, fine = 3 * SIDE // 2 * (SIDE // 4 + 1), (2 * FINE + 1) * (FINE + 1)
    assert once.shape == (1, smooth + fine) and np.abs(once).max() < 20
    # All features but those of the mean, which is removed, rise by ten decibels.
    tenth = np.abs(tenfold - once - 10 / TYPICAL[2]) < 0.02
    assert tenth.sum() >= smooth + fine - 4
    assert not np.asarray(signature(powers, 0 * count, TYPICAL)).any()


def test_signature_distinguishes_long_lines():
    """Lines of 15 and 20 pixels have zeros that windows of 32 pixels do not resolve."""
    found, waves = [], np.arange(2, FINE + 1)
    for length in (15, 20):
        x = ndimage.uniform_filter1d(grain(512, 512), length, axis=2, mode="wrap")
        powers, count = window_powers(x, np.ones(x.shape[:-1], bool))
        fine = np.asarray(signature(powers, count, TYPICAL))[0, -(2 * FINE + 1) * (FINE + 1) :]
        found.append(fine.reshape(2 * FINE + 1, FINE + 1)[8, waves])  # at vertical frequency 8
    expected = [np.log10(np.sinc(length * waves / SIDE) ** 2 + 0.01) for length in (15, 20)]
    difference = np.subtract(*found)
    # The taper's leakage fills the zeros; 0.01 is only an estimate of its power.
    assert np.corrcoef(difference, np.subtract(*expected))[0, 1] > 0.8
    assert np.abs(difference).max() > 0.8  # standard deviations


SYMMETRIES = list(itertools.product((False, True), repeat=2))


def turn(x, flip, transpose):
    """Reverses the rows of [1, H, W, 3], then exchanges rows and columns."""
    x = x[:, ::-1] if flip else x
    return x.swapaxes(1, 2) if transpose else x


def slanted(side, seed=0):
    """Returns grain blurred along a line that every symmetry of the square changes."""
    kernel = np.zeros((7, 7))
    kernel[[1, 2, 3, 4, 5], [2, 2, 3, 4, 4]] = 0.2
    return ndimage.correlate(grain(side, side, seed), kernel[None, :, :, None], mode="wrap")


@pytest.mark.parametrize(("flip", "transpose"), SYMMETRIES)
def test_turned_equals_the_periodogram_of_the_turned_photograph(flip, transpose):
    x = slanted(128)
    power, _ = mean_power(x)
    of_turned, _ = mean_power(turn(x, flip, transpose))
    np.testing.assert_allclose(turned(power, flip, transpose), of_turned, rtol=1e-3, atol=1e-3)
    assert not (flip or transpose) or np.abs(power - of_turned).max() > 0.1 * power.max()


@pytest.fixture(scope="module")
def moved():
    """Returns the module, and variables with a nonzero head."""
    module = Sharpening(TYPICAL)
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


def test_kernels_keep_constant_images(moved):
    module, variables = moved
    x = np.concatenate([grain(128, 128), grain(128, 128, seed=1)])
    powers, count = window_powers(x, np.ones(x.shape[:-1], bool))
    kernels = module.apply(variables, powers, count * np.array([1, 0]))
    assert kernels.shape == (2, 3, 2 * REACH + 1, 2 * REACH + 1)
    assert np.abs(kernels[0]).max() > 0.01
    np.testing.assert_allclose(kernels[0].sum(axis=(-2, -1)), 0, atol=1e-4)
    # Without a complete window the filter is the identity.
    assert not np.asarray(kernels[1]).any()


@pytest.mark.parametrize(("flip", "transpose"), SYMMETRIES[1:])
def test_a_turned_photograph_has_the_turned_filter(moved, flip, transpose):
    module, variables = moved

    def kernels(x):
        return np.asarray(module.apply(variables, *window_powers(x, np.ones(x.shape[:-1], bool))))

    x = slanted(128)
    kernel = kernels(x)
    expected = turn(kernel.transpose(0, 2, 3, 1), flip, transpose).transpose(0, 3, 1, 2)
    largest = np.abs(kernel).max()
    np.testing.assert_allclose(
        kernels(turn(x, flip, transpose)), expected, rtol=0, atol=1e-4 * largest
    )
    assert np.abs(kernel - expected).max() > 0.1 * largest


def test_correlate_each_matches_scipy():
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
