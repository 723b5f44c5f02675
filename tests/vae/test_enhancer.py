"""The enhancer: identity at step 0, receptive field, tone, and posterior samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.checkpoints.modules import initial_variables, make_model
from vae.configs import enhance256
from vae.data.errors import UsageError
from vae.data.thumbnails import MARGIN, THUMBNAIL
from vae.models.tone import GRID, _weights
from vae.training.validation import validate

SIDE = 160
PLACE = np.array([[70.0, 100.0, 120.0]], np.float32)


@pytest.fixture(scope="module")
def config():
    return enhance256.get_config("smoke")


@pytest.fixture(scope="module")
def model(config):
    return make_model(config)


@pytest.fixture(scope="module")
def fresh(config):
    return jax.jit(lambda: initial_variables(config))()


@pytest.fixture(scope="module")
def variables(fresh):
    """Variables with nonzero heads; with zero heads most parameters have no effect."""
    leaves, tree = jax.tree.flatten(fresh["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    moved = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in pairs]
    return {**fresh, "params": jax.tree.unflatten(tree, moved)}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, SIDE, SIDE, 3)).astype(np.float32)
    return image, rng.uniform(-1, 1, (1, THUMBNAIL, THUMBNAIL, 3)).astype(np.float32), PLACE


@pytest.mark.parametrize("preset", enhance256.PRESETS)
def test_presets_are_valid(preset):
    config = enhance256.get_config(preset)
    config.data.dir = "" if config.data.source else "somewhere"
    validate(config, 8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train.stage": "blur"}, "train.stage='blur' is none of 'all', 'tone'"),
        ({"train.thumbnail_draws": 0}, "train.thumbnail_draws=0 must be positive"),
        ({"model.tone_evidence": (15.0, 10.0)}, "must be two rising grey levels"),
    ],
)
def test_impossible_stages(change, message):
    config = enhance256.get_config("sharpening")
    config.data.dir = "somewhere"
    config.update_from_flattened_dict(change)
    with pytest.raises(UsageError, match=message):
        validate(config, 8)


def test_starts_as_the_identity(model, fresh, inputs):
    # The linear code is subtracted from itself; only rounding remains.
    made = jax.jit(model.apply)(fresh, *inputs)
    np.testing.assert_allclose(made, inputs[0], atol=1e-6)


def test_the_output_depends_on_every_parameter(model, variables, inputs):
    def loss(params):
        draw = lambda p: p.mean + jnp.exp(0.5 * p.log_var)  # noqa: E731
        image, _ = model.apply({**variables, "params": params}, *inputs, draw, method="restore")
        scale = model.apply({**variables, "params": params}, method="log_scale")
        return jnp.sum(image**2) + scale

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    # The image does not depend on the mean that the linear path adds back.
    unused = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.abs(leaf).max() > 0
    ]
    assert unused == []


def test_a_pixel_affects_no_pixels_beyond_the_halo(model, variables, inputs):
    image = inputs[0]
    y, x = 80, 72
    changed = image.copy()
    changed[0, y, x] += 1
    apply = jax.jit(lambda image: model.apply(variables, image, method="detail"))
    moved = np.abs(apply(changed) - apply(image))
    rows, columns = np.nonzero(moved[0].max(axis=-1) > 1e-5)
    # The pixel's own 8 x 8 patch, and `detail_halo` pixels around it.
    assert y - 8 - model.detail_halo < rows.min() and rows.max() < y + 8 + model.detail_halo
    assert x - 8 - model.detail_halo < columns.min() and columns.max() < x + 8 + model.detail_halo
    # The effect extends far beyond the patch, so the bound is tested.
    assert np.ptp(rows) > model.detail_halo


def test_tone_of_a_tile_equals_that_of_its_photograph(model, variables, inputs):
    image, thumbnail, circle = inputs
    whole = model.apply(variables, *inputs, method="tone")
    assert np.abs(whole - image).max() > 0.01
    tile = image[:, 40:72, 16:80]
    alone = model.apply(variables, tile, thumbnail, circle - np.float32([40, 16, 0]), method="tone")
    np.testing.assert_allclose(alone, whole[:, 40:72, 16:80], atol=1e-5)


def test_grid_cells_match_the_pixels_of_the_thumbnail():
    pixels = 2 * MARGIN * 100  # side of a thumbnail for an FOV radius of 100 pixels
    centre = jnp.array([pixels / 2 - 0.5])
    weights = np.asarray(_weights(int(pixels), centre, jnp.array([100.0])))[0]
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    middles = (np.arange(GRID) + 0.5) / GRID * pixels - 0.5
    found = (weights * np.arange(int(pixels))[:, None]).sum(axis=0) / weights.sum(axis=0)
    np.testing.assert_allclose(found[2:-2], middles[2:-2], atol=0.5)


def test_training_samples_the_posterior_and_inference_uses_its_mean(model, variables, inputs):
    toned = model.apply(variables, *inputs, method="tone_in_training")
    toned = model.apply(variables, toned, inputs[2], method="sharpen")
    detailed = model.apply(variables, toned, method="detail")
    restore = functools.partial(model.apply, variables, *inputs, method="restore")
    mean, posterior = restore(lambda p: p.mean)
    np.testing.assert_allclose(detailed, mean, atol=1e-5)
    noise = jax.random.normal(jax.random.key(2), posterior.mean.shape)
    sampled, same = restore(lambda p: p.mean + jnp.exp(0.5 * p.log_var) * noise)
    np.testing.assert_allclose(same.mean, posterior.mean, atol=1e-5)
    assert np.abs(sampled - mean).mean() > 0.01
