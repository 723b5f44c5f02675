"""`vae.load_model`: all kinds of paths; uint8 images in and out."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import vae
from vae.checkpoints.leaves import by_path, from_paths
from vae.checkpoints.safetensors_io import MODEL_FILE, SavedModel, write_safetensors
from vae.configs.published import get_config
from vae.data.errors import DataError
from vae.data.images import write_image
from vae.inference.batches import MAX_BATCH
from vae.inference.model import Model
from vae.tasks import task_of
from vae.training.train_state import abstract_state


@pytest.fixture(scope="module")
def model(finished):
    return vae.load_model(finished[1])


@pytest.fixture(scope="module")
def published():
    """An untrained model of the published architecture for tiles of 32 pixels."""
    config = get_config("tiny")
    size = config.model.latent_size
    rng = np.random.default_rng(3)
    variables = jax.tree.map(
        lambda leaf: (np.abs(rng.normal(size=leaf.shape)) * 0.1).astype(leaf.dtype),
        abstract_state(task_of(config)).variables,
    )
    return Model(
        SavedModel(
            path=epath.Path("nowhere"), config=config, step=0,
            variables=variables,
            latent_mean=np.zeros(size, np.float32), latent_var=np.ones(size, np.float32),
            provenance={},
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photograph():
    """A photograph of two windows along one axis; its sides are no multiples of the patch size."""
    return np.random.default_rng(1).integers(0, 256, (70, 1101, 3), dtype=np.uint8)


def test_encode_and_decode_give_reconstruct(model, tiles):
    latents = model.encode(tiles)
    assert latents.shape == (5, 4, 4, 8) and latents.dtype == np.float32
    decoded = model.decode(latents)
    assert decoded.shape == tiles.shape and decoded.dtype == np.uint8
    np.testing.assert_array_equal(model.reconstruct(tiles), decoded)


def test_encode_and_decode_of_a_photograph_give_reconstruct(model, photograph):
    latents = model.encode(photograph)
    assert latents.shape == (9, 138, 8) and latents.dtype == np.float32
    decoded = model.decode(latents)
    assert decoded.shape == (72, 1104, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(model.reconstruct(photograph), decoded[:70, :1101])
    np.testing.assert_array_equal(model.encode(photograph[None])[0], latents)
    np.testing.assert_array_equal(model.decode(latents[None])[0], decoded)


def test_posterior_holds_the_means(model, tiles, photograph):
    for images in (tiles, photograph):
        posterior = model.posterior(images)
        np.testing.assert_array_equal(posterior.mean, model.encode(images))
        assert posterior.log_var.shape == posterior.mean.shape
        assert posterior.log_var.dtype == np.float32 and np.ptp(posterior.log_var) > 0


def test_results_do_not_depend_on_the_batch(model, tiles):
    many = np.concatenate([tiles] * 8)
    np.testing.assert_allclose(
        model.encode(many)[:5], model.encode(tiles), atol=1e-4
    )  # float32 sums in another order


def test_few_batch_sizes_are_compiled(finished, tiles):
    model = vae.load_model(finished[1])
    for count in (1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 23, 40):
        images = np.resize(tiles, (count, *tiles.shape[1:]))
        assert model.reconstruct(images).shape == images.shape
    halves = (model._encode.func, model._decode.func)
    assert [half._cache_size() for half in halves] == [MAX_BATCH.bit_length()] * 2


def test_any_size_and_no_tiles(model, tiles):
    assert model.reconstruct(tiles[:, :27, :13]).shape == (5, 27, 13, 3)
    assert model.reconstruct(tiles[:0]).shape == (0, 32, 32, 3)
    assert model.posterior(tiles[:0, :27]).log_var.shape == (0, 4, 4, 8)
    assert model.decode(np.zeros((0, 4, 2, 8), np.float32)).shape == (0, 32, 16, 3)
    for shape in ((32, 32), (70, 61), (1, 1), (9, 300)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        assert model.reconstruct(image).shape == image.shape


def test_other_floats_are_latents_too(model, tiles):
    latents = model.encode(tiles).astype(np.float16)
    np.testing.assert_array_equal(model.decode(latents), model.decode(latents.astype(np.float64)))


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((1, 8, 8, 3)), r"float64 \[1, 8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"uint8 \[1, 3, 8, 8\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
    ],
)
def test_wrong_images_are_named(model, images, got):
    for method in (model.encode, model.posterior, model.reconstruct):
        with pytest.raises(ValueError, match=rf"expected uint8 \[N, H, W, 3\] or .* got {got}"):
            method(images)


@pytest.mark.parametrize(
    ("latents", "got"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), r"float32 \[1, 4, 4, 3\]"),
        (np.zeros((1, 4, 4, 8), np.uint8), r"uint8 \[1, 4, 4, 8\]"),
        (np.zeros((4, 8), np.float32), r"float32 \[4, 8\]"),
        (np.zeros((1, 0, 4, 8), np.float32), r"float32 \[1, 0, 4, 8\]"),
    ],
)
def test_wrong_latents_are_named(model, latents, got):
    with pytest.raises(ValueError, match=rf"expected float32 .* last axis 8, got {got}"):
        model.decode(latents)


# --- The published architecture ------------------------------------------------------------------


def test_vector_latents_of_tiles(published, tiles):
    assert published.tile_size == 32 and published.downsample is None
    latents = published.encode(tiles)
    assert latents.shape == (5, 16) and latents.dtype == np.float32
    np.testing.assert_array_equal(published.reconstruct(tiles), published.decode(latents))
    np.testing.assert_array_equal(
        published.reconstruct(tiles[:1])[0], published.reconstruct(tiles[0])
    )
    assert published.reconstruct(tiles[:0]).shape == (0, 32, 32, 3)
    assert published.posterior(tiles[:0]).mean.shape == (0, 16)


def test_other_sizes_are_reconstructed_as_blended_tiles(published):
    images = np.random.default_rng(2).integers(0, 256, (2, 50, 87, 3), dtype=np.uint8)
    output = published.reconstruct(images)
    assert output.shape == images.shape and output.dtype == np.uint8
    np.testing.assert_array_equal(output[1], published.reconstruct(images[1]))
    # Only the first tile covers the corner.
    corner = published.reconstruct(images[0, :32, :32])
    np.testing.assert_array_equal(output[0, :9, :9], corner[:9, :9])
    assert published.reconstruct(images[0, :5, :9]).shape == (5, 9, 3)
    assert published.reconstruct(images[:0]).shape == (0, 50, 87, 3)


def test_vector_models_refuse_to_encode_photographs(published, tiles):
    for images in (tiles[:, :31], tiles[0]):
        with pytest.raises(ValueError, match=r"encodes tiles \[N, 32, 32, 3\], got"):
            published.encode(images)
    with pytest.raises(ValueError, match=r"expected float32 \[N, L\], last axis 16, got float32"):
        published.decode(np.zeros((4, 4, 16), np.float32))


# --- Paths ---------------------------------------------------------------------------------------


def test_checkpoint_and_hash(model, finished):
    again = vae.load_model(epath.Path(finished[1]) / "checkpoints" / "8")
    assert again.hash == model.hash
    other = vae.load_model(finished[1] / "checkpoints" / "4")
    assert other.hash != model.hash and other.saved.step == 4


def test_exported_file_and_its_folder(model, tiles, tmp_path):
    write_safetensors(tmp_path / MODEL_FILE, model.saved)
    for path in (tmp_path, tmp_path / MODEL_FILE):
        exported = vae.load_model(path)
        assert exported.hash == model.hash
        np.testing.assert_array_equal(exported.encode(tiles), model.encode(tiles))


def test_paths_without_a_model_are_named(finished, tiny_data, tiny_tiles, tmp_path):
    def refused(path, what):
        with pytest.raises(DataError, match=what) as refusal:
            vae.load_model(path)
        text = str(refusal.value)
        assert str(path) in text and "expected a run's workdir" in text and "\n" not in text

    (tmp_path / "model.pth").write_bytes(b"PK\3\4")
    refused(tmp_path / "model.pth", r"a PyTorch file \(`convert_torch_checkpoint model\.pth")
    write_image(tmp_path / "eye.jpg", np.zeros((8, 8, 3), np.uint8))
    refused(tmp_path / "eye.jpg", "is a jpg file, no model")
    (tmp_path / "notes.txt").write_text("f8c32 is the best")
    refused(tmp_path / "notes.txt", "is a txt file, no model")
    refused(tmp_path / "gone", "no such model")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is an empty folder, no model")
    refused(tiny_data, "is a dataset, no model")
    refused(next(tiny_data.glob("fundus_tiles/*")), "is a dataset, no model")
    refused(tiny_tiles, "is a folder of tiles, no model")
    refused(next(tiny_tiles.glob("*/*/*.png")).parent, "is a folder of images, no model")
    refused(finished[1] / "checkpoints", "is .*, no model")


def test_workdirs_without_a_checkpoint_are_named(finished, tmp_path):
    for name in ("checkpoints", "config.json"):
        broken = tmp_path / name
        shutil.copytree(finished[1], broken)
        (shutil.rmtree if name == "checkpoints" else (lambda p: p.write_text("{")))(broken / name)
        with pytest.raises(DataError, match="has no checkpoint yet|damaged"):
            vae.load_model(broken)
    with pytest.raises(DataError, match=r"checkpoints/5|step 5|no .*5"):
        vae.load_model(finished[1] / "checkpoints" / "5")


def test_damaged_exported_file_is_named(model, tmp_path):
    path = tmp_path / MODEL_FILE
    write_safetensors(path, model.saved)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{MODEL_FILE}: damaged"):
        vae.load_model(path)


def test_one_flipped_bit_of_an_exported_file_is_found(vector_model, tmp_path):
    whole = vector_model.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    for position in rng.integers(header, len(whole), 8):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / MODEL_FILE
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=rf"{MODEL_FILE}: damaged \(its tensors have another"):
            vae.load_model(path)


@pytest.mark.parametrize("dtype", [np.int8, np.bool_, np.float64])
def test_tensors_of_another_dtype_are_refused(vector_model, tmp_path, dtype):
    saved = vae.load_model(vector_model).saved
    variables = jax.tree.map(np.asarray, saved.variables)
    name, kernel = next((n, a) for n, a in by_path(variables).items() if n.endswith("/kernel"))
    leaves = by_path(variables) | {name: kernel.astype(dtype)}
    wrong = dataclasses.replace(saved, variables=from_paths(leaves, variables))
    write_safetensors(tmp_path / MODEL_FILE, wrong)
    with pytest.raises(DataError, match=f"1 tensors do not match its config: {name}: "):
        vae.load_model(tmp_path / MODEL_FILE)


def test_values_that_are_not_finite_are_refused(vector_model, tmp_path):
    saved = vae.load_model(vector_model).saved
    saved = dataclasses.replace(saved, latent_mean=np.full_like(saved.latent_mean, np.nan))
    write_safetensors(tmp_path / MODEL_FILE, saved)
    with pytest.raises(DataError, match=r"infinite or NaN values in latent_mean"):
        vae.load_model(tmp_path / MODEL_FILE)
