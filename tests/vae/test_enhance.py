"""Enhancement of photographs: seams, strength, colour, judgement, the command."""

import csv
import math
import os
import re
import resource
import shutil
import time
import urllib.parse

import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data as bundled

import vae
from tests.data.test_images import swapped_profile
from vae.checkpoints.modules import initial_variables
from vae.checkpoints.safetensors_io import SavedModel, write_safetensors
from vae.cli import main
from vae.configs import enhance256
from vae.data.errors import DataError
from vae.data.fov import UNKNOWN, FieldOfView, find_fov
from vae.data.images import read_image
from vae.data.inputs import open_inputs
from vae.data.thumbnails import circle_of, make_thumbnail
from vae.inference import enhance, windows
from vae.inference.enhance import EnhancementModel, load_enhancer

SIDE = 328  # several windows along one axis; the other is no multiple of the patch size
FOV = FieldOfView(150.0, 170.0, 140.0, 30.0, 310.0, 10.0, 290.0)


@pytest.fixture(scope="module")
def config():
    return enhance256.get_config("smoke")


def saved_model(config, variables):
    channels = config.model.latent_channels
    return SavedModel(
        path="nowhere",
        config=config,
        step=3,
        variables=variables,
        latent_mean=np.zeros(channels, np.float32),
        latent_var=np.ones(channels, np.float32),
        provenance={},
    )


@pytest.fixture(scope="module")
def fresh(config):
    return jax.tree.map(np.asarray, jax.jit(lambda: initial_variables(config))())


@pytest.fixture(scope="module")
def moved(fresh):
    """Variables with nonzero heads; with zero heads most parameters have no effect."""
    rng = np.random.default_rng(1)
    shift = lambda leaf: leaf + rng.normal(0, 0.02, leaf.shape).astype(np.float32)  # noqa: E731
    return {**fresh, "params": jax.tree.map(shift, fresh["params"])}


@pytest.fixture(scope="module")
def model(config, moved):
    return EnhancementModel(saved_model(config, moved))


