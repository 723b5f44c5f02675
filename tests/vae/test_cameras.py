"""Simulated cameras: draws by row, strengths, and the kind of each change."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data as bundled

from vae.models.cameras import (
    BALANCE,
    CHANGES,
    CURVE,
    GAIN,
    QUALITY,
    SATURATION,
    simulate_cameras,
)
from vae.models.degradations import GAMMA

NONE = dict.fromkeys(CHANGES, 0.0)
KEY = jax.random.key(3)
ROWS = jnp.arange(32)


@functools.partial(jax.jit, static_argnums=3)
def apply(images, key, rows, strengths):
    return simulate_cameras(images, key, rows, dict(strengths))


def simulated(images, strengths, rows=ROWS):
    return np.asarray(apply(images, KEY, rows, tuple((NONE | strengths).items())))


@pytest.fixture(scope="module")
def images():
    """One crop of scikit-image's retina for each row, uint8 [32, 32, 32, 3]."""
    crop = bundled.retina()[600:632, 500:532]
    return np.repeat(crop[None], len(ROWS), axis=0)


def test_strength_zero_keeps_the_images(images):
    assert simulate_cameras(images, KEY, ROWS, NONE) is images


@pytest.mark.parametrize("name", CHANGES)
def test_half_of_the_rows_change_each_in_its_own_way(images, name):
    made = simulated(images, {name: 1.0})
    assert made.dtype == np.uint8 and made.shape == images.shape
    changed = (made != images).any(axis=(1, 2, 3))
    # 16 of 32 are expected, with a standard deviation of 3.
    assert 8 <= changed.sum() <= 24
    assert len({row.tobytes() for row in made[changed]}) == changed.sum()
    # A weaker camera changes the same rows less.
    error, less = (
        np.abs(images - simulated(images, {name: s}).astype(float)).mean() for s in (1.0, 0.3)
    )
    assert 0 < less < error


def test_the_draw_is_a_function_of_the_row(images):
    every = dict.fromkeys(CHANGES, 1.0)
    made = simulated(images, every)
    part = simulated(images[:3], every, ROWS[5:8])
    np.testing.assert_array_equal(part, made[5:8])


def test_changes_are_drawn_independently(images):
    alone = (simulated(images, {"colour": 1.0}) != images).any(axis=(1, 2, 3))
    both = simulated(images, {"colour": 1.0, "sharpness": 1.0})
    sharp = (simulated(images, {"sharpness": 1.0}) != images).any(axis=(1, 2, 3))
    np.testing.assert_array_equal((both != images).any(axis=(1, 2, 3)), alone | sharp)


def test_colour_changes_gain_balance_saturation_and_contrast_within_bounds():
    image = np.tile(np.array([[0, 0, 0], [60, 60, 60], [160, 100, 60]], np.uint8), (32, 8, 1, 1))
    made = simulated(image, {"colour": 1.0})
    # One colour curve for the whole image; black stays black.
    np.testing.assert_array_equal(made, np.broadcast_to(made[:, :1], made.shape))
    black, grey, colour = made[:, 0].transpose(1, 0, 2).astype(float)
    assert not black.any()
    factor = (GAIN * BALANCE) ** (1 / GAMMA)
    # Half a level of rounding; a grey that is no longer neutral changes by the saturation too.
    top, low = (255 * (60 / 255 * f) ** p for f, p in ((factor, 1 / CURVE), (1 / factor, CURVE)))
    assert grey.max() <= (1 + SATURATION) * top and grey.min() >= (1 - SATURATION) * low - 0.5
    same = (colour == image[0, 0, 2]).all(axis=-1)
    assert 0.3 < same.mean() < 0.7 and (grey[same] == 60).all()
    spread = (colour.max(axis=-1) - colour.min(axis=-1)) / colour.mean(axis=-1)
    assert grey[~same].mean(axis=1).std() > 5 and spread[~same].std() > 0.05


def test_jpeg_is_that_of_a_file_in_one_of_the_64_phases(images):
    """The change is as large as that of files of the best and the worst quality of the range."""
    made = simulated(images, {"jpeg": 1.0})
    errors = np.abs(made.astype(float) - images).mean(axis=(1, 2, 3))

    def error(quality):
        file = io.BytesIO()
        Image.fromarray(images[0]).save(file, "JPEG", quality=quality, subsampling=0)
        return np.abs(np.asarray(Image.open(file)).astype(float) - images[0]).mean()

    assert 0.7 * error(100) < errors[errors > 0].min() and errors.max() < 1.3 * error(QUALITY)
