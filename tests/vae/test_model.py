"""`vae.load_model`: uint8 in, uint8 out, from any path that is a model."""

import numpy as np
import pytest
from etils import epath

import vae


@pytest.fixture(scope="module")
def model(finished):
    return vae.load_model(finished[1])


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_halves_make_the_whole(model, tiles):
    latents = model.encode(tiles)
    assert latents.shape == (5, 4, 4, 8) and latents.dtype == np.float32
    decoded = model.decode(latents)
    assert decoded.shape == tiles.shape and decoded.dtype == np.uint8
    np.testing.assert_array_equal(model.reconstruct(tiles), decoded)


def test_results_do_not_depend_on_the_batch(model, tiles):
    many = np.concatenate([tiles] * 8)
    np.testing.assert_allclose(
        model.encode(many)[:5], model.encode(tiles), atol=1e-4
    )  # sums in another order


def test_any_size_and_none(model, tiles):
    assert model.reconstruct(tiles[:, :27, :13]).shape == (5, 27, 13, 3)
    assert model.reconstruct(tiles[:0]).shape == (0, 32, 32, 3)
    assert model.reconstruct(tiles[0]).shape == (32, 32, 3)
    photograph = np.random.default_rng(0).integers(0, 256, (70, 61, 3), dtype=np.uint8)
    assert model.reconstruct(photograph).shape == photograph.shape


def test_wrong_input_is_named(model, tiles):
    with pytest.raises(ValueError, match="expected uint8 .* got float64"):
        model.encode(tiles / 255)
    with pytest.raises(ValueError, match="last axis 8, got float32"):
        model.decode(np.zeros((1, 4, 4, 3), np.float32))


def test_checkpoint_and_hash(model, finished):
    again = vae.load_model(epath.Path(finished[1]) / "checkpoints" / "8")
    assert again.hash == model.hash
    other = vae.load_model(finished[1] / "checkpoints" / "4")
    assert other.hash != model.hash and other.saved.step == 4