@pytest.fixture(scope="module")
def photograph():
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 220, (SIDE // 8 + 1, SIDE // 8 + 1, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((SIDE - 5, SIDE), Image.Resampling.BICUBIC)
    # R > G > B, as in fundus photographs.
    return np.sort(np.asarray(smooth), axis=-1)[..., ::-1].copy()


def test_windows_equal_the_whole(model, photograph, monkeypatch):
    whole = model.enhance(photograph, FOV)
    monkeypatch.setattr(windows, "LARGEST", 128)
    cut = model.enhance(photograph, FOV)
    # Sums in another order can round a value between two levels the other way.
    assert np.abs(cut.astype(int) - whole).max() <= 1 and np.mean(cut != whole) < 1e-3
    assert np.abs(whole.astype(int) - photograph)[FOV.mask(*photograph.shape[:2])].mean() > 2


def test_strength(model, photograph):
    inside = FOV.mask(*photograph.shape[:2])
    none, half, full = (model.enhance(photograph, FOV, strength=s) for s in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(none, photograph)
    np.testing.assert_array_equal(full[~inside], photograph[~inside])
    free = inside[..., None] & (full > 1) & (full < 254)
    middle = (photograph.astype(float) + full) / 2
    assert np.abs(half - middle)[free].max() <= 1  # both are rounded
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="expected a number from 0 to 1"):
            model.enhance(photograph, FOV, strength=strength)


@pytest.mark.parametrize(
    ("photograph", "got"),
    [
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
        (np.zeros((8, 8, 3)), r"float64 \[8, 8, 3\]"),
        ([[[0, 0, 0]]], r"list \[1, 1, 3\]"),
    ],
)
def test_wrong_photographs_are_named(model, photograph, got):
    for method in (model.enhance, model.enhanced):
        with pytest.raises(ValueError, match=rf"expected uint8 \[H, W, 3\] .* got {got}"):
            method(photograph, UNKNOWN)


def test_an_untrained_model_changes_nothing(config, fresh, photograph):
    model = EnhancementModel(saved_model(config, fresh))
    np.testing.assert_array_equal(model.enhance(photograph, UNKNOWN), photograph)


def test_sharpening_in_strips_equals_the_module(model, photograph, monkeypatch):
    """Strips with OpenCV equal the module on the whole photograph, for a full FOV circle."""
    round_fov = FieldOfView(FOV.x, FOV.y, 120.0, *2 * (-math.inf, math.inf))
    monkeypatch.setattr(enhance, "STRIP", 64)
    inside = round_fov.mask(*photograph.shape[:2])
    masked = np.where(inside[..., None], photograph, np.uint8(0))
    coefficients = model._stages.coefficients(make_thumbnail(photograph, round_fov)[None])
    toned = model._toned(masked, coefficients, round_fov)
    circle = circle_of(round_fov, *photograph.shape[:2])
    variables = model.saved.variables
    sharpen = jax.jit(lambda *x: model._module.apply(variables, *x, method="sharpen"))
    whole = np.asarray(sharpen(toned[None], circle[None]))[0]
    made = model._sharpened(toned.copy(), inside)
    # Float32 sums of 289 products against FFTs.
    np.testing.assert_allclose(made, whole, atol=1e-4)
    assert np.abs(made - toned).mean() > 1e-3


def test_nothing_is_clipped_that_was_not(model, photograph):
    dark = (photograph // 3).astype(np.uint8)
    bright = (255 - dark).astype(np.uint8)
    for image in (dark, bright):
        made = model.enhance(image, UNKNOWN)
        assert not ((made == 0) & (image > 0)).any() and not ((made == 255) & (image < 255)).any()


def test_corrected_colour_is_the_typical_one(config, fresh, photograph):
    """An untrained model keeps the photograph; "correct" moves its mean colour."""
    model = EnhancementModel(saved_model(config, fresh))
    image = (photograph * 0.6).astype(np.uint8)
    made = model.enhance(image, UNKNOWN, colour="correct")
    mean = made.astype(float).mean(axis=(0, 1))
    typical = np.array(config.model.typical_colour)
    # The factors come from the thumbnail's disc, and the mean is of the whole square.
    np.testing.assert_allclose(mean / mean.sum(), typical / typical.sum(), atol=0.02)
    assert mean.sum() == pytest.approx(image.astype(float).mean(axis=(0, 1)).sum(), rel=0.03)
    np.testing.assert_array_equal(model.enhance(image, UNKNOWN), image)
    with pytest.raises(ValueError, match="expected one of keep, correct"):
        model.enhance(image, UNKNOWN, colour="blue")


def test_a_good_photograph_is_judged_good(config, fresh, photograph):
    judgement = EnhancementModel(saved_model(config, fresh)).enhanced(photograph, UNKNOWN).judgement
    assert str(judgement) == "good" and judgement.quality == pytest.approx(1.0)


@pytest.fixture(scope="module")
def exported(config, moved, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "enhancer.safetensors"
    write_safetensors(path, saved_model(config, moved))
    return path


@pytest.fixture(scope="module")
def picture(photograph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    inside = FOV.mask(*photograph.shape[:2])
    Image.fromarray(np.where(inside[..., None], photograph, np.uint8(0))).save(folder / "eye.png")
    return folder / "eye.png"


def test_command(exported, picture, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--model", str(exported), "--out", str(out), "--strength", "0.5"]
    assert main(["enhance", str(picture), *arguments]) == 0
    assert "Not for diagnosis" in capsys.readouterr().out
    before = Image.open(picture)
    for folder in ("enhanced", "changes"):
        after = Image.open(out / folder / "eye.png")
        assert after.size == before.size
        assert after.text["strength"] == "0.5" and len(after.text["model"]) == 16
    assert Image.open(out / "comparisons" / "eye.png").size[0] > before.size[0]
    with (out / "enhanced.csv").open() as file:
        (row,) = csv.DictReader(file)
    change = np.abs(np.asarray(Image.open(out / "enhanced" / "eye.png")).astype(int) - before)
    assert float(row["largest_change"]) == pytest.approx(change.mean(axis=-1).max(), abs=0.06)
    assert 0 < float(row["share_changed"]) <= 1 and 0 < float(row["quality"]) < 1
    assert row["judged"]


def test_the_same_command_continues(exported, picture, tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / "eyes", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        shutil.copy(picture, folder / f"{name}.png")
    arguments = ["enhance", str(folder), "--model", str(exported), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["fundus-vae", *arguments])
    assert main(arguments) == 0
    whole = {path: path.read_bytes() for path in out.rglob("*.png")}
    table = (out / "enhanced.csv").read_text()
    # As after an interruption: one photograph lacks its results, another its row.
    (out / "enhanced" / "b.png").unlink()
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "1 of 2 photographs are done already" in said and said.count("judged") == 0
    assert "b  323 x 328" in said and "a  323 x 328" not in said
    assert whole == {path: path.read_bytes() for path in out.rglob("*.png")}
    assert (out / "enhanced.csv").read_text() == table
    # A photograph that is newer than its result is enhanced again.
    os.utime(folder / "a.png", (time.time() + 5,) * 2)
    assert main(arguments) == 0
    assert "a  323 x 328" in capsys.readouterr().out


def test_the_page_shows_each_photograph(exported, picture, tmp_path):
    folder, out = tmp_path / "eyes", tmp_path / "out"
    folder.mkdir()
    shutil.copy(picture, folder / "a 1 & <b>.png")
    assert main(["enhance", str(folder), "--model", str(exported), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert "a 1 &amp; &lt;b&gt;" in page and "<b>.png" not in page
    assert "http" not in page.replace("http-equiv", "") and "Not for diagnosis" in page
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(links) == 4
    for link in links:
        assert (out / urllib.parse.unquote(link)).is_file(), link


def test_bad_input(exported, picture, tmp_path, capsys):
    text = tmp_path / "eye.jpg"
    text.write_text("no image")
    out, model = ["--out", str(tmp_path / "out")], ["--model", str(exported)]
    for arguments, words in (
        ([str(picture), *model, *out, "--strength", "2"], "--strength 2: expected a number from"),
        ([str(picture), *model, *out, "--strength", "nan"], "--strength nan: expected"),
        ([str(picture), *model, *out, "--levels", "0"], "--levels 0: expected grey levels above"),
        ([str(text), *model, *out], "eye.jpg"),
        ([str(tmp_path / "none.png"), *model, *out], "none.png"),
        ([str(picture), "--model", "f8c4", *out], "is an autoencoder, no enhancer"),
        ([str(picture), "--model", str(picture), *out], "no model"),
        ([str(picture.parent), *model, "--out", str(picture.parent / "out")], "lies in"),
    ):
        assert main(["enhance", *arguments]) != 0
        assert words in capsys.readouterr().err
    assert main(["reconstruct", str(picture), *model, *out]) != 0
    assert "is an enhancer, no autoencoder" in capsys.readouterr().err


def test_every_kind_of_file(exported, tmp_path, capsys):
    """Readable files are enhanced, and the others are named."""
    folder, out = tmp_path / "eyes", tmp_path / "out"
    folder.mkdir()
    picture = np.random.default_rng(2).integers(60, 200, (48, 64, 3), np.uint8)
    image = Image.fromarray(picture)
    image.save(folder / "plain.png")
    image.save(folder / "auge-ü.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    deep = picture[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(picture[:5, :7]).save(folder / "tiny.png")
    (folder / "empty.png").touch()
    (folder / "half.png").write_bytes((folder / "plain.png").read_bytes()[:900])
    (folder / "text.jpg").write_text("no image")
    assert main(["enhance", str(folder), "--model", str(exported), "--out", str(out)]) == 1
    errors = capsys.readouterr().err
    for name in ("empty.png", "half.png", "text.jpg"):
        assert sum(name in line for line in errors.splitlines()) == 1
    assert "error: 3 of 10 images failed" in errors and "Traceback" not in errors
    done = {path.stem for path in (out / "enhanced").iterdir()}
    assert done == {"plain", "auge-ü", "grey", "alpha", "cmyk", "deep", "tiny"}
    # Without a FOV circle the whole image is enhanced, unless it is grey.
    with (out / "enhanced.csv").open(encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert {row["fov"] for row in rows.values()} == {"lit region"}
    assert {name for name in rows if "one colour" in rows[name]["judged"]} == {"grey", "deep"}
    opened = {name: np.asarray(Image.open(out / "enhanced" / f"{name}.png")) for name in done}
    np.testing.assert_array_equal(opened["plain"], opened["auge-ü"])
    np.testing.assert_array_equal(opened["plain"], opened["alpha"])
    np.testing.assert_array_equal(opened["grey"], read_image(folder / "grey.png"))
    assert opened["tiny"].shape == (5, 7, 3) and opened["deep"].dtype == np.uint8


def test_one_colour_photographs_are_not_changed(exported, model, tmp_path, capsys):
    photograph = cv2.resize(bundled.retina(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    green = np.repeat(photograph[..., 1:2], 3, axis=-1)
    # Coloured text outside the field of view is ignored.
    green[:20, :40] = (255, 255, 0)
    fov = find_fov(green)
    np.testing.assert_array_equal(model.enhance(green, fov), green)
    assert (model.enhance(photograph, fov) != photograph).any()

    folder, out = tmp_path / "eyes", tmp_path / "out"
    folder.mkdir()
    # Large enough for the search for a FOV circle.
    for name, image in (("colour", photograph), ("grey", green)):
        large = cv2.resize(image, (400, 400), interpolation=cv2.INTER_AREA)
        Image.fromarray(large).save(folder / f"{name}.png")
    arguments = ["--model", str(exported), "--out", str(out)]
    assert main(["enhance", str(folder), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("grey"))
    note = "one colour only (grey, red-free or angiogram): left as it is"
    assert line.startswith(f"grey  400 x 400  {note}; changed by 0.0 grey levels")
    with (out / "enhanced.csv").open() as file:
        colour, grey = csv.DictReader(file)
    assert grey["judged"] == note != colour["judged"]
    assert float(grey["largest_change"]) == 0 < float(colour["largest_change"])
    (item,) = open_inputs([folder / "grey.png"]).read()
    after = read_image(out / "enhanced" / "grey.png")
    assert item.fov.known
    np.testing.assert_array_equal(after, item.inside())


def test_colour_profiles_are_applied(exported, tmp_path):
    """The same colours in another colour space give the same result."""
    coarse = np.random.default_rng(3).integers(60, 200, (6, 8, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC))
    picture = np.sort(picture, axis=-1)[..., ::-1]
    folder = tmp_path / "eyes"
    folder.mkdir()
    # The same colours twice, the second time in a colour space with red and blue exchanged.
    swapped = swapped_profile()
    Image.fromarray(picture).save(folder / "plain.png")
    Image.fromarray(picture[..., ::-1]).save(folder / "swapped.png", icc_profile=swapped)
    out = tmp_path / "out"
    assert main(["enhance", str(folder), "--model", str(exported), "--out", str(out)]) == 0
    plain, other = (
        np.asarray(Image.open(out / "enhanced" / f"{name}.png")).astype(int)
        for name in ("plain", "swapped")
    )
    # Lookup tables of the colour management round to a few grey levels. If the profile were
    # ignored, the channels of random colours would differ by about 40.
    assert np.abs(plain - other).mean() < 4


def test_two_photographs_of_one_name_are_refused(exported, picture, tmp_path, capsys):
    again = tmp_path / "again" / picture.name
    again.parent.mkdir()
    again.write_bytes(picture.read_bytes())
    out = tmp_path / "out"
    arguments = [str(picture), str(again), "--model", str(exported), "--out", str(out)]
    assert main(["enhance", *arguments]) == 1
    assert str(again) in capsys.readouterr().err and not out.exists()


def test_full_disk_leaves_whole_files_only(exported, picture, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(picture), "--model", str(exported), "--out", str(out)]
    assert main(["enhance", *arguments]) == 0
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".fundus-vae.json"]
    before = {path: path.read_bytes() for path in files}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert main(["enhance", *arguments, "--strength", "0.5"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert "eye.png" in said and "Traceback" not in said
    left = {path for path in out.rglob("*") if path.is_file()}
    assert left == {*files, out / ".fundus-vae.json"}
    assert before == {path: path.read_bytes() for path in files}
    assert main(["enhance", *arguments, "--strength", "0.5"]) == 0


def test_inputs_that_are_no_photographs(exported, picture, tiny_data, tmp_path, capsys):
    model, out = ["--model", str(exported)], ["--out", str(tmp_path / "out")]
    (tmp_path / "none").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, code, words in (
        ([str(tiny_data), *model, *out], 1, "give the photograph that it was cut from"),
        ([str(tmp_path / "none"), *model, *out], 1, "none"),
        ([str(picture), *model, "--out", str(tmp_path / "file")], 2, "is a file"),
        ([str(picture), "--model", str(tmp_path / "gone"), *out], 1, "no such model"),
    ):
        assert main(["enhance", *arguments]) == code
        assert words in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(exported.read_bytes()[:5000])
    assert main(["enhance", str(picture), "--model", str(damaged), *out]) == 1
    assert "damaged" in capsys.readouterr().err


def test_other_kinds_of_models_are_refused(exported):
    assert load_enhancer(exported).saved.step == 3
    with pytest.raises(DataError, match="fundus-vae enhance"):
        vae.load_model(exported)
