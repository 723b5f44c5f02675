"""The command `fundus-vae`: its outputs and its error messages."""

import os
import re
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from vae.cli import main
from vae.data import pipeline
from vae.data.fundus_tiles import VERSION
from vae.data.images import encode_image
from vae.data.synthetic import fundus_photograph, write_photographs

TILING = ["--tile", "64", "--stride", "64", "--val", "0.3", "--test", "0.2", "--workers", "1"]
SPLITS = ["--val", "0.3", "--test", "0.3"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Both eyes of six patients, and one photograph of every uncommon kind."""
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root, patients=6, eyes=2, size=256)
    image = fundus_photograph(3, 256)
    folder = root / "clinic é"
    folder.mkdir()
    Image.fromarray(image).convert("CMYK").save(folder / "p90 ä_L.jpg")
    Image.fromarray(image).convert("L").save(folder / "p91_L.jpg")
    Image.fromarray(np.dstack([image, np.full((256, 256), 255, np.uint8)])).save(
        folder / "p92_L.png"
    )
    cv2.imwrite(str(folder / "p93_L.png"), image[..., ::-1].astype(np.uint16) * 257)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """LABEL/PHOTOGRAPH/*.png of five patients, no manifest."""
    root = tmp_path_factory.mktemp("tree")
    image = fundus_photograph(0, 256)
    for number in range(10):
        folder = root / "hrf" / f"p{number // 2}_{'LR'[number % 2]} ö"
        folder.mkdir(parents=True)
        for y in range(3):
            (folder / f"{y}.png").write_bytes(encode_image(image[64 + y : 128 + y, :64], ".png"))
    return root


def refused(command, capsys, message) -> int:
    """Checks that the last line of an error matches `message`; returns the exit code."""
    code = main(command)
    # A progress bar may precede the error.
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and re.search(f"^error: .*{message}", lines[0]), lines
    return code


def test_photographs_to_dataset(photographs, tmp_path, capsys):
    tiles, data_dir = tmp_path / "tiles", tmp_path / "data"
    options = ["--patient_regex", "/(p[0-9]+)", *TILING]
    command = ["make-tiles", "--photographs", str(photographs), "--out", str(tiles), *options]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "16 photographs" in said
    assert f"next: fundus-vae build --tiles {tiles}" in said
    assert main(["build", "--tiles", str(tiles), "--data_dir", str(data_dir)]) == 0
    said = capsys.readouterr().out
    assert "train" in said and f"--config.data.dir={data_dir}" in said
    assert "patients are unknown" not in said
    dataset = pipeline.open_dataset(data_dir)
    assert all(dataset.counts[split] for split in ("train", "val", "test"))
    assert {row.label for row in dataset.photographs()} == {"synthetic", "clinic é"}

    # Repeating the commands changes nothing.
    assert main(command) == 0
    assert "16 finished before" in capsys.readouterr().out
    assert main(["build", "--tiles", str(tiles), "--data_dir", str(data_dir)]) == 0
    assert "is there already" in capsys.readouterr().out


def test_unusable_photographs_are_listed_and_the_others_are_cut(photographs, tmp_path, capsys):
    root, tiles = tmp_path / "photographs", tmp_path / "tiles"
    shutil.copytree(photographs, root)
    image = encode_image(fundus_photograph(0, 256), ".jpg")
    bad = {
        "zero.png": b"",
        "text.jpg": b"no image",
        "half.jpg": image[: len(image) // 2],
        "holes.jpg": image[:2000] + bytes(600) + image[2600:],
        "dark.png": encode_image(np.zeros((256, 256, 3), np.uint8), ".png"),
    }
    for name, content in bad.items():
        (root / "synthetic" / name).write_bytes(content)
    assert main(["make-tiles", "--photographs", str(root), "--out", str(tiles), *TILING]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "error: 5 photographs gave no tiles; they are listed above"
    rejected = (tiles / "rejected.csv").read_text(encoding="utf-8")
    assert all(name in out and name in rejected for name in bad)
    assert (tiles / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "the patients are not given.*--patient_regex.*--patients_unknown"),
        (["--patient_regex", "("], 2, "is no regular expression"),
        (
            ["--patient_regex", "zzz"],
            1,
            "finds no patient in 10 of 10 .* for example in 'hrf/p0_L ö'",
        ),
        (["--patients_unknown", "--val", "1"], 2, "val 1.0 and test 0.3"),
        (["--patients_unknown", "--stratify", "age"], 2, "invalid choice: 'age'"),
        (["--patient_regex", "^(hrf)"], 1, "split val is empty: none of 1 patients"),
        (["--patients_unknown", "--max_rejected", "2"], 2, "expected a share from 0 to 1"),
        (["--patients_unknown", "--workers", "0"], 2, "workers 0: expected at least 1"),
        (["--patients_unknown", "--file_format", "zip"], 2, "invalid choice: 'zip'.*--help"),
    ],
)
def test_build_refuses(tree, tmp_path, capsys, options, code, message):
    command = ["build", "--tiles", str(tree), "--data_dir", str(tmp_path / "d"), *SPLITS, *options]
    assert refused(command, capsys, message) == code
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--patients_unknown"],
        ["--patient_regex", "/(p.)"],
        ["--patient_regex", "/(p.)", "--stratify", "label"],
    ],
)
def test_build_of_a_tree_without_manifest(tree, tmp_path, capsys, options):
    command = ["build", "--tiles", str(tree), "--data_dir", str(tmp_path / "d"), *SPLITS, *options]
    assert main(command) == 0
    unknown = options[0] == "--patients_unknown"
    assert ("patients are unknown" in capsys.readouterr().out) == unknown
    assert pipeline.open_dataset(tmp_path / "d").patients_known != unknown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "required: COMMAND; `fundus-vae --help`"),
        (["tile"], "invalid choice: 'tile'"),
        (["make-tiles"], "required: --photographs, --out"),
        (["make-tiles", "--photographs", "P", "--out", "O", "--tile", "big"], "'big'"),
        (["make-tiles", "--photographs", "P", "--out", "O", "--tiles", "3"], "--tiles"),
        (["make-tiles", "--photographs", "P", "--out", "O", "--tile", "0"], "tile 0: expected"),
        (["make-tiles", "--photographs", "P", "--out", "O", "--min_fov", "nan"], "min_fov nan"),
        (["make-tiles", "--photographs", "P", "--out", "P/tiles"], "neither may lie in the other"),
    ],
)
def test_wrong_commands(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert refused(options, capsys, message) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "below"])
def test_outputs_that_cannot_be_written(tree, photographs, tmp_path, capsys, below):
    taken = tmp_path / "file"
    taken.write_text("mine")
    build = ["build", "--tiles", str(tree), "--data_dir", str(taken / below), "--patients_unknown"]
    expected = 1 if below else 2
    assert refused([*build, *SPLITS], capsys, "file.*cannot be written") == expected
    cut = ["make-tiles", "--photographs", str(photographs), "--out", str(taken / below), *TILING]
    refused(cut, capsys, "file.*(cannot be written|was not made by make-tiles)")
    assert taken.read_text() == "mine"


def test_names_that_are_not_utf8(tmp_path, capsys):
    folder = tmp_path / "photographs" / "p"
    folder.mkdir(parents=True)
    try:
        (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this disk takes no such names")
    root, out = str(tmp_path / "photographs"), str(tmp_path / "out")
    message = r"\\udcff.png': this name is not UTF-8; rename"
    assert refused(["make-tiles", "--photographs", root, "--out", out], capsys, message) == 1
    command = ["build", "--tiles", root, "--data_dir", out, "--patients_unknown"]
    assert refused(command, capsys, message) == 1
    assert not os.path.exists(out)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metadata.json", "{"),
        ("metadata.json", "{}"),
        ("metadata.json", "[]"),
        ("dataset_info.json", f'{{"version": "{VERSION}", "splits": [{{"name": "train"}}]}}'),
    ],
)
def test_damaged_dataset_is_named_and_can_be_replaced(tree, tmp_path, capsys, file, content):
    command = ["build", "--tiles", str(tree), "--data_dir", str(tmp_path), "--patients_unknown"]
    assert main([*command, *SPLITS]) == 0
    (damaged,) = tmp_path.rglob(file)
    damaged.write_text(content)
    capsys.readouterr()
    assert refused([*command, *SPLITS], capsys, f"{file}: .*--overwrite") == 1
    assert main([*command, *SPLITS, "--overwrite"]) == 0
    assert pipeline.open_dataset(tmp_path).counts["train"]


def test_unexpected_file_errors_are_one_line(tree, tmp_path, monkeypatch, capsys):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr("vae.data.fundus_tiles.build.collect", denied)
    command = ["build", "--tiles", str(tree), "--data_dir", str(tmp_path / "d")]
    assert refused(command, capsys, "/somewhere: Permission denied") == 1
