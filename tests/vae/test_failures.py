"""A failure of one photograph is listed, and the others are processed."""

import csv

import cv2
import numpy as np
import pytest

from vae.cli import main
from vae.data.images import write_image
from vae.data.inputs import open_inputs
from vae.data.manifest import read_manifest
from vae.data.synthetic import fundus_photograph

SIZE = 400
ODD = 402  # side of the photograph that makes OpenCV fail


@pytest.fixture
def eyes(tmp_path, monkeypatch):
    """Three photographs; for one of them OpenCV raises an unexpected error."""
    for number, side in enumerate((SIZE, ODD, SIZE)):
        write_image(tmp_path / "eyes" / "left" / f"{number}.png", fundus_photograph(number, side))
    threshold = cv2.threshold

    def failing(image, *args):
        if ODD in image.shape:
            raise ZeroDivisionError("a fault of the program")
        return threshold(image, *args)

    monkeypatch.setattr(cv2, "threshold", failing)
    return tmp_path / "eyes"


def rejected(out):
    with open(out / "rejected.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_listed(row, eyes, error):
    assert row["item"] == "left/1" and row["path"] == str(eyes / "left" / "1.png")
    assert "unexpected ZeroDivisionError: a fault of the program" in row["reason"]
    assert "\n" not in row["reason"] and row["reason"] in error
    assert row["traceback"].startswith("Traceback") and "locate_fov" in row["traceback"]
    assert "Traceback" not in error


def test_make_tiles(eyes, tmp_path, capsys):
    out = tmp_path / "tiles"
    arguments = ["--tile", "64", "--val", "0", "--test", "0", "--workers", "1"]
    command = ["make-tiles", "--photographs", str(eyes), "--out", str(out), *arguments]
    assert main(command) == 1
    said = capsys.readouterr()
    (row,) = rejected(out)
    assert_listed(row, eyes, said.out + said.err)
    photographs = {tile.photograph for tile in read_manifest(out / "manifest.csv")}
    assert photographs == {"left/0", "left/2"}


def test_reconstruct(eyes, finished, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["reconstruct", str(eyes), "--model", str(finished[1]), "--out", str(out)]
    assert main(command) == 1
    (row,) = rejected(out)
    assert_listed(row, eyes, capsys.readouterr().err)
    with open(out / "reconstructions.csv", encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["left/0", "left/2"]
    assert len(list(out.glob("reconstructions/left/*.png"))) == 2


def test_encode(eyes, finished, tmp_path, capsys):
    from vae.inference.latent_store import open_latents

    out = tmp_path / "eyes.zarr"
    command = ["encode", str(eyes), "--model", str(finished[1]), "--out", str(out)]
    assert main(command) == 1
    store = open_latents(out)
    assert len(store) == 2
    (failure,) = store.progress["failures"]
    assert "unexpected ZeroDivisionError" in failure["reason"]
    assert failure["traceback"].startswith("Traceback")
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_in_drawing_does_not_stop_the_others(finished, tmp_path, monkeypatch, capsys):
    """Tiles are reconstructed in batches and written one by one."""
    for number in range(3):
        tile = np.random.default_rng(number).integers(40, 200, (64, 64, 3), np.uint8)
        write_image(tmp_path / "tiles" / f"{number}.png", tile)
    third = next(iter(open_inputs([tmp_path / "tiles" / "2.png"]).read())).image
    absdiff = cv2.absdiff

    def failing(a, b):
        if a.shape == third.shape and (a == third).all():
            raise RuntimeError("a fault of the program")
        return absdiff(a, b)

    monkeypatch.setattr(cv2, "absdiff", failing)
    out = tmp_path / "out"
    command = ["reconstruct", str(tmp_path / "tiles"), "--model", str(finished[1]), "--out"]
    assert main([*command, str(out)]) == 1
    assert [row["item"] for row in rejected(out)] == ["2"]
    assert {path.name for path in out.glob("comparisons/*.png")} == {"0.png", "1.png"}


def test_long_names_are_written(finished, tmp_path):
    name = "眼" * 82  # 246 bytes, the longest possible name with these suffixes
    write_image(tmp_path / "eyes" / "a.png", fundus_photograph(1, SIZE))
    (tmp_path / "eyes" / "a.png").rename(tmp_path / "eyes" / f"{name}.png")
    out = tmp_path / "out"
    command = ["reconstruct", str(tmp_path / "eyes"), "--model", str(finished[1]), "--out"]
    assert main([*command, str(out)]) == 0
    assert (out / "comparisons" / f"{name}.png").is_file()
