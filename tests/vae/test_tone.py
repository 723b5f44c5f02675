"""The curves of the tone stage: the identity, and inverses of changes of tone."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.data.thumbnails import THUMBNAIL
from vae.models.degradations import GAMMA, FovGeometry, degrade
from vae.models.tone import (
    COEFFICIENTS,
    GRID,
    RIM,
    SHOULDER,
    WITHIN,
    ToneField,
    apply_tone,
    change_size,
    evidence,
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


def test_no_coefficients_no_change(image):
    np.testing.assert_array_equal(apply_tone(image, even(), PLACE), image)


def test_undoes_dim_light(image):
    dim = 0.4
    seen = 2 * (dim * ((image + 1) / 2) ** GAMMA) ** (1 / GAMMA) - 1
    made = apply_tone(seen, even(-np.log(dim) / GAMMA), PLACE)
    np.testing.assert_allclose(made, image, atol=1e-5)


def test_undoes_low_contrast(image):
    seen = degraded(image, low_contrast=0.8)
    slope, middle = np.polyfit((image.ravel() + 1) / 2, (seen.ravel() + 1) / 2, 1)
    # seen = slope * clean + middle
    made = apply_tone(seen, even(-np.log(slope), middle), PLACE)
    np.testing.assert_allclose(made, image, atol=1e-3)


def test_keeps_the_hue(image):
    """Also where a bright pixel is held below white."""
    made = np.asarray(apply_tone(image, even(0.9, 0.05), PLACE))
    assert made.max() < 1 and (made.max(axis=-1) > 2 * SHOULDER - 1).any()
    levels = [np.float32((x[0] + 1) / 2) for x in (image, made)]
    before, after = (cv2.cvtColor(x, cv2.COLOR_RGB2HSV) for x in levels)
    # Black pixels, which the offset makes negative, have no hue.
    there = levels[1].min(axis=-1) > 0.01
    turn = np.abs((after - before)[there][:, 0] + 180) % 360 - 180
    assert there.mean() > 0.5 and np.abs(turn).max() < 0.5


def test_bright_pixels_keep_their_order_below_white():
    ramp = np.repeat(np.linspace(-0.5, 0.99, 64, dtype=np.float32)[None, None, :, None], 3, axis=-1)
    made = np.asarray(apply_tone(np.repeat(ramp, 64, axis=1), even(0.8), PLACE))[0, 0, :, 0]
    assert (np.diff(made) > 0).all() and made.max() < 1


def test_the_network_does_not_see_the_edge_of_the_field_of_view():
    """A thumbnail's pixels there are means with black, and look different once degraded."""
    rng = np.random.default_rng(1)
    lit = WITHIN.copy()
    lit[:14] = lit[-14:] = False  # the frame cuts the disc
    thumbnail = np.where(lit, rng.uniform(-0.9, 0.9, (THUMBNAIL, THUMBNAIL, 3)), -1)
    thumbnail = thumbnail.astype(np.float32)[None]
    deep = cv2.erode(lit[..., 0].astype(np.uint8), np.ones((2 * RIM + 1,) * 2)) > 0
    edge = lit[..., 0] & ~deep
    changed = np.where(edge[..., None], np.float32(0.95), thumbnail)
    network = ToneField(8, jnp.float32)
    variables = network.init(jax.random.key(0), thumbnail)
    head = jax.random.normal(jax.random.key(1), variables["params"]["head"]["kernel"].shape)
    variables["params"]["head"]["kernel"] = head
    seen, same, other = (
        np.asarray(network.apply(variables, picture))
        for picture in (thumbnail, changed, np.where(deep[..., None], changed + 0.05, changed))
    )
    assert edge.sum() > 100
    np.testing.assert_array_equal(seen, same)
    assert np.abs(seen - other).max() > 1e-3


def test_small_changes_are_not_applied():
    thumbnail = jnp.zeros((1, THUMBNAIL, THUMBNAIL, 3))
    shares = [
        float(evidence(change_size(thumbnail, even(gain)), 10.0, 15.0)[0])
        for gain in (0.0, 0.06, 0.095, 0.3)
    ]
    # At half of white a gain of 0.06 changes 8 grey levels, and 0.095 changes 13.
    assert shares[:2] == [0, 0] and 0 < shares[2] < 1 and shares[3] == 1
