"""Measures of sampled tiles, on sets with known results."""

import numpy as np
import pytest

from vae.evaluation.samples.measures import (
    COARSEST,
    nearest,
    precision_recall,
    pyramid_patches,
    sliced_wasserstein,
    wasserstein,
)
from vae.evaluation.samples.simple_priors import gaussian, mixture
from vae.evaluation.samples.summary import PATCHES, SMALL, VESSELS, Summary, batched, summarise
from vae.evaluation.samples.table import Reference, compare, floor, format_table

SIDE, COUNT = 64, 24


def tiles(count, seed, brightness=0.0, patients=4):
    """Smooth tiles of a few patients, each with its own brightness."""
    rng = np.random.default_rng(seed)
    owner = np.arange(count) % patients
    base = 90 + 10 * owner + brightness
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = rng.normal(size=(count, 4, 1, 1)) * np.stack(
        [np.sin(6 * x), np.cos(7 * y), np.sin(20 * x * y), np.cos(31 * (x + y))]
    )
    image = base[:, None, None] + 12 * waves.sum(axis=1)
    image = image[..., None] * np.array([1.0, 0.6, 0.3]) + rng.normal(size=(count, SIDE, SIDE, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), owner.astype(str)


def eye(images):
    """A stand-in for the autoencoder: 8 x 8 patches reduced to means."""
    n, side = len(images), images.shape[1]
    means = images.reshape(n, side // 8, 8, side // 8, 8, 3).mean(axis=(2, 4))
    return (means / 255).astype(np.float32)


def summary(images, owner=None):
    if owner is None:
        return summarise(batched(images), eye)
    return summarise([(images, owner)], eye)


@pytest.fixture(scope="module")
def real():
    pool, owner = tiles(4 * COUNT, 0)
    held_out, others = tiles(COUNT, 1)
    pool, held_out = summary(pool, owner), summary(held_out, others)
    return Reference.from_summary(pool, pool.small, held_out, COUNT)


def test_patches_of_the_pyramid():
    flat = np.full((SIDE, SIDE, 3), 100, np.uint8)
    patches = pyramid_patches(flat, 5, np.random.default_rng(0)).astype(np.float32)
    assert patches.shape == (3, 5, 147) and SIDE // 4 == COARSEST
    np.testing.assert_allclose(patches[:2], 0, atol=0.01)
    np.testing.assert_allclose(patches[2], 100, atol=0.1)


def test_distance_of_a_set_to_itself_is_zero(real):
    distances = sliced_wasserstein(
        real.pool.patches, real.pool.patches[::-1], np.random.default_rng(0)
    )
    np.testing.assert_allclose(distances, 0, atol=1e-5)


def test_distance_of_a_shifted_set():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 2, 8, 147))
    shift = np.array([0.0, 3.0])[:, None, None]
    distances = sliced_wasserstein(a, a + shift, np.random.default_rng(1))
    # A shift of all values by s moves a projection by s * sum(unit vector). The mean size is
    # s * sqrt(2 / pi) over random directions; the standard error of 128 directions is 7%.
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[1] == pytest.approx(3 * np.sqrt(2 / np.pi), rel=0.25)


def test_sets_of_two_sizes_are_refused():
    a = np.zeros((4, 1, 2, 147))
    with pytest.raises(ValueError, match="one size"):
        sliced_wasserstein(a, a[:2], np.random.default_rng(0))


def test_precision_and_recall_of_known_sets():
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 400, 4))
    precision, recall = precision_recall(real, same)
    assert precision > 0.9 and recall > 0.9
    # One of two modes: precision is 1, and half is missing.
    two = np.concatenate([real, same + 100])
    precision, recall = precision_recall(two, rng.normal(size=(400, 4)))
    assert precision > 0.9 and 0.4 < recall < 0.55
    assert precision_recall(real, same + 100) == (0, 0)
    assert np.isnan(precision_recall(real[:5], same)).all()


def test_copies_are_found_in_any_symmetry_and_colour(real):
    small = real.pool.small[:6]
    turned = np.rot90(small[:, ::-1], 1, axes=(1, 2))
    brighter = np.clip(turned.astype(int) + 15, 0, 255).astype(np.uint8)
    # Float32 rounds sums of squares of about 1e6 by 0.1, and 0.1 / 3,072 values is 0.006^2.
    assert nearest(brighter, real.training).max() < 0.05
    assert np.median(real.usual) > 1


def test_wasserstein_distance_of_a_shift():
    a = np.random.default_rng(0).normal(size=(1000, 2))
    assert wasserstein(a, a + np.array([1.0, 3.0])) == pytest.approx(2, rel=1e-6)


def test_rows_of_known_sets(real):
    """Sets: the same distribution, a shifted one, and copies of training tiles."""
    same = compare("same", summary(tiles(COUNT, 2)[0]), real)
    shifted = compare("shifted", summary(tiles(COUNT, 2, brightness=40)[0]), real)
    copies = compare("copies", summary(tiles(4 * COUNT, 0)[0][:COUNT]), real)
    beside = floor(real)
    assert same["swd"] < 2 * beside["swd"] < shifted["swd"]
    low, high = same["swd_interval"]
    assert low <= same["swd"] <= high
    assert shifted["colour"] > 3 * same["colour"]
    assert same["copies"] < 0.2 and 0.7 < same["nearest_share"] < 1.4
    assert copies["copies"] == 1 and copies["nearest_share"] < 0.01
    assert same["recall"] > shifted["recall"]
    text = format_table([beside, same, shifted, copies])
    assert "copies" in text and "100.0%" in text


def test_floor_needs_two_patients(real):
    alone = Summary(**{**vars(real.pool), "patients": np.full(len(real.pool), "one")})
    row = floor(Reference.from_summary(alone, real.training, real.held_out, COUNT))
    assert row["swd"] is None
    assert format_table([row])


def test_summary_has_a_row_for_every_tile(real):
    assert real.pool.patches.shape == (4 * COUNT, 3, PATCHES, 147)
    assert real.pool.small.shape == (4 * COUNT, SMALL, SMALL, 3)
    assert len(real.pool.vessels) == min(4 * COUNT, VESSELS)
    # Means of 16 regions in 3 channels, and the deviation of each channel.
    assert real.pool.features.shape == (4 * COUNT, 51)


def test_gaussian_has_mean_and_covariance():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2000, 3)) @ np.array([[1, 2, 0], [0, 1, 0], [0, 0, 0.1]]) + 5
    made = gaussian(latents.astype(np.float32), 20000, rng)
    np.testing.assert_allclose(made.mean(axis=0), latents.mean(axis=0), atol=0.08)
    np.testing.assert_allclose(np.cov(made.T), np.cov(latents.T), atol=0.2)


def test_mixture_keeps_its_modes():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(400, 4, 4, 2)).astype(np.float32) * 0.1
    latents[:100] += 5
    made = mixture(latents, 400, rng)
    means = made.mean(axis=(1, 2, 3))
    assert made.shape == latents.shape
    assert np.mean(means > 2.5) == pytest.approx(0.25, abs=0.08)
    # The Gaussian fitted to both modes lies between them.
    between = gaussian(latents, 400, rng).mean(axis=(1, 2, 3))
    assert np.mean(np.abs(between - 2.5) < 1.5) > 0.3 > np.mean(np.abs(means - 2.5) < 1.5)
