"""The vessel network with random weights: shapes, symmetry, errors; the agreement of maps."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vae.data.errors import DataError
from vae.data.fov import UNKNOWN, FieldOfView
from vae.evaluation.vessels import SIDE, _doubled, _probability, dice, load_segmentation


def random_weights():
    """Tensors of both U-Nets with PyTorch's names; a convolution is [out, in, rows, columns]."""
    rng, found = np.random.default_rng(0), {}

    def conv(name, out, into, side, bias=True):
        found[f"{name}.weight"] = rng.normal(0, (into * side**2) ** -0.5, (out, into, side, side))
        if bias:
            found[f"{name}.bias"] = rng.normal(0, 0.1, out)

    def norm(name, width):
        found[f"{name}.weight"], found[f"{name}.running_var"] = rng.uniform(0.5, 2, (2, width))
        found[f"{name}.bias"], found[f"{name}.running_mean"] = rng.normal(0, 0.1, (2, width))

    def layer(name, position, out, into):
        conv(f"{name}.{position}", out, into, 3)
        norm(f"{name}.{position + 2}", out)

    def block(name, out, into):
        layer(f"{name}.block", 0, out, into)
        layer(f"{name}.block", 3, out, out)
        conv(f"{name}.shortcut.0", out, into, 1, bias=False)
        norm(f"{name}.shortcut.1", out)

    for name, channels in (("unet1", 3), ("unet2", 4)):
        block(f"{name}.first", 8, channels)
        for level, (out, into) in enumerate(((16, 8), (32, 16))):
            block(f"{name}.down_path.{level}", out, into)
        for level, (out, into) in enumerate(((16, 32), (8, 16))):
            conv(f"{name}.up_path.{level}.up_layer.block.0", into, out, 2)
            found[f"{name}.up_path.{level}.up_layer.block.0.bias"] = rng.normal(0, 0.1, out)
            layer(f"{name}.up_path.{level}.conv_bridge_layer.block", 0, out, out)
            block(f"{name}.up_path.{level}.conv_layer", out, 2 * out)
        conv(f"{name}.final", 1, 8, 1)
    return {name: np.float32(leaf) for name, leaf in found.items()}


@pytest.fixture(scope="module")
def weights():
    return random_weights()


def test_the_number_of_parameters_is_that_of_the_publication(weights):
    counted = (leaf for name, leaf in weights.items() if "running" not in name)
    assert sum(leaf.size for leaf in counted) == 68_482


def test_flipped_photographs_have_flipped_maps(weights):
    image = np.random.default_rng(1).uniform(0, 1, (1, 32, 40, 3)).astype(np.float32)
    made = np.asarray(_probability(weights, image))
    assert made.shape == (1, 32, 40) and 0 < made.min() < made.max() < 1
    for axis in (1, 2):
        flipped = _probability(weights, np.flip(image, axis))
        np.testing.assert_allclose(np.flip(flipped, axis), made, atol=1e-5)


def test_the_transposed_convolution_by_hand():
    x = jnp.arange(4.0).reshape(1, 1, 2, 2)  # one row, two columns, two channels
    kernel = np.arange(16.0).reshape(2, 2, 2, 2)  # [in, out, row, column]
    made = np.asarray(_doubled({"c.weight": kernel, "c.bias": np.array([0.5, 0])}, "c", x))
    for column in (0, 1):
        for out in (0, 1):
            expected = sum(x[0, 0, column, k] * kernel[k, out] for k in (0, 1))
            part = made[0, :, 2 * column : 2 * column + 2, out]
            np.testing.assert_allclose(part, expected + (0.5 if out == 0 else 0))


def test_only_the_field_of_view_is_seen(weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors")
    vessels = load_segmentation(tmp_path / "w.safetensors")
    image = np.random.default_rng(2).integers(0, 256, (90, 120, 3), np.uint8)
    fov = FieldOfView(60.0, 45.0, 40.0, 5.0, 85.0, 20.0, 100.0)
    made = vessels(image, fov)
    assert made.shape == (SIDE, SIDE) and made.dtype == bool
    changed = image.copy()
    changed[~fov.mask(90, 120)] = 255
    np.testing.assert_array_equal(vessels(changed, fov), made)
    assert (vessels(changed, UNKNOWN) != made).any()


def test_other_files_are_refused(weights, tmp_path):
    (tmp_path / "text").write_text("no weights")
    save_file({"unet1.final.bias": np.zeros(1, np.float32)}, tmp_path / "part.safetensors")
    for name, words in (("text", "cannot be read"), ("none", "cannot be read"),
                        ("part.safetensors", "not the weights of the vessel network")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            load_segmentation(tmp_path / name)


def test_dice():
    a = np.zeros((4, 4), bool)
    a[:2] = True
    assert dice(a, a) == 1 and dice(a, ~a) == 0
    assert dice(a, np.ones((4, 4), bool)) == pytest.approx(2 * 8 / 24)
    assert np.isnan(dice(a & False, a & False))
