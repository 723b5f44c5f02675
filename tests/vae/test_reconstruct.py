"""Files of reconstructions: pictures, metadata, refused inputs."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

import vae
from vae.data.failures import Failure
from vae.data.fov import FieldOfView
from vae.data.images import decode_image
from vae.data.inputs import Item
from vae.inference import pictures
from vae.inference.reconstruct import (
    Reconstruction,
    origin_of,
    reconstruct_inputs,
    write_reconstructions,
)

ORIGIN = {"model": "0123456789abcdef", "version": "1", "command": "fundus-vae reconstruct ä.png"}


@pytest.fixture(scope="module")
def model(finished):
    return vae.load_model(finished[1])


class Listed:
    """Inputs from a list of items."""

    def __init__(self, items):
        self._items = items

    def read(self):
        return iter(self._items)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_items_of_all_sizes_keep_their_order(model):
    sizes = [(32, 32)] * 18 + [(40, 24)] * 2 + [(32, 32), (600, 450), (40, 24)]
    items = [Item(str(i), "", noise(*size, seed=i)) for i, size in enumerate(sizes)]
    items.insert(5, Failure("bad", "bad.png", "bad.png: is no image"))
    results = list(reconstruct_inputs(model, Listed(items)))
    assert [r.item_id if isinstance(r, Failure) else r.item.item_id for r in results] == [
        item.item_id for item in items
    ]
    for result in results:
        if isinstance(result, Reconstruction):
            alone = model.reconstruct(result.item.image).astype(int)
            # Sums are in another order for another batch, so a value may round the other way.
            assert np.abs(result.output - alone).max() <= 1
            assert 0 < result.ssim < 1


def test_border_is_black_if_the_field_of_view_is_known(model):
    fov = FieldOfView(20.0, 20.0, 12.0, 0.0, 39.0, 0.0, 39.0)
    known = Item("a", "", np.maximum(noise(40, 40), 60), fov=fov, origin=(0, 0))
    (black,) = reconstruct_inputs(model, Listed([known]))
    outside = ~known.mask()
    assert not black.output[outside].any() and not black.image[outside].any()
    (kept,) = reconstruct_inputs(model, Listed([known]), keep_border=True)
    np.testing.assert_array_equal(kept.output, model.reconstruct(known.image))
    unknown = Item("a", "", known.image)
    (result,) = reconstruct_inputs(model, Listed([unknown]))
    np.testing.assert_array_equal(result.output, kept.output)


def test_difference_map_follows_its_scale():
    grey = np.array([[0.0, 2.5, 5.0, 50.0]], np.float32)
    colours = pictures.difference_map(grey, 5.0)[0].astype(int)
    assert np.all(np.diff(colours.sum(axis=1))[:2] > 0)  # larger differences are brighter
    np.testing.assert_array_equal(colours[2], colours[3])
    image, output = noise(8, 9), noise(8, 9, seed=1)
    expected = np.abs(image.astype(float) - output).mean(axis=-1)
    np.testing.assert_allclose(pictures.difference(image, output), expected, rtol=1e-5)


def test_small_tiles_are_enlarged_with_a_scale():
    image, output = noise(100, 100), noise(100, 100, seed=1)
    page = pictures.comparison(image, output, np.ones((100, 100), bool), caption="a  b", levels=5.0)
    for panel in (image, output, pictures.difference_map(pictures.difference(image, output), 5.0)):
        enlarged = panel.repeat(6, axis=0).repeat(6, axis=1)
        row = enlarged[0]
        found = [
            (y, x)
            for y in range(page.shape[0] - 600)
            for x in range(0, page.shape[1] - 599)
            if (page[y, x : x + 3] == row[:3]).all() and (page[y, x : x + 600] == row).all()
        ]
        y, x = found[0]
        np.testing.assert_array_equal(page[y : y + 600, x : x + 600], enlarged)
    ramp = pictures.difference_map(np.linspace(0, 5, 600, dtype=np.float32)[None], 5.0)[0]
    assert any((page[y, -612:-12] == ramp).all() for y in range(page.shape[0]))


def test_the_detail_of_a_photograph_has_the_largest_difference_inside():
    image = np.full((1000, 1500, 3), 100, np.uint8)
    output = image.copy()
    output[700:760, 300:380] += 20
    output[:40, 900:1400] += 90  # on the border of the field of view, which is ignored
    mask = np.zeros((1000, 1500), bool)
    mask[30:] = True
    page = pictures.comparison(image, output, mask, caption="x", levels=5.0)
    assert page.shape[1] == 3 * 640 + 4 * 12
    detail = page[:, 12 + 640 + 12 : 12 + 2 * 640 + 12].astype(int)
    assert (detail == 120).all(axis=-1).sum() > 2 * 60 * 2 * 80  # shown at twice its size


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_files_contain_model_and_version(suffix):
    image = noise(20, 30)
    encoded = pictures.encode_with_text(image, suffix, ORIGIN)
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.load()
        text = picture.text if suffix == ".png" else picture.info["comment"].decode()
    assert "ä.png" not in str(text)  # a command may name other photographs
    for name, value in {**ORIGIN, "command": "fundus-vae reconstruct"}.items():
        assert text[name] == value if suffix == ".png" else f"{name}: {value}" in text
    decoded = decode_image(encoded, "x")
    assert decoded.shape == image.shape
    if suffix == ".png":
        np.testing.assert_array_equal(decoded, image)


def test_ids_stay_in_their_folder(tmp_path):
    image = noise(16, 16)
    for name in ("../outside", "/tmp/outside"):
        result = Reconstruction(Item(name, "shard", image), image, image, 1.0, 88.0)
        (row,) = write_reconstructions(iter([result]), tmp_path / "out", origin=ORIGIN)
        assert isinstance(row, Failure) and "leaves the output folder" in row.reason
    assert not list(tmp_path.rglob("*.png"))


def test_long_commands_are_truncated(model, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/bin/fundus-vae", "reconstruct", *["a photograph.png"] * 900]
    )
    origin = origin_of(model)
    assert origin["command"].startswith("fundus-vae reconstruct 'a photograph.png'")
    assert len(origin["command"]) < 600 and origin["command"].endswith(" ...")
    assert origin["model"] == model.hash
