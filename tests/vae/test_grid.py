"""JPEG's grid: found, fitted, chosen, shown in latents, read again, and what it gains."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vae.data.synthetic import fundus_photograph
from vae.inference.photograph import decode_photograph, encode_photograph, phase_of
from vae.metrics import to_float
from vae.models import AutoencoderKL, fit_pca, grid, with_start
from vae.models.layers import space_to_depth

MODEL = AutoencoderKL(
    latent_channels=40, jpeg_grid="both", width=8, deep_width=8,
    encoder_depth=(1, 1), decoder_depth=(1, 1),
)  # fmt: skip
PLAIN = MODEL.clone(jpeg_grid="")
FIRST = (5, 2)  # where blocks begin in the tiles
PHASE = 1 + 8 * (-FIRST[0] % 8) + -FIRST[1] % 8


def tiles(seed, jpeg, count=6, size=128, quality=50):
    """Parts of a photograph that was a JPEG file, or was not, all of one phase."""
    photograph = fundus_photograph(seed, 480)
    grain = np.random.default_rng(seed).normal(0, 8, photograph.shape)
    photograph = np.clip(photograph + grain, 0, 255).astype(np.uint8)
    if jpeg:
        file = io.BytesIO()
        Image.fromarray(photograph).save(file, "jpeg", quality=quality, subsampling=2)
        photograph = np.asarray(Image.open(file))
    origins = 96 + 8 * np.random.default_rng(seed).integers(0, 16, (count, 2)) - FIRST
    return np.stack([photograph[y : y + size, x : x + size] for y, x in origins])


@pytest.fixture(scope="module")
def fitted():
    images = np.concatenate([tiles(0, True), tiles(1, False)])
    pca = fit_pca([images], 40, 8)
    components = grid.fit_grid([images[:5], images[5:]], pca)
    blank = jax.jit(MODEL.init)(jax.random.key(0), to_float(images[:1]))
    return pca, components, with_start(blank, pca, components=components)


def test_the_grid_is_found_where_there_is_one():
    for image in tiles(2, True):
        first, strength = grid.find_grid(image)
        assert first == FIRST and strength > grid.STRONG
    for image in tiles(2, False):
        assert grid.find_grid(image)[1] < grid.STRONG
    assert grid.find_grid(np.full((64, 64, 3), 7, np.uint8))[1] == 0


def test_components_are_those_of_their_phase(fitted):
    pca, components, _ = fitted
    gram = np.einsum("kpc,kpd->kcd", components, components)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(40), gram.shape), atol=1e-5)
    # Turned towards PCA's: leading channels mean nearly the same.
    assert np.einsum("kpc,pc->kc", components, pca.components)[:, 0].min() > 0.9
    patches = space_to_depth(to_float(tiles(3, True)), 8) - pca.mean
    lost = np.asarray(grid.losses(patches, components))
    assert lost.shape == (6, 64)
    # Patches begin at row 0 of tiles, blocks at FIRST: so many rows into a block.
    assert (lost.argmin(axis=1) == PHASE - 1).all()
    code = grid.analyse(patches, jnp.full(6, PHASE), components)
    kept = grid.synthesise(code, jnp.full(1, PHASE), components)
    np.testing.assert_allclose(
        jnp.square(patches - kept).sum(axis=(1, 2, 3)), lost[:, PHASE - 1], rtol=1e-3
    )


def test_a_grid_that_cannot_be_seen_is_found_by_what_others_gave(monkeypatch):
    seen, unseen, none = tiles(10, True), tiles(11, True, quality=70), tiles(11, False)
    moved = [image[y : y + 112, x : x + 112] for image in (*seen, *unseen)
             for y, x in itertools.product((0, 3, 6), (1, 4, 7))]  # fmt: skip
    pca = fit_pca([np.stack(moved)], 40, 8)
    monkeypatch.setattr(
        grid, "_seen", lambda tile: FIRST if any(np.array_equal(tile, s) for s in seen) else None
    )
    first, both = grid.fit_grid([seen], pca), grid.fit_grid([seen, none, unseen], pca)
    assert all(grid._fitted(image, first, pca.mean) == FIRST for image in unseen)
    assert all(grid._fitted(image, first, pca.mean) is None for image in none)
    patches = space_to_depth(to_float(tiles(12, True, quality=70)), 8) - pca.mean
    before, after = (
        np.asarray(grid.losses(patches, components))[:, PHASE - 1].sum()
        for components in (first, both)
    )
    assert after < before


def test_without_a_grid_components_are_those_of_pca():
    images = tiles(4, False)
    pca = fit_pca([images], 40, 8)
    components = grid.fit_grid([images], pca)
    own = np.broadcast_to(pca.components, components.shape)
    np.testing.assert_allclose(components, own, atol=1e-6)


def test_latents_show_their_phase(fitted):
    _, _, variables = fitted
    for jpeg, expected in ((True, PHASE), (False, 0)):
        posterior = MODEL.apply(variables, to_float(tiles(5, jpeg)), method="encode")
        half = posterior.mean.astype(jnp.float16)
        for z in (posterior.mean, half, posterior.sample(jax.random.key(0))):
            assert (grid.read(z.astype(jnp.float32)) == expected).all()


def test_components_of_16_bits_choose_alike(fitted):
    """Not quite orthonormal, they took photographs without a grid for JPEG files."""
    _, components, variables = fitted
    short = components.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(grid.orthonormal(short), components, atol=3e-4)
    gram = np.einsum("kpc,kpd->kcd", *[np.asarray(grid.orthonormal(short))] * 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(40), gram.shape), atol=2e-6)
    x = to_float(np.concatenate([tiles(9, True, 2), tiles(9, False, 2)]))
    whole, rounded = (
        MODEL.apply({**variables, "pca": {**variables["pca"], "grid": {"kernel": kernel}}}, x)
        for kernel in (components, short)
    )
    np.testing.assert_allclose(rounded, whole, atol=2e-3)


def test_codes_lie_apart():
    codes = grid.codes()
    assert codes.shape == (65, grid.SHOWN) and not codes[0].any()
    away = np.linalg.norm(codes[:, None] - codes, axis=-1) + 9 * np.eye(65)
    assert away.min() == pytest.approx(4 * grid.STEP, rel=1e-6)


@pytest.mark.parametrize("phase", [0, 1, 64])
def test_every_phase_is_read_from_noise(phase):
    z = jax.random.normal(jax.random.key(phase), (4, 32, 32, 40))
    z += grid.shown(jnp.full(4, phase), 40)
    assert (grid.read(z) == phase).all()


def test_jpeg_files_are_kept_better_and_others_as_before(fitted):
    pca, _, variables = fitted
    plain = {**variables, "pca": {"fit": variables["pca"]["fit"]}}
    plain["params"] = jax.tree.map(lambda leaf: leaf, variables["params"])
    for path in ("encoder", "decoder"):
        plain["params"][path] = {
            name: leaf
            for name, leaf in variables["params"][path].items()
            if name not in ("phase", "head_grid")
        }
    x = to_float(tiles(6, True))
    error, before = (
        jnp.square(model.apply(its, x) - x).mean(axis=(1, 2, 3))
        for model, its in ((MODEL, variables), (PLAIN, plain))
    )
    assert (10 * jnp.log10(before / error)).min() > 2.0
    x = to_float(tiles(6, False))
    np.testing.assert_allclose(MODEL.apply(variables, x), PLAIN.apply(plain, x), atol=1e-5)
    np.testing.assert_allclose(MODEL.apply(variables, x), pca.decode(pca.encode(x).mean), atol=1e-5)


def test_training_neither_moves_the_choice_nor_takes_the_marks_out(fitted):
    """What is chosen is no matter of parameters, and a mark costs the KL nothing."""
    _, _, variables = fitted
    x = to_float(np.concatenate([tiles(13, True, 2), tiles(13, False, 2)]))
    moved = {**variables, "params": jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])}
    losses = [MODEL.apply(its, x, method="grid_losses") for its in (variables, moved)]
    np.testing.assert_array_equal(*losses)
    assert grid.choose(losses[0]).tolist() == [PHASE, PHASE, 0, 0]

    posterior = MODEL.apply(variables, x, method="encode")
    inside = MODEL.apply(variables, posterior, x, method="unmarked")
    marks = grid.shown(jnp.array([PHASE, PHASE, 0, 0]), 40)
    np.testing.assert_allclose(inside.mean + marks, posterior.mean, atol=1e-5)
    np.testing.assert_array_equal(inside.log_var, posterior.log_var)
    # 16 channels of 0.45 deviations: 1.6 nats a latent, and what their products come to.
    assert (posterior.kl() - inside.kl())[:2].min() > 0.8 * 16 * 16 * 16 * 0.45**2 / 2
    np.testing.assert_allclose(inside.kl()[2:], posterior.kl()[2:], rtol=1e-6)


def test_gradients_reach_both_last_layers(fitted):
    _, _, variables = fitted
    x = to_float(np.concatenate([tiles(7, True, 2), tiles(7, False, 2)]))

    def error(params):
        return jnp.square(MODEL.apply({**variables, "params": params}, x) - x).mean()

    moved = jax.jit(jax.grad(error))(variables["params"])
    for path in ("encoder", "decoder"):
        for head in ("head", "head_grid"):
            assert np.abs(moved[path][head]["kernel"]).max() > 0, (path, head)


def test_parts_of_a_photograph_are_of_its_phase(fitted):
    """Windows that alone would be of another phase, or none, are told."""
    _, _, variables = fitted
    blank = jax.tree.map(lambda leaf: leaf, variables)
    for path in ("encoder", "decoder"):
        for head in ("head", "head_grid"):
            kernel = blank["params"][path][head]["kernel"]
            draw = jax.random.normal(jax.random.key(1), kernel.shape)
            blank["params"][path][head]["kernel"] = 0.01 * draw

    def function(method):
        return jax.jit(
            lambda x, **told: MODEL.apply(
                blank, x if method == "decode" else to_float(x), method=method, **told
            )
        )

    encode, decode, losses = (function(name) for name in ("encode", "decode", "grid_losses"))
    image = np.concatenate([tiles(8, True, 1, 240)[0], tiles(8, False, 1, 240)[0, :, :16]], axis=1)
    assert grid.choose(losses(image[None, :, 240:])) == 0
    assert phase_of(losses, image) == PHASE
    whole = encode(image[None]).mean
    assert grid.read(whole) == PHASE
    latents = encode_photograph(MODEL, encode, losses, image, window=136).mean
    np.testing.assert_allclose(latents, whole[0], atol=1e-4)
    made = decode_photograph(MODEL, decode, latents, window=136)
    np.testing.assert_allclose(made, decode(whole)[0], atol=1e-4)


def test_what_it_needs_is_said():
    for settings in ({"latent_channels": 16}, {"downsample": 16, "encoder_depth": (1, 1, 1),
                     "decoder_depth": (1, 1, 1)}):  # fmt: skip
        with pytest.raises(ValueError, match="jpeg_grid='both' needs downsample=8"):
            MODEL.clone(**settings).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
