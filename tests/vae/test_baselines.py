"""The baselines that a model's metrics are compared with."""

import io

import numpy as np
import pytest
from PIL import Image

from vae.evaluation.baselines import bicubic, mean_colour
from vae.evaluation.jpeg import (
    TileSample,
    decode_jpeg,
    encode_jpeg,
    match_quality,
    nearest_quality,
)


def _images(count=6, side=48, seed=0):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((side, side))
    waves = [np.sin(rows / a + columns / b) for a, b in rng.uniform(2, 15, (3 * count, 2))]
    images = 128 + 80 * np.stack(waves).reshape(count, 3, side, side).transpose(0, 2, 3, 1)
    return np.round(images + rng.normal(0, 3, images.shape)).clip(0, 255).astype(np.uint8)


def test_mean_colour_is_that_of_the_field_of_view():
    images = _images()
    fov = np.random.default_rng(0).random(images.shape[:3]) < 0.5
    fov[0] = False
    painted = np.asarray(mean_colour(images, fov))
    assert painted.dtype == np.uint8
    for image, mask, tile in list(zip(images, fov, painted, strict=True))[1:]:
        expected = np.broadcast_to(image[mask].mean(axis=0), tile.shape)
        np.testing.assert_allclose(tile, expected, atol=0.5 + 1e-3)


def test_bicubic_is_close_to_pillow():
    images = _images()
    ours = np.asarray(bicubic(images))
    for image, output in zip(images, ours, strict=True):
        small = Image.fromarray(image).resize((12, 12), Image.Resampling.BICUBIC)
        large = np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC))
        # Same kernel (a = -1/2). Borders, where the kernel is truncated, differ. Pillow rounds
        # after each axis: up to one level in the small image, 1.6 after enlargement.
        difference = np.abs(output.astype(int) - large)[8:-8, 8:-8]
        assert difference.max() <= 2
        assert difference.mean() < 0.5


def test_bicubic_keeps_flat_tiles_and_refuses_odd_sides():
    flat = np.full((1, 16, 16, 3), 77, np.uint8)
    np.testing.assert_array_equal(bicubic(flat), flat)
    with pytest.raises(ValueError, match="divisible by 4, got 18 x 16"):
        bicubic(np.zeros((1, 18, 16, 3), np.uint8))


def test_jpeg_round_trip_with_chroma_subsampling():
    image = _images(1)[0]
    encoded = encode_jpeg(image, 90)
    layers = Image.open(io.BytesIO(encoded)).layer
    assert [layer[1:3] for layer in layers] == [(2, 2), (1, 1), (1, 1)]
    assert np.abs(decode_jpeg(encoded).astype(int) - image).mean() < 8


@pytest.mark.parametrize("target", [0, 55, 54.4, 54.6, 99, 1e9])
def test_nearest_quality_by_bisection(target):
    calls = []

    def mean_bytes(quality):
        calls.append(quality)
        return float(quality)

    expected = min(range(1, 101), key=lambda quality: abs(quality - target))
    assert nearest_quality(mean_bytes, target) == expected
    assert len(calls) <= 10


def test_sample_does_not_depend_on_the_order():
    images = _images(20, 8)
    ids = np.array([f"tile{i}" for i in range(20)])
    rows = np.arange(20)

    def drawn(order, seed):
        sample = TileSample(5, seed)
        for part in np.array_split(order, 4):
            sample.add(images[part], ids[part], rows[part])
        return sample.tiles()

    first, second = drawn(rows, 1), drawn(rows[::-1], 1)
    assert [row for row, _ in first] == [row for row, _ in second]
    assert len(first) == 5
    for row, image in first:
        np.testing.assert_array_equal(image, images[row])
    assert [row for row, _ in drawn(rows, 2)] != [row for row, _ in first]


def test_matched_quality_has_the_nearest_size():
    images = _images()
    sample = TileSample(10, 0)
    sample.add(images, np.array([f"t{i}" for i in range(6)]), np.arange(6))
    target = np.array([1500.0, 1700.0, np.nan, 1600.0, 1400.0, 1900.0])
    counted = images[~np.isnan(target)]

    def error(quality):
        sizes = [len(encode_jpeg(image, quality)) for image in counted]
        return abs(np.mean(sizes) - np.nanmean(target))

    assert match_quality(sample, target) == min(range(1, 101), key=error)
