"""Training pairs: positions of examples, and kinds and frequencies of degradations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.configs import enhance256
from vae.data.thumbnails import MARGIN, THUMBNAIL
from vae.models.augment import CropAndTurn
from vae.models.degradations import DEGRADATIONS
from vae.models.pairs import (
    _turn,
    degrade_tile,
    draw_severities,
    make_pairs,
    make_thumbnail_pairs,
)
from vae.models.tone import WITHIN

SIZE, RADIUS = 96, 300.0
SLOPE = 0.38  # grey levels per pixel: the thumbnail's 2.2 radii just fit into 8 bits


def coordinates(y, x, side, step=1.0):
    """Returns an image whose red is the row and whose green is the column."""
    rows, columns = (y + step * np.arange(side), x + step * np.arange(side))
    picture = np.zeros((side, side, 3))
    picture[..., 0] = SLOPE * rows[:, None] + 128
    picture[..., 1] = SLOPE * columns[None] + 128
    return np.round(picture).astype(np.uint8)


@pytest.fixture(scope="module")
def config():
    config = enhance256.get_config("smoke")
    config.data.size, config.data.crop, config.data.scales = SIZE, 32, (1, 2)
    config.cameras.colour = 0.0
    return config


@pytest.fixture(scope="module")
def clean_pairs(config):
    """Pairs without degradations, of images of coordinates relative to the FOV centre."""
    config = config.copy_and_resolve_references()
    config.degrade.clean = 1.0
    tiles, circles, step = [], [], 2 * MARGIN * RADIUS / THUMBNAIL
    thumbnail = coordinates(
        -MARGIN * RADIUS + step / 2, -MARGIN * RADIUS + step / 2, THUMBNAIL, step
    )
    for number in range(16):
        y, x = 13 * number - 90, 60 - 11 * number
        tiles.append(coordinates(y, x, SIZE))
        circles.append([-y, -x, RADIUS])
    arrays = np.stack(tiles), np.stack([thumbnail] * 16), np.float32(circles)
    make = jax.jit(lambda *a: make_pairs(*a, jax.random.key(0), jnp.arange(16), config))
    return jax.tree.map(np.asarray, make(*arrays))


def test_circle_follows_crop_scale_and_turn(clean_pairs):
    scales = set()
    for clean, circle in zip(clean_pairs.clean, clean_pairs.circle, strict=True):
        scales.add(float(circle[2]))
        step = RADIUS / circle[2]
        # A turn may exchange or reverse red and green; distances from the centre stay.
        levels = (clean[..., :2] + 1) * 127.5 - 128
        for axis in (0, 1):
            along = step * (np.arange(32) - circle[axis])
            found = [levels.take(0, axis=1 - axis)[:, channel] / SLOPE for channel in (0, 1)]
            error = min(np.abs(np.abs(one) - np.abs(along)).max() for one in found)
            # Half a level for the rounding of the image, and half for that of reduced pixels.
            assert error < (0.5 if step == 1 else 1.0) / SLOPE + 0.1
    assert scales == {RADIUS, RADIUS / 2}


def test_the_thumbnail_is_turned_like_the_example(clean_pairs):
    step = 2 * MARGIN * RADIUS / THUMBNAIL
    for clean, thumbnail, circle in zip(
        clean_pairs.clean, clean_pairs.thumbnail, clean_pairs.circle, strict=True
    ):
        # The thumbnail's pixel at the centre of the example has the example's colour.
        radii = (15.5 - circle[:2]) / circle[2]
        row, column = np.round(radii * RADIUS / step + (THUMBNAIL - 1) / 2).astype(int)
        difference = np.abs(thumbnail[row, column] - clean[15:17, 15:17].mean(axis=(0, 1))) * 127.5
        assert difference.max() <= SLOPE * step / 2 + 1.5, (row, column)


def test_clean_examples_are_not_changed(clean_pairs):
    np.testing.assert_allclose(clean_pairs.degraded, clean_pairs.clean, atol=1e-6)


def test_severities_follow_the_config(config):
    settings = config.degrade.copy_and_resolve_references()
    settings.noise, settings.jpeg, settings.alone = 0.5, 0.0, 0.0
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: draw_severities(key, settings))(keys)
    assert sorted(drawn) == sorted(set(DEGRADATIONS) - {"jpeg", "colour_cast"})
    spared = np.all([np.asarray(values) == 0 for values in drawn.values()], axis=0)
    present = np.asarray(drawn["haze"])
    # Four standard deviations of a binomial with 4,000 draws.
    assert np.mean(present > 0) == pytest.approx(0.85 * 0.3, abs=0.028)
    others = (1 - 0.85) + 0.85 * 0.7**8 * 1.0
    assert spared.mean() == pytest.approx(others, abs=0.026)
    assert 0.98 < present.max() <= 1 and 0.48 < np.max(drawn["noise"]) <= 0.5
    settings.jpeg, settings.clean, settings.alone = 1.0, 0.0, 0.4
    drawn = jax.vmap(lambda key: draw_severities(key, settings))(keys)
    count = sum(np.asarray(values) > 0 for values in drawn.values())
    assert (count == 1).mean() == pytest.approx(0.4 + 0.6 * 9 * 0.3 * 0.7**8, abs=0.032)
    # A degradation with severity 0 is never chosen as the single one.
    settings.update(dict.fromkeys(DEGRADATIONS, 0.0), noise=1.0, motion=1.0, alone=1.0)
    drawn = jax.vmap(lambda key: draw_severities(key, settings))(keys)
    assert sorted(drawn) == ["motion", "noise"]
    assert np.mean(drawn["motion"] > 0) == pytest.approx(0.5, abs=0.032)
    np.testing.assert_array_equal(drawn["motion"] > 0, drawn["noise"] == 0)


def test_a_pair_is_a_function_of_key_and_row(config):
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    thumbnails = rng.integers(0, 256, (4, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    circles = np.float32([[40, 50, 200]] * 4)
    make = jax.jit(lambda *a: make_pairs(*a, config))
    whole = make(images, thumbnails, circles, jax.random.key(5), jnp.arange(4))
    part = make(images[2:], thumbnails[2:], circles[2:], jax.random.key(5), jnp.arange(2, 4))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_allclose(a[2:], b, atol=1e-5)
    assert np.abs(whole.degraded - whole.clean).max() > 0.05
    other = make(images, thumbnails, circles, jax.random.key(6), jnp.arange(4))
    assert np.abs(other.clean - whole.clean).max() > 0.1


def test_what_the_frame_cuts_off_is_not_degraded():
    """A photograph has no haze there; with it, these parts would give haze away."""
    picture = np.full((THUMBNAIL, THUMBNAIL, 3), 120, np.uint8)
    picture[:14] = picture[-14:] = 0
    circle, key = jnp.float32([31.5, 31.5, 29.0]), jax.random.key(0)
    for made in degrade_tile(picture, picture, circle, {"haze": 1.0}, key, jnp.zeros(2, int)):
        made = np.asarray(made) * 255
        assert not made[:14].any() and not made[-14:].any()
        assert np.abs(made[30, 30] - 120).max() > 5


def test_tile_and_thumbnail_are_of_the_same_camera(config):
    """With equal colours everywhere, a simulated camera changes tile and thumbnail equally."""
    config = config.copy_and_resolve_references()
    config.cameras.colour, config.degrade.clean = 1.0, 1.0
    colour = np.array([150, 80, 40], np.uint8)
    images = np.tile(colour, (8, SIZE, SIZE, 1))
    thumbnails = np.tile(colour, (8, THUMBNAIL, THUMBNAIL, 1))
    circles = np.float32([[40, 50, 200]] * 8)
    pairs = make_pairs(images, thumbnails, circles, jax.random.key(1), jnp.arange(8), config)
    tiles, thumbs = pairs.clean[:, 5, 5], pairs.thumbnail[:, 32, 32]
    np.testing.assert_allclose(tiles, thumbs, atol=1e-6)
    changed = np.abs((tiles + 1) * 127.5 - colour).max(axis=-1) > 1
    assert 0 < changed.sum() < 8  # half of the examples keep the colours
    tones = make_thumbnail_pairs(thumbnails, circles, jax.random.key(1), jnp.arange(8), config)
    np.testing.assert_array_equal(tones.clean, tones.degraded)
    assert len(np.unique(np.round(tones.clean[:, 32, 32], 5), axis=0)) > 4


@pytest.mark.parametrize("name", ["noise", "defocus"])
def test_targets_of_sharpening_lack_only_the_blur(config, name):
    config = config.copy_and_resolve_references()
    config.degrade.update(dict.fromkeys(DEGRADATIONS, 0.0), clean=0.0, alone=0.0, probability=1.0)
    config.degrade[name] = 1.0
    tile = np.random.default_rng(6).integers(90, 160, (2, SIZE, SIZE, 3), np.uint8)
    thumbnail, circle = (
        np.zeros((2, THUMBNAIL, THUMBNAIL, 3), np.uint8),
        np.float32([[40, 50, 200]] * 2),
    )
    arguments = tile, thumbnail, circle, jax.random.key(5), jnp.arange(2)
    plain = make_pairs(*arguments, config)
    config.train.stage = "sharpening"
    pairs = make_pairs(*arguments, config)
    np.testing.assert_array_equal(pairs.degraded, plain.degraded)
    assert np.abs(pairs.degraded - plain.clean).mean() > 0.02
    target = plain.clean if name == "defocus" else pairs.degraded
    np.testing.assert_allclose(pairs.clean, target, atol=1e-6)


def test_turn_equals_that_of_crop_and_turn():
    picture = np.random.default_rng(3).integers(0, 256, (12, 12, 3), np.uint8)
    zero = jnp.zeros(3, jnp.int32)
    turned = set()
    for number in range(8):
        cut = CropAndTurn(*zero, *(jnp.bool_(number >> bit & 1) for bit in range(3)))
        made = np.asarray(_turn(cut, picture))
        np.testing.assert_array_equal(made, cut.turn(picture))
        turned.add(made.tobytes())
    assert len(turned) == 8


def test_pairs_of_thumbnails(config):
    config = config.copy_and_resolve_references()
    config.train.thumbnail_draws, config.degrade.clean = 3, 0.5
    rng = np.random.default_rng(4)
    thumbnails = rng.integers(0, 256, (4, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    circles = np.float32([[40, 50, 200]] * 4)
    make = jax.jit(lambda *a: make_thumbnail_pairs(*a, config))
    pairs = make(thumbnails, circles, jax.random.key(5), jnp.arange(4))
    assert (
        pairs.clean.shape
        == pairs.degraded.shape
        == pairs.thumbnail.shape
        == (12, THUMBNAIL, THUMBNAIL, 3)
    )
    part = make(thumbnails[2:], circles[2:], jax.random.key(5), jnp.arange(2, 4))
    np.testing.assert_allclose(pairs.degraded[6:], part.degraded, atol=1e-5)
    changed = np.abs(pairs.degraded - pairs.clean)
    assert not (changed * ~WITHIN).any()
    spared = changed.max(axis=(1, 2, 3)) < 1e-6
    assert 0 < spared.sum() < 12
    # Each draw of a thumbnail has another turn and other degradations.
    assert len({np.asarray(thumbnail).tobytes() for thumbnail in pairs.degraded[:3]}) == 3
    inside = np.asarray(pairs.clean)[:, WITHIN[..., 0]]
    np.testing.assert_allclose(np.sort(inside[0], axis=0), np.sort(inside[1], axis=0), atol=1e-6)


def test_thumbnail_and_tile_are_degraded_alike():
    """Under uneven illumination, thumbnail and tile have the same colour at the same place."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    circle = np.float32([-60.0, 40.0, RADIUS])  # below and left of the centre
    tile, thumbnail = degrade_tile(
        grey, grey, circle, {"illumination": 1.0, "haze": 0.7}, jax.random.key(3), jnp.zeros(2, int)
    )
    step = 2 * MARGIN * RADIUS / THUMBNAIL
    row, column = ((31.5 - circle[:2]) / step + (THUMBNAIL - 1) / 2).round().astype(int)
    near = np.asarray(thumbnail)[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
    middle = np.asarray(tile)[16:48, 16:48].mean(axis=(0, 1))
    np.testing.assert_allclose(middle, near, atol=0.03)
    assert np.ptp(np.asarray(thumbnail)[8:56, 8:56, 0]) > 0.1  # other places have another colour
