"""Blending of tiles that overlap by half: no seams are visible."""

import numpy as np
import pytest

from vae.inference.blending import blend_weights, reconstruct_blended, tile_origins

TILE = 32


@pytest.mark.parametrize("length", [32, 33, 47, 48, 49, 64, 100, 257])
def test_shares_add_up_to_one(length):
    origins = tile_origins(length, TILE)
    assert origins[0] == 0 and origins[-1] == length - TILE
    assert max(np.diff(origins), default=0) <= TILE // 2
    total = np.zeros(length)
    for origin, weights in zip(origins, blend_weights(origins, TILE, length), strict=True):
        assert weights.min() >= 0
        total[origin : origin + TILE] += weights
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_weights_vanish_at_inner_edges():
    origins = tile_origins(100, TILE)
    weights = blend_weights(origins, TILE, 100)
    for number in range(len(origins) - 1):
        assert weights[number, -1] < 0.01 and weights[number + 1, 0] < 0.01
    assert weights[0, 0] == weights[-1, -1] == 1  # only one tile contains the border


@pytest.mark.parametrize("shape", [(100, 81), (32, 32), (33, 64), (20, 70), (5, 3), (1, 1)])
def test_blending_unchanged_tiles_returns_the_image(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    shapes = set()

    def identity(tiles):
        shapes.add(tiles.shape)
        return tiles

    np.testing.assert_array_equal(reconstruct_blended(identity, image, tile=TILE, batch=4), image)
    assert shapes == {(4, TILE, TILE, 3)}


def test_different_tiles_leave_no_step():
    """Each tile is a different grey; neighbouring pixels of the blend differ little."""
    image = np.zeros((97, 120, 3), np.uint8)
    greys = iter(np.random.default_rng(1).permutation(np.arange(50, 250)))

    def shade(tiles):
        return np.stack([np.full_like(tile, next(greys)) for tile in tiles])

    output = reconstruct_blended(shade, image, tile=TILE, batch=1).astype(int)
    steepest = np.pi / TILE * 200  # of a squared sine, between greys 200 apart
    assert np.abs(np.diff(output, axis=0)).max() <= steepest + 1
    assert np.abs(np.diff(output, axis=1)).max() <= steepest + 1
    assert np.ptp(output) > 50
