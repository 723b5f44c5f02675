"""The enhancement table: methods, measures of structure, cases."""

import dataclasses
import json
import math
import warnings

import cv2
import jax
import numpy as np
import pytest
from skimage import data as bundled

from tests.vae.test_enhance import saved_model
from vae.checkpoints.modules import initial_variables
from vae.configs import enhance256
from vae.data.errors import DataError
from vae.data.images import write_image
from vae.data.pipeline import open_dataset
from vae.evaluation.enhancement import CASES, degraded, evaluate_enhancer, read_photograph
from vae.evaluation.enhancement.classical import METHODS
from vae.evaluation.enhancement.run import RESULTS, TABLE, hue_shift, read_photographs
from vae.evaluation.enhancement.structure import compare_structure, find_structure, vesselness
from vae.evaluation.enhancement.table import by_case

FOV = np.ones((192, 192), bool)


@pytest.fixture(scope="module")
def tile():
    """Vessels next to the optic disc of scikit-image's retina, reduced by 2."""
    tile = bundled.retina()[500:884, 400:784].reshape(192, 2, 192, 2, 3).mean(axis=(1, 3))
    return np.rint(tile).astype(np.uint8)


def error(a, b):
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


def test_classical_methods_improve_their_degradation(tile):
    rng = np.random.default_rng(0)
    noisy = np.clip(np.rint(tile + rng.normal(0, 12, tile.shape)), 0, 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(tile, (0, 0), 1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = {name: method(noisy) for name, method in METHODS.items()}
        sharp = {name: METHODS[name](blurred) for name in ("unsharp_mask", "wiener")}
        contrast = METHODS["clahe"](tile)
    for name, image in made.items():
        assert image.shape == tile.shape and image.dtype == np.uint8, name
        np.testing.assert_array_equal(METHODS[name](noisy), image)
    assert error(made["non_local_means"], tile) < 0.6 * error(noisy, tile)
    assert all(error(image, tile) < 0.95 * error(blurred, tile) for image in sharp.values())
    assert contrast[..., 1].std() > 1.3 * tile[..., 1].std()


def test_a_tile_keeps_its_own_structure(tile):
    metrics = compare_structure(find_structure(tile, FOV), tile)
    assert metrics["vesselness"] == pytest.approx(1.0)
    assert metrics["false_vessels"] == 0 and metrics["missed_vessels"] == 0
    assert metrics["lesions_kept"] == pytest.approx(1.0)
    grain = np.random.default_rng(0).integers(60, 90, tile.shape, np.uint8)
    assert compare_structure(find_structure(tile, FOV), grain)["vesselness"] < 0.3


def test_false_and_missed_vessels_are_counted(tile):
    structure = find_structure(tile, FOV)
    ridges = vesselness(tile)
    quiet = cv2.blur((ridges > structure.threshold / 2).astype(np.float32), (41, 41))
    quiet[:40] = quiet[-40:] = 1
    quiet[:, :40] = quiet[:, -40:] = 1
    y, x = map(int, np.unravel_index(quiet.argmin(), quiet.shape))
    drawn = cv2.line(tile.copy(), (x - 18, y), (x + 18, y), (60, 20, 10), 5)
    assert compare_structure(structure, drawn)["false_vessels"] > 0.001
    blurred = cv2.GaussianBlur(tile, (0, 0), 12)
    metrics = compare_structure(structure, blurred)
    assert metrics["missed_vessels"] > 0.8 and metrics["false_vessels"] < 0.01


def test_lesions_are_found_and_their_loss_is_measured():
    plain = np.full((192, 192, 3), (150, 90, 50), np.uint8)
    for y in (20, 160, 174):  # vessels, so that the spots are not among the strongest ridges
        cv2.line(plain, (0, y), (191, y + 6), (80, 30, 20), 4)
    spotted = plain.copy()
    for number, (y, x) in enumerate(((50, 60), (120, 80), (90, 140))):
        cv2.circle(spotted, (x, y), 2, (200, 150, 90) if number % 2 else (90, 40, 20), -1)
    spotted = cv2.GaussianBlur(spotted, (0, 0), 0.5)
    structure = find_structure(spotted, FOV)
    assert sorted(bright for _, _, bright, _ in structure.lesions) == [False, False, True]
    assert compare_structure(structure, plain)["lesions_kept"] == pytest.approx(0, abs=0.05)
    half = ((spotted.astype(int) + plain) // 2).astype(np.uint8)
    assert compare_structure(structure, half)["lesions_kept"] == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def dataset(small_data):
    return open_dataset(small_data)


@pytest.fixture(scope="module")
def photograph(dataset):
    row = next(row for row in dataset.photographs() if row.split == "test")
    return read_photograph(row, 128)


def test_every_case_degrades_the_field_of_view_only(photograph):
    image = photograph.image
    inside = photograph.fov.mask(*image.shape[:2])
    assert max(image.shape) == 128 and (photograph.measured <= inside).all()
    assert 0 < photograph.measured.sum() < inside.sum()
    for case in CASES:
        seen = degraded(photograph, case)
        np.testing.assert_array_equal(degraded(photograph, case), seen)
        np.testing.assert_array_equal(seen[~inside], image[~inside])
        changed = error(seen[inside], image[inside])
        assert seen.dtype == np.uint8 and (changed == 0 if case == "clean" else changed > 0.3), case


def test_the_hue_shift_of_known_turns():
    hue = np.linspace(0, 350, 64, dtype=np.float32)
    hsv = np.stack([np.tile(hue, (8, 1)), np.full((8, 64), 0.6), np.full((8, 64), 0.8)], axis=-1)
    inside = np.ones((8, 64), bool)

    def rgb(turn):
        turned = hsv + np.array([turn, 0, 0])
        turned[..., 0] %= 360
        return np.rint(255 * cv2.cvtColor(np.float32(turned), cv2.COLOR_HSV2RGB)).astype(np.uint8)

    for turn, expected in ((0, 0), (20, 20), (-15, 15)):
        assert hue_shift(rgb(0), rgb(turn), inside) == pytest.approx(expected, abs=0.2)
    # Darker by the same factor in each channel: no shift. Grey has no hue.
    assert hue_shift(rgb(0), rgb(0) // 2, inside) < 0.3
    assert math.isnan(hue_shift(np.full((8, 64, 3), 90, np.uint8), rgb(0), inside))


def test_the_table(dataset, tmp_path, capsys):
    config = enhance256.get_config("smoke")
    variables = jax.tree.map(np.asarray, jax.jit(lambda: initial_variables(config))())
    out = tmp_path / "out"
    cases = ("clean", "several", "haze", "gamma")
    model = saved_model(config, variables)
    report = tmp_path / "report"
    rows = evaluate_enhancer(model, dataset, limit=2, out=out, report=report, cases=cases)
    printed = capsys.readouterr().out
    assert "non_local_means" in printed and "several at once:" in printed
    assert len(rows) == len(cases) * (len(METHODS) + 2)
    table = by_case(rows)
    for case in cases:
        # An untrained model changes nothing.
        ours, nothing = (table[case][name] for name in ("enhance", "do_nothing"))
        assert (ours["psnr"], ours["ssim"]) == (nothing["psnr"], nothing["ssim"])
        assert ours["gain"] == ours["worse"] == 0
    assert table["clean"]["clahe"]["worse"] == 1 and table["clean"]["clahe"]["gain"] < -10
    content = json.loads((out / RESULTS).read_text())
    assert content == json.loads((report / RESULTS).read_text())
    page = (report / "index.html").read_text()
    # Pictures before, after and clean of each photograph; no external resources.
    names = {entry["name"] for entry in content["photographs"]}
    assert page.count('class="view"') == 3 * len(names)
    for words in ("non-local means", "spots kept", "made worse", content["model"], *names):
        assert words in page
    assert "http://" not in page and "https://" not in page
    assert content["rows"] == rows and (out / TABLE).read_text().count("\n") == len(rows) + 1


def test_photographs_that_cannot_be_read_are_named(dataset, monkeypatch, capsys):
    rows = list(dataset.photographs())
    splits = [row.split for row in rows]
    first, only = splits.index("train"), splits.index("test")
    assert splits.count("test") == 1
    for number in (first, only):
        rows[number] = dataclasses.replace(rows[number], path="/gone.png")
    monkeypatch.setattr(type(dataset), "photographs", lambda self: rows)
    found = read_photographs(dataset, "train", 99, 128)
    assert len(found) == splits.count("train") - 1
    assert "/gone.png" in capsys.readouterr().out
    with pytest.raises(DataError, match="/gone.png"):
        read_photographs(dataset, "test", 4)
    with pytest.raises(DataError, match="no photograph of split 'none'"):
        read_photographs(dataset, "none", 4)


def test_a_table_cannot_name_another_photograph(dataset, monkeypatch, tmp_path):
    """Else the report of a foreign dataset would show any picture of this machine."""
    rows = list(dataset.photographs())
    number = next(n for n, row in enumerate(rows) if row.split == "test")
    other = tmp_path / "other.png"
    write_image(other, np.full((rows[number].height, rows[number].width, 3), 90, np.uint8))
    rows[number] = dataclasses.replace(rows[number], path=str(other), scale=1.0)
    monkeypatch.setattr(type(dataset), "photographs", lambda self: rows)
    with pytest.raises(DataError, match="is another photograph than the one that was cut"):
        read_photographs(dataset, "test", 4, 128)
