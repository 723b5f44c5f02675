"""The curves of the tone stage: the identity, and inverses of changes of tone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.data.thumbnails import THUMBNAIL
from vae.models.degradations import GAMMA, FovGeometry, degrade
from vae.models.tone import (
    COEFFICIENTS,
    GRID,
    apply_tone,
    change_size,
    evidence,
    expected_error,
    from_light,
    to_light,
)

PLACE = np.array([[31.5, 31.5, 40.0]], np.float32)


@pytest.fixture(scope="module")
def image():
    """Image float32 [1, 64, 64, 3] in [-1, 1], far from black and white."""
    return np.random.default_rng(0).uniform(-0.6, 0.6, (1, 64, 64, 3)).astype(np.float32)


def even(*numbers):
    """Returns coefficients that are the same at all positions."""
    values = np.zeros(COEFFICIENTS, np.float32)
    values[: len(numbers)] = numbers
    return jnp.asarray(np.broadcast_to(values, (1, GRID, GRID, COEFFICIENTS)))


def degraded(image, **severities):
    geometry = FovGeometry(jnp.int32(0), jnp.int32(0), *map(jnp.float32, (31.5, 31.5, 40)))
    fov = jnp.ones(image.shape[1:3], bool)
    made = degrade((image[0] + 1) / 2, fov, geometry, severities, jax.random.key(3))
    return np.asarray(2 * made - 1)[None]


def test_conversion_to_light_round_trip():
    values = jnp.linspace(-0.2, 1.3, 1001)
    np.testing.assert_allclose(from_light(to_light(values)), values, atol=1e-5)
    above = values[values > 0.05]
    np.testing.assert_allclose(to_light(above), above**GAMMA, rtol=1e-5)
    slopes = jax.vmap(jax.grad(lambda v: from_light(v)))(jnp.linspace(-0.1, 1, 101))
    assert np.isfinite(slopes).all() and slopes.max() < 40


def test_no_coefficients_no_change(image):
    np.testing.assert_array_equal(apply_tone(image, even(), PLACE), image)


def test_undoes_a_colour_cast(image):
    seen = degraded(image, colour_cast=1.0)
    light = ((image + 1) / 2) ** GAMMA
    gains = np.log(np.median(light / ((seen + 1) / 2) ** GAMMA, axis=(0, 1, 2)))
    assert np.abs(gains).max() > 0.1
    np.testing.assert_allclose(apply_tone(seen, even(0, 0, *gains), PLACE), image, atol=1e-3)


def test_undoes_low_contrast(image):
    seen = degraded(image, low_contrast=0.8)
    slope, middle = np.polyfit((image.ravel() + 1) / 2, (seen.ravel() + 1) / 2, 1)
    # seen = slope * clean + middle
    made = apply_tone(seen, even(middle, -np.log(slope)), PLACE)
    np.testing.assert_allclose(made, image, atol=1e-3)


def test_undoes_a_uniform_veil(image):
    light, veil, transmission = ((image + 1) / 2) ** GAMMA, np.float32([0.3, 0.2, 0.1]), 0.6
    seen = 2 * (transmission * light + (1 - transmission) * veil) ** (1 / GAMMA) - 1
    gain = np.full(3, -np.log(transmission))
    lost = (1 - transmission) * veil / transmission
    np.testing.assert_allclose(apply_tone(seen, even(0, 0, *gain, *lost), PLACE), image, atol=1e-3)


def test_small_changes_are_not_applied():
    thumbnail = jnp.zeros((1, THUMBNAIL, THUMBNAIL, 3))
    shares = [
        float(evidence(change_size(thumbnail, even(0, 0, gain, gain, gain)), 10.0, 15.0)[0])
        for gain in (0.0, 0.15, 0.21, 0.5)
    ]
    # At half of white, with gamma 2.2, a gain of 0.15 changes 9 grey levels, and 0.21 changes 13.
    assert shares[:2] == [0, 0] and 0 < shares[2] < 1 and shares[3] == 1


def test_error_of_a_change_that_is_not_applied_is_its_size():
    def expected(size):
        size = jnp.float32(size)
        return float(expected_error(size, evidence(size, 10.0, 15.0), 13.0))

    assert (expected(7.0), expected(40.0)) == (7.0, 13.0)
    assert expected(12.5) == pytest.approx(np.hypot(13.0, 12.5) / 2)
