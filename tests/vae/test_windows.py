"""Windows over a photograph must equal the network applied to it whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.inference.windows import (
    decode_windows,
    encode_windows,
    pad_to_factor,
    reconstruct_windows,
    window_origins,
)
from vae.models.autoencoder import AutoencoderKL

FACTOR = 4
# Two 3 x 3 convolutions at latent resolution in each half.
DECODER_HALO = 2
ENCODER_HALO = DECODER_HALO * FACTOR
# Float32 sums may be taken in another order for another shape; a seam would be a thousand times it.
TOLERANCE = 1e-5


def _conv(x, kernel, padding=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _network(seed):
    """Random halves whose zero padding and biases make the photograph's border matter."""
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


def _error(a, b):
    return np.abs(a - b).max() / np.ptp(b)


@pytest.mark.parametrize(
    ("height", "width", "batch"),
    [
        (96, 96, 1),  # a whole number of kept regions
        (97, 131, 3),  # no side divisible by the factor, last chunk not full
        (100, 36, 2),  # less than a window wide
        (48, 48, 1),  # one window exactly
        (52, 49, 4),  # one latent step more than a window
        (17, 9, 1),  # smaller than a window on both sides
    ],
)
def test_windows_equal_whole(height, width, batch):
    encode, decode = _network(1)
    image = _image(height, width)
    expected = _whole(encode, decode, image)
    tiled = reconstruct_windows(
        encode, decode, image, factor=FACTOR, encoder_halo=ENCODER_HALO,
        decoder_halo=DECODER_HALO, window=48, batch=batch,
    )  # fmt: skip
    assert tiled.shape == (height, width, 3)
    assert _error(tiled, expected) < TOLERANCE


@pytest.mark.parametrize("short", ["encoder", "decoder"])
def test_halo_one_step_short_leaves_seams(short):
    encode, decode = _network(2)
    image = _image(128, 112)
    halos = {"encoder_halo": ENCODER_HALO, "decoder_halo": DECODER_HALO}
    halos[f"{short}_halo"] -= FACTOR if short == "encoder" else 1
    tiled = reconstruct_windows(encode, decode, image, factor=FACTOR, window=48, **halos)
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


def test_halos_of_the_autoencoder_are_just_enough():
    model = AutoencoderKL(
        latent_channels=4, width=8, deep_width=8, encoder_depth=(1, 1), decoder_depth=(1, 1)
    )
    image = _image(133, 103)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    # Heads start at zero: perturbed, or the conv paths would not be there.
    leaves, tree = jax.tree.flatten(variables["params"])
    rng = np.random.default_rng(0)
    leaves = [p + 0.2 * rng.normal(size=p.shape).astype(np.float32) for p in leaves]
    variables = variables | {"params": jax.tree.unflatten(tree, leaves)}
    encode = jax.jit(lambda x: model.apply(variables, x, method="encode").mean)
    decode = jax.jit(lambda z: model.apply(variables, z, method="decode"))
    padded = pad_to_factor(image, 8)
    whole = np.asarray(decode(encode(padded[None])))[0, : image.shape[0], : image.shape[1]]
    halos = {"encoder_halo": model.encoder_halo, "decoder_halo": model.decoder_halo}
    tiled = reconstruct_windows(encode, decode, image, factor=8, window=96, **halos)
    assert _error(tiled, whole) < TOLERANCE
    for name, step in (("encoder_halo", 8), ("decoder_halo", 1)):
        short = halos | {name: halos[name] - step}
        tiled = reconstruct_windows(encode, decode, image, factor=8, window=96, **short)
        assert _error(tiled, whole) > TOLERANCE
