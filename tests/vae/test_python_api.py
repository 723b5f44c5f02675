"""The Python interface: inputs, hints, `repr`, pickling, the list of bundled models."""

import concurrent.futures
import inspect
import io
import multiprocessing
import pickle

import numpy as np
import pytest
from PIL import Image
from skimage import data as bundled

import vae
from vae import weights
from vae.cli import main
from vae.data.errors import DataError
from vae.data.fov import find_fov
from vae.data.images import decode_image, write_image
from vae.inference.arrays import as_images


@pytest.fixture(scope="module")
def model():
    return vae.load_model("f8c4")


@pytest.fixture(scope="module")
def photograph():
    return np.ascontiguousarray(bundled.retina()[::8, ::8])


def test_a_path_a_pillow_image_and_an_array_are_the_same_photograph(model, photograph, tmp_path):
    file = tmp_path / "eye.png"
    write_image(file, photograph)
    wanted = model.encode(photograph)
    for given in (file, str(file), Image.open(file)):
        np.testing.assert_array_equal(model.encode(given), wanted)
        assert model.reconstruct(given).shape == photograph.shape
    with pytest.raises(DataError, match="gone.png"):
        model.encode(tmp_path / "gone.png")


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "turned"])
def test_a_pillow_image_has_the_pixels_of_its_file(mode, photograph):
    image, buffer = Image.fromarray(photograph), io.BytesIO()
    if mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(buffer, "PNG", exif=exif)
    else:
        image.convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    wanted = decode_image(buffer.getvalue(), "eye")
    np.testing.assert_array_equal(as_images(Image.open(buffer), "images"), wanted)


def test_a_pillow_image_of_16_bits_is_refused():
    with pytest.raises(DataError, match="mode I;16 has more than 8 bits"):
        as_images(Image.fromarray(np.zeros((4, 4), np.uint16)), "images")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda x: x[None].transpose(0, 3, 1, 2), lambda x: x.transpose(0, 2, 3, 1)[0]),
        (lambda x: x.transpose(2, 0, 1), lambda x: x.transpose(1, 2, 0)),
        (lambda x: np.concatenate([x, x[..., :1]], -1), lambda x: x[..., :3]),
        (lambda x: x / np.float32(255), None),
        (lambda x: x / np.float32(127.5) - 1, None),
        (lambda x: x.astype(np.float64), None),
        (lambda x: (x / np.float32(255)).transpose(2, 0, 1), None),
    ],
)
def test_hints_convert_the_usual_mistakes(change, remedy, photograph):
    wrong = change(photograph)
    with pytest.raises(ValueError, match="expected uint8") as error:
        as_images(wrong, "images")
    hints = str(error.value).split("; ")[1:]
    assert hints
    for hint in hints:
        names = {"images": wrong, "np": np}
        if hint.startswith("the channels come first: "):
            order = hint.partition(": ")[2].removesuffix(" puts them last")
            wrong = eval(order, names)
        elif hint.startswith("for its values give "):
            wrong = eval(hint.removeprefix("for its values give "), names)
        else:
            assert "[..., :3]" in hint
            wrong = wrong[..., :3]
    np.testing.assert_array_equal(as_images(wrong, "images").reshape(photograph.shape), photograph)
    assert remedy is None or (remedy(change(photograph)) == photograph).all()


def test_grey_arrays_get_a_hint(photograph):
    for grey in (photograph[..., 0], photograph[..., :1]):
        with pytest.raises(ValueError, match="it is grey: np.repeat"):
            as_images(grey, "images")


def test_an_enhancer_finds_the_field_of_view(photograph, tmp_path):
    model = vae.load_enhancer()
    wanted = model.enhance(photograph, find_fov(photograph))
    write_image(tmp_path / "eye.png", photograph)
    for given in (photograph, tmp_path / "eye.png"):
        np.testing.assert_array_equal(model.enhance(given), wanted)
    with pytest.raises(DataError, match=r"fov=vae\.data\.fov\.UNKNOWN enhances the whole"):
        model.enhance(photograph[60:110, 60:110])
    with pytest.raises(ValueError, match="channels come first"):
        model.enhance(photograph.transpose(2, 0, 1))
    assert "enhance.safetensors" in repr(model)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.enhance(photograph), wanted)


def test_sample_takes_a_number_of_tiles():
    sampler = vae.load_sampler()
    tiles = sampler.sample(2, seed=3, steps=1, method="euler")
    assert tiles.shape == (2, 256, 256, 3)
    np.testing.assert_array_equal(sampler.sample([0, 1], seed=3, steps=1, method="euler"), tiles)
    for words in ("256 x 256", "prior.safetensors", "f8c4"):
        assert words in repr(sampler)
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy.hash == sampler.hash


def test_a_model_says_what_it_is(model, vector_model):
    assert "any size -> latents [H/8, W/8, 4]" in repr(model) and "f8c4" in repr(model)
    assert "32 x 32 pixels" in repr(vae.load_model(vector_model))
    assert len(repr(model.saved)) < 300
    assert inspect.signature(vae.load_model).parameters["path"].default == weights.DEFAULT.stem


def test_a_model_works_in_spawned_processes(model, photograph):
    tiles = photograph[None, :64, :64]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        np.testing.assert_array_equal(
            pool.submit(model.encode, tiles).result(), model.encode(tiles)
        )


class Latents:
    """A dataset as in docs/pytorch.md."""

    def __init__(self, files):
        self.files, self.model = files, vae.load_model("f8c4")

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.model.encode(self.files[i])


def test_a_torch_dataloader_with_workers(model, photograph, tmp_path):
    data = pytest.importorskip("torch.utils.data", reason="no torch")
    file = tmp_path / "eye.png"
    write_image(file, photograph[:64, :64])
    loader = data.DataLoader(Latents([file]), num_workers=1, multiprocessing_context="spawn")
    (batch,) = loader
    np.testing.assert_array_equal(batch[0].numpy(), model.encode(file))


def test_every_bundled_file_is_listed(capsys):
    assert set(vae.presets()) == {path.stem for path in weights.FOLDER.glob("*.safetensors")}
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in vae.presets())


def test_info_of_the_bundled_enhancer_and_prior(capsys):
    assert main(["info", "enhance"]) == 0
    text = capsys.readouterr().out
    assert "an enhancer of photographs" in text and "dB before" in text and "latent" not in text
    assert main(["info", "prior"]) == 0
    text = capsys.readouterr().out
    assert "a prior over latents" in text and "Wasserstein" in text
