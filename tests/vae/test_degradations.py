"""Degradations: common guarantees, and the physics of each."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data as bundled

from vae.cli import main
from vae.data.images import read_image, write_image
from vae.inference.contact_sheet import contact_sheet
from vae.models.degradations import DEGRADATIONS, GAMMA, REACH, FovGeometry, degrade

SIDE = 64
KEY = jax.random.key(7)
# 35 and 50 leave remainders 3 and 2 by 8: no grid line passes through a tile's corner.
ORIGIN = (35, 50)
SPATIAL = {"haze": REACH, "defocus": REACH, "motion": REACH, "downsampling": 24, "jpeg": 8}


def place(y, x):
    return FovGeometry(
        jnp.int32(y), jnp.int32(x), jnp.float32(100), jnp.float32(110), jnp.float32(100)
    )


@pytest.fixture(scope="module")
def photograph():
    """Smooth with texture; float32 [200, 220, 3] in [0.1, 0.9]."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.2, 0.8, (10, 11, 3)).astype(np.float32)
    smooth = jax.image.resize(coarse, (200, 220, 3), "cubic")
    return np.clip(np.asarray(smooth) + rng.normal(0, 0.02, smooth.shape), 0.1, 0.9).astype(
        np.float32
    )


def applied(name, image, severity, y=0, x=0, key=KEY):
    fov = jnp.ones(image.shape[:2], bool)
    run = jax.jit(lambda image, place, s, key: degrade(image, fov, place, {name: s}, key))
    return np.asarray(run(image, place(y, x), severity, key))


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_every_degradation(name, photograph):
    y, x = ORIGIN
    tile = photograph[y : y + SIDE, x : x + SIDE]
    np.testing.assert_array_equal(applied(name, tile, 0.0, y, x), tile)
    harm = []
    for severity in (0.25, 1.0):
        made = applied(name, tile, severity, y, x)
        assert made.dtype == np.float32 and made.min() >= 0 and made.max() <= 1
        np.testing.assert_array_equal(made, applied(name, tile, severity, y, x))
        harm.append(np.abs(made - tile).mean())
    assert 0 < harm[0] < harm[1]
    # A tile that overlaps by half agrees, except where a blur needs pixels outside both tiles.
    shift = SIDE // 2
    other = applied(
        name, photograph[y + 5 : y + 5 + SIDE, x + shift :][:, :SIDE], 1.0, y + 5, x + shift
    )
    margin = SPATIAL.get(name, 0)
    if 2 * margin < shift:
        ours = made[5 + margin : SIDE - margin, shift + margin : SIDE - margin]
        theirs = other[margin : SIDE - 5 - margin, margin : shift - margin]
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_outside_the_field_of_view_nothing_changes(photograph):
    fov = np.zeros(photograph.shape[:2], bool)
    fov[50:150, 50:150] = True
    every = dict.fromkeys(DEGRADATIONS, 1.0)
    run = jax.jit(lambda image, place: degrade(image, fov, place, every, KEY))
    made = np.asarray(run(photograph, place(0, 0)))
    np.testing.assert_array_equal(made[~fov], photograph[~fov])
    assert np.abs(made - photograph)[fov].mean() > 0.05


@pytest.mark.parametrize("name", ["illumination", "colour_cast", "haze", "spots", "low_contrast"])
def test_another_key_is_another_photograph(name, photograph):
    first, second = (applied(name, photograph, 1.0, key=jax.random.key(k)) for k in (0, 1))
    assert np.abs(first - second).mean() > 1e-3


@pytest.mark.parametrize("name", ["defocus", "motion"])
def test_blurs_neither_add_nor_lose_light(name):
    point = np.zeros((SIDE, SIDE, 3), np.float32)
    point[32, 32] = 1
    for severity in (0.3, 1.0):
        light = applied(name, point, severity) ** GAMMA
        # Errors of Fourier transforms and of powers near zero in single precision.
        np.testing.assert_allclose(light.sum(axis=(0, 1)), 1, rtol=2e-3)
        assert light.max() < 0.5


def test_illumination_only_darkens(photograph):
    for seed in range(4):
        made = applied("illumination", photograph, 1.0, key=jax.random.key(seed))
        assert (made <= photograph + 1e-6).all()


