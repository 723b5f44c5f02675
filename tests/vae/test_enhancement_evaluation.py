"""The enhancement table: methods, measures of structure, cases."""

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
from vae.data.pipeline import open_dataset
from vae.data.thumbnails import THUMBNAILS
from vae.evaluation.enhancement import CASES, Case, degrade_case, evaluate_enhancer, pick_tiles
from vae.evaluation.enhancement.calibration import calibration, format_calibration
from vae.evaluation.enhancement.classical import METHODS
from vae.evaluation.enhancement.run import RESULTS, TABLE
from vae.evaluation.enhancement.structure import compare_structure, find_structure, vesselness

FOV = np.ones((192, 192), bool)


@pytest.fixture(scope="module")
def tile():
    """Vessels next to the optic disc of scikit-image's retina."""
    return np.ascontiguousarray(bundled.retina()[600:792, 500:692])


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
    if metrics["lesions"]:
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
        cv2.line(plain, (0, y), (191, y + 6), (80, 30, 20), 7)
    spotted = plain.copy()
    for number, (y, x) in enumerate(((50, 60), (120, 80), (90, 140))):
        cv2.circle(spotted, (x, y), 4, (200, 150, 90) if number % 2 else (90, 40, 20), -1)
    spotted = cv2.GaussianBlur(spotted, (0, 0), 1)
    structure = find_structure(spotted, FOV)
    assert sorted(bright for _, _, bright, _ in structure.lesions) == [False, False, True]
    assert compare_structure(structure, plain)["lesions_kept"] == pytest.approx(0, abs=0.05)
    half = ((spotted.astype(int) + plain) // 2).astype(np.uint8)
    assert compare_structure(structure, half)["lesions_kept"] == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def dataset(small_data):
    return open_dataset(small_data)


def test_cases_are_the_same_for_a_photograph_and_a_seed(dataset):
    tiles = pick_tiles(dataset, "train", size=64, count=12, seed=0)
    assert len({tile.patient for tile in tiles}) == 6 and len(tiles) == 12
    again = pick_tiles(dataset, "train", size=64, count=12, seed=0)
    assert [tile.tile_id for tile in tiles] == [tile.tile_id for tile in again]
    for case in (case for case in CASES if case.severity != 1 / 3):
        seen, thumbnail = degrade_case(tiles[0], case)
        np.testing.assert_array_equal(degrade_case(tiles[0], case)[0], seen)
        changed = error(seen, tiles[0].image)
        assert changed == 0 if case.name == "clean" else case.name == "mixed" or changed > 0, case
        assert seen.dtype == thumbnail.dtype == np.uint8
    mixed = Case("mixed", math.nan)
    assert any(error(degrade_case(tile, mixed)[0], tile.image) > 2 for tile in tiles)


def test_the_table(dataset, tmp_path, capsys):
    config = enhance256.get_config("smoke")
    variables = jax.tree.map(np.asarray, jax.jit(lambda: initial_variables(config))())
    out = tmp_path / "out"
    cases = CASES[:4]
    model = saved_model(config, variables)
    report = tmp_path / "report"
    rows = evaluate_enhancer(model, dataset, limit=2, out=out, report=report, cases=cases)
    printed = capsys.readouterr().out
    assert "non_local_means" in printed and "mixed:" in printed
    assert len(rows) == len(cases) * (len(METHODS) + 2)
    by_method = {(r["degradation"], r["severity"], r["method"]): r for r in rows}
    for (degradation, severity, method), row in by_method.items():
        # An untrained model changes nothing.
        if method == "ours":
            nothing = by_method[degradation, severity, "do_nothing"]
            assert row["psnr"] == nothing["psnr"] and row["ssim"] == nothing["ssim"]
    content = json.loads((out / RESULTS).read_text())
    assert content == json.loads((report / RESULTS).read_text())
    page = (report / "index.html").read_text()
    # Pictures before, after and clean of each tile; curves; no external resources.
    assert page.count('class="view"') == 3 * content["tiles"]
    assert page.count("data:image/svg+xml;base64,") == 2
    assert page.count('alt="PSNR and SSIM against severity of haze"') == 1
    for words in ("non-local means", "spots kept", "What the uncertainty says", content["model"]):
        assert words in page
    assert "http://" not in page and "https://" not in page
    assert content["rows"] == rows and (out / TABLE).read_text().count("\n") == len(rows) + 1


def test_calibration_of_tiles():
    clean = np.zeros((3, 8, 8, 3), np.uint8)
    made, deviations = clean + np.arange(3, dtype=np.uint8)[:, None, None, None], np.ones((3, 8, 8))
    deviations *= np.arange(1, 4)[:, None, None]
    fov = np.ones((3, 8, 8), bool)
    found = calibration(clean, made, deviations, fov)
    assert found["correlation"] == pytest.approx(1)
    assert "rank correlation of tiles 1.00" in format_calibration(found)
    # One tile has no rank correlation.
    found = calibration(clean[:1], made[1:2], deviations[:1], fov[:1])
    assert math.isnan(found["correlation"]) and found["ratio"] == pytest.approx(1)
    assert "correlation" not in format_calibration(found)


def test_a_dataset_without_thumbnails_is_refused(dataset, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dataset.path, copy)
    (copy / THUMBNAILS).unlink()
    with pytest.raises(DataError, match="no thumbnails of its photographs; cut the tiles"):
        pick_tiles(open_dataset(copy), "test", size=64, count=2, seed=0)
    (copy / THUMBNAILS).write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="damaged"):
        pick_tiles(open_dataset(copy), "test", size=64, count=2, seed=0)
