"""The result from windows equals the network applied to the whole photograph."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.checkpoints.modules import make_model
from vae.configs.fundus256 import LATENT_CHANNELS, get_config
from vae.inference.windows import (
    decode_windows,
    encode_windows,
    pad_to_factor,
    window_origins,
    window_side,
)

FACTOR = 4
# Two 3 x 3 convolutions at latent resolution in each half.
DECODER_HALO = 2
ENCODER_HALO = DECODER_HALO * FACTOR
# The order of float32 sums may depend on the shape; a seam would be a thousand times larger.
TOLERANCE = 1e-5


def _conv(x, kernel, padding=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _network(seed):
    """Random encoder and decoder; zero padding and biases make results depend on the border."""
    keys = jax.random.split(jax.random.key(seed), 6)
    patch = FACTOR * FACTOR * 3

    def kernel(key, size, c_in, c_out):
        return jax.random.normal(key, (size, size, c_in, c_out)) / (size * c_in**0.5)

    stem, enc1, enc2 = (
        kernel(k, s, i, o)
        for k, s, i, o in zip(keys[:3], (1, 3, 3), (patch, 6, 6), (6, 6, 5), strict=True)
    )
    dec1, dec2, head = (
        kernel(k, s, i, o)
        for k, s, i, o in zip(keys[3:], (3, 3, 1), (5, 6, 6), (6, 6, patch), strict=True)
    )

    @jax.jit
    def encode(x):
        b, h, w, c = x.shape
        x = x.reshape(b, h // FACTOR, FACTOR, w // FACTOR, FACTOR, c).transpose(0, 1, 3, 2, 4, 5)
        x = _conv(x.reshape(b, h // FACTOR, w // FACTOR, -1), stem, 0)
        return _conv(jnp.sin(_conv(x, enc1) + 0.5), enc2)

    @jax.jit
    def decode(z):
        z = jnp.sin(_conv(jnp.sin(_conv(z, dec1) + 0.5), dec2) + 0.3)
        b, h, w, _ = z.shape
        x = _conv(z, head, 0).reshape(b, h, w, FACTOR, FACTOR, 3).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, h * FACTOR, w * FACTOR, 3)

    return encode, decode


def _image(height, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (height, width, 3)).astype(np.float32)


def _whole(encode, decode, image):
    padded = pad_to_factor(image, FACTOR)
    output = np.asarray(decode(encode(padded[None])))[0]
    return output[: image.shape[0], : image.shape[1]]


def _windowed(encode, decode, image, encoder_halo=ENCODER_HALO, decoder_halo=DECODER_HALO, batch=1):
    how = {"factor": FACTOR, "window": 48, "batch": batch}
    latents = encode_windows(encode, image, halo=encoder_halo, **how)
    output = decode_windows(decode, latents, halo=decoder_halo, **how)
    return output[: image.shape[0], : image.shape[1]]


def _error(a, b):
    return np.abs(a - b).max() / np.ptp(b)


@pytest.mark.parametrize(
    ("height", "width", "batch"),
    [
        (96, 96, 1),  # a whole number of kept regions
        (97, 131, 3),  # sides not divisible by the factor; the last chunk is incomplete
        (100, 36, 2),  # narrower than a window
        (48, 48, 1),  # one window exactly
        (52, 49, 4),  # one latent step more than a window
        (17, 9, 1),  # smaller than a window on both sides
    ],
)
def test_windows_equal_whole(height, width, batch):
    encode, decode = _network(1)
    image = _image(height, width)
    expected = _whole(encode, decode, image)
    tiled = _windowed(encode, decode, image, batch=batch)
    assert tiled.shape == (height, width, 3)
    assert _error(tiled, expected) < TOLERANCE


@pytest.mark.parametrize("short", ["encoder", "decoder"])
def test_halo_one_step_short_leaves_seams(short):
    encode, decode = _network(2)
    image = _image(128, 112)
    halos = {"encoder_halo": ENCODER_HALO, "decoder_halo": DECODER_HALO}
    halos[f"{short}_halo"] -= FACTOR if short == "encoder" else 1
    tiled = _windowed(encode, decode, image, **halos)
    assert _error(tiled, _whole(encode, decode, image)) > 100 * TOLERANCE


def test_halo_not_divisible_by_factor_is_rounded_up():
    encode, _ = _network(3)
    image = _image(96, 80)
    latents = encode_windows(encode, image, factor=FACTOR, halo=ENCODER_HALO - 3, window=32)
    assert _error(latents, np.asarray(encode(image[None]))[0]) < TOLERANCE


def test_every_call_has_one_shape():
    encode, _ = _network(4)
    shapes = set()

    def spy(x):
        shapes.add(x.shape)
        return encode(x)

    for size in [(64, 80), (65, 131), (48, 48)]:
        encode_windows(spy, _image(*size), factor=FACTOR, halo=ENCODER_HALO, window=48, batch=3)
    assert shapes == {(3, 48, 48, 3)}


def test_dtypes_are_kept():
    image = np.arange(40 * 24 * 3, dtype=np.uint8).reshape(40, 24, 3)
    kept = encode_windows(lambda x: x[:, ::4, ::4], image, factor=4, halo=0, window=16)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, image[::4, ::4])


@pytest.mark.parametrize(("length", "window", "halo"), [(10, 10, 9), (11, 10, 2), (57, 10, 4)])
def test_origins_cover_the_axis(length, window, halo):
    origins = window_origins(length, window, halo)
    covered = np.zeros(length, bool)
    for origin in origins:
        first = origin + halo * (origin > 0)
        last = origin + window - halo * (origin + window < length)
        covered[first:last] = True
    assert covered.all()
    assert origins[0] == 0 and origins[-1] == length - window


def test_window_without_inside_is_refused():
    with pytest.raises(ValueError, match="window of 4 keeps nothing inside a halo of 2"):
        decode_windows(lambda z: z, np.zeros((9, 9, 1)), factor=4, halo=2, window=16)
    with pytest.raises(ValueError, match="multiple of 4, got 18"):
        encode_windows(lambda x: x, np.zeros((40, 40, 3)), factor=4, halo=0, window=18)


@pytest.mark.parametrize("length", [1, 20, 63, 64, 100, 129, 292, 438, 1000])
@pytest.mark.parametrize("halo", [0, 5, 7, 40])
def test_sides_of_windows_are_rounded_to_steps(length, halo):
    side = window_side(length, halo, largest=128, step=8)
    assert side <= length and (side % 8 == 0 or side == length)
    assert side <= max(128, 4 * halo + 8)
    origins = window_origins(length, side, halo)  # fails for a window without inside
    computed = len(origins) * side
    # At most the halo plus the rounding of the side.
    assert computed <= length + (len(origins) - 1) * 2 * halo + 8 * len(origins)


def test_a_photographs_windows_compile_once(model_and_variables):
    module, variables = model_and_variables
    encode = jax.jit(lambda x: module.apply(variables, x, method="encode"))
    for height, width in [(1090, 230), (1100, 230), (1150, 226)]:
        image = _image(height, width)
        posterior = encode_windows(encode, image, factor=8, halo=module.encoder_halo)
        assert posterior.mean.shape == posterior.log_var.shape == (-(-height // 8), 29, 4)
    assert encode._cache_size() == 1


# --- The models of the presets -------------------------------------------------------------------


def _random_variables(module, seed=0):
    """Returns random nonzero variables with the scale of trained ones."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        noise = rng.normal(size=leaf.shape)
        if name.startswith("pca/") and name.endswith(("/sd", "/scale")):
            value = np.exp(rng.uniform(-4, -1, leaf.shape))
        elif len(leaf.shape) > 1:
            value = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name.endswith("norm/scale"):
            value = 1 + 0.2 * noise
        else:
            value = 0.2 * noise
        return np.asarray(value, np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def model_and_variables():
    """Models with the receptive fields of the presets and a fraction of their width."""
    config = get_config("f8c4")
    config.model.update(width=16, deep_width=16)
    module = make_model(config)
    return module, _random_variables(module)


@pytest.mark.parametrize("preset", LATENT_CHANNELS)
def test_windows_equal_whole_for_every_preset(preset):
    module = make_model(get_config(preset))
    variables = _random_variables(module)
    encode = jax.jit(lambda v, x: module.apply(v, x, method="encode").mean)
    decode = jax.jit(lambda v, z: module.apply(v, z, method="decode"))
    encode, decode = (functools.partial(half, variables) for half in (encode, decode))
    image = _image(203, 179)
    latents = np.asarray(encode(pad_to_factor(image, 8)[None]))[0]
    how = {"factor": 8, "window": 168}
    windowed = encode_windows(encode, image, halo=module.encoder_halo, **how)
    assert _error(windowed, latents) < TOLERANCE
    whole = np.asarray(decode(latents[None]))[0]
    windowed = decode_windows(decode, windowed, halo=module.decoder_halo, **how)
    assert _error(windowed, whole) < TOLERANCE


def _reached(function, shape):
    """Returns first and last row and column of the input that affect a random sum of the output."""
    x = jnp.asarray(np.random.default_rng(5).uniform(-1, 1, shape), jnp.float32)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: function(x)))(x))[0]
    rows, columns = np.nonzero(np.abs(gradient).max(axis=-1))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_an_encoded_position_reaches_its_halo_and_no_further(model_and_variables):
    module, variables = model_and_variables
    weights = np.random.default_rng(6).normal(size=(2, 4))

    def position(x):
        posterior = module.apply(variables, x, method="encode")
        return (weights[0] * posterior.mean + weights[1] * posterior.log_var)[0, 6, 7].sum()

    halo = module.encoder_halo
    expected = (6 * 8 - halo, 7 * 8 - 1 + halo, 7 * 8 - halo, 8 * 8 - 1 + halo)
    assert min(expected) > 0 and expected[3] < 8 * 15 - 1  # away from the border
    assert _reached(position, (1, 8 * 15, 8 * 15, 3)) == expected


def test_a_decoded_patch_reaches_its_halo_and_no_further(model_and_variables):
    module, variables = model_and_variables
    weights = np.random.default_rng(7).normal(size=(8, 8, 3))

    def patch(z):
        output = module.apply(variables, z, method="decode")
        return (weights * output[0, 9 * 8 : 10 * 8, 8 * 8 : 9 * 8]).sum()

    halo = module.decoder_halo
    assert halo < 8
    expected = (9 - halo, 9 + halo, 8 - halo, 8 + halo)
    assert _reached(patch, (1, 19, 18, 4)) == expected