def test_noise_has_the_variance_of_photons_and_electronics():
    for level in (0.4, 0.7):  # four standard deviations from black and white
        light = level**GAMMA
        made = applied("noise", np.full((256, 256, 3), level, np.float32), 1.0) ** GAMMA
        found = made.astype(np.float64)
        expected = 0.004 * light + 0.01**2
        # The standard error of a variance of 196,608 values is 0.3%.
        assert found.mean() == pytest.approx(light, abs=4 * (expected / found.size) ** 0.5)
        assert found.var() == pytest.approx(expected, rel=0.015)
        # Grain is white: neighbouring pixels are uncorrelated.
        grain = found[..., 0] - found[..., 0].mean()
        assert abs((grain[1:] * grain[:-1]).mean() / grain.var()) < 0.02
        assert abs((grain[:, 1:] * grain[:, :-1]).mean() / grain.var()) < 0.02


def test_jpeg_matches_pillow(photograph):
    tile = np.rint(photograph[:SIDE, :SIDE] * 255).astype(np.uint8)
    for severity, quality in ((0.0, 90), (8 / 13, 50), (1.0, 25)):
        file = io.BytesIO()
        Image.fromarray(tile).save(file, "JPEG", quality=quality, subsampling=0)
        theirs = np.asarray(Image.open(file)).astype(float)
        ours = applied("jpeg", tile / np.float32(255), max(severity, 1e-6)) * 255
        # The library also rounds coefficients and colours to integers; at quality 90 this is as
        # large as the quantisation.
        error = np.abs(tile - theirs).mean()
        assert np.abs(ours - theirs).mean() < max(0.35 * error, 0.8)


def test_unknown_names(photograph):
    with pytest.raises(ValueError, match=r"no degradation \['fog'\]; there are haze, illumination"):
        degrade(photograph, np.ones((200, 220), bool), place(0, 0), {"fog": 1.0}, KEY)


def test_contact_sheet_of_a_photograph(tmp_path, capsys):
    photograph = bundled.retina()[::3, ::3]
    write_image(tmp_path / "eye.png", photograph)
    out = tmp_path / "sheet.png"
    assert main(["degradations", str(tmp_path / "eye.png"), "--out", str(out), "--seed", "1"]) == 0
    sheet = read_image(out)
    panels = [
        [sheet[24 + 244 * row :, 120 + 244 * column :][:240, :240] for column in range(5)]
        for row in range(len(DEGRADATIONS))
    ]
    middle = photograph[(471 - 240) // 2 - 9 : (471 + 240) // 2 + 9]
    for row in panels:
        harm = [np.abs(panel.astype(float) - row[0]).mean() for panel in row]
        assert harm[0] == 0 and 0 < harm[1] < harm[4]
    assert {tuple(pixel) for pixel in panels[3][0].reshape(-1, 3)} <= {
        tuple(pixel) for pixel in middle.reshape(-1, 3)
    }

    def refused(*arguments):
        code = main(["degradations", *map(str, arguments)])
        (line,) = capsys.readouterr().err.splitlines()
        return code, line

    assert refused(tmp_path / "eye.png", "--out", out) == (
        2, f"error: --out {out} is there already; give a new name, or remove it first")  # fmt: skip
    out = tmp_path / "another.png"
    small = tmp_path / "small.png"
    write_image(small, photograph[:200, :200])
    assert refused(small, "--out", out) == (
        1, f"error: {small}: expected sides of at least 240 pixels, got 200 x 200")  # fmt: skip
    assert refused(tmp_path / "gone.png", "--out", out)[0] == 1
    assert refused(tmp_path / "eye.png", "--out", tmp_path / "sheet.txt")[0] == 2
    assert refused(tmp_path / "eye.png", "--out", tmp_path / "none" / "sheet.png")[0] == 2
    assert refused(tmp_path / "eye.png", "--out", out, "--seed", "-1")[0] == 2


def test_contact_sheet_shows_nothing_outside_the_field_of_view():
    photograph = bundled.retina()[::3, ::3].copy()
    clean = contact_sheet(photograph)
    photograph[:25, :60] = 255  # A burned-in name.
    photograph[-20:, -70:] = (0, 255, 0)
    np.testing.assert_array_equal(contact_sheet(photograph), clean)
    # It is black in all panels of a whole photograph: haze covers the field of view only.
    whole = 24 + 244 * list(DEGRADATIONS).index("haze")
    assert not clean[whole : whole + 20, 120 + 244 * 4 :][:, :20].any()
    assert clean[whole + 120, 120 + 244 * 4 + 120].min() > 30
