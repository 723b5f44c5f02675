"""Outputs carry what docs/privacy.md says: planted marks are searched in them."""

import csv
import platform
import re
import shutil
from pathlib import Path

import pytest

from vae.cli import main
from vae.data.errors import escape_output
from vae.data.files import read_cell, safe_cell, write_csv
from vae.data.images import write_image
from vae.data.synthetic import fundus_photograph

ROOT = Path(__file__).resolve().parents[2]
FOLDER, HOST = "janes_secret_study", "janes_workstation"


@pytest.fixture(autouse=True)
def host(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: HOST)


def found(path, *marks):
    """Returns the marks in the files below a path, or in a file."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    assert files
    content = b"".join(file.read_bytes() for file in files)
    return {str(mark) for mark in marks if str(mark).encode() in content}


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A run in a folder with a telling name."""
    workdir = tmp_path_factory.mktemp("x") / FOLDER / "janes_run"
    shutil.copytree(finished[1], workdir)
    return workdir


def test_exported_models_name_no_folder(run, finished, tmp_path):
    out = tmp_path / FOLDER
    out.mkdir()
    command = ["export", str(run), "--out", str(out / "m.safetensors")]
    assert main([*command, "--stablehlo", str(out / "programs")]) == 0
    marks = FOLDER, tmp_path, ROOT, Path(finished[0].data.dir).parent, HOST
    assert not found(out / "m.safetensors", *marks)
    for file in (out / "programs").iterdir():
        assert not found(file, *marks), file


def test_pictures_name_no_folder_and_no_other_photograph(run, tmp_path):
    eyes, out = tmp_path / FOLDER, tmp_path / "out"
    for number, name in enumerate(("first_patient", "second_patient")):
        write_image(eyes / f"{name}.png", fundus_photograph(number, 400))
    paths = [str(path) for path in sorted(eyes.iterdir())]
    assert main(["reconstruct", *paths, "--model", str(run), "--out", str(out)]) == 0
    for folder in ("reconstructions", "comparisons", "differences"):
        marks = "second_patient", FOLDER, run.name, HOST
        assert not found(out / folder / "first_patient.png", *marks)
    assert found(out / "reconstructions.csv", FOLDER) == {FOLDER}
    assert found(out / ".fundus-vae.json", HOST) == {HOST}


def test_tiles_and_shards_name_no_folder(tmp_path):
    eyes, tiles, data = tmp_path / FOLDER, tmp_path / "tiles", tmp_path / "data"
    for number in range(3):
        write_image(eyes / "label" / f"{number}.png", fundus_photograph(number, 300))
    command = ["make-tiles", "--photographs", str(eyes), "--out", str(tiles), "--tile", "64"]
    assert main([*command, "--patients_unknown", "--val", "0.3", "--test", "0.3"]) == 0
    assert main(["build", "--tiles", str(tiles), "--data_dir", str(data)]) == 0
    for file in (*tiles.rglob("*.png"), tiles / "manifest.csv", *data.rglob("*.tfrecord-*")):
        assert not found(file, FOLDER, tmp_path, HOST), file
    assert found(tiles / "photographs.csv", FOLDER) == {FOLDER}


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@a", "\ta", "'=a", "''@a", "=", "-"])
def test_cells_are_no_formulas_and_read_back_the_same(tmp_path, text):
    write_csv(tmp_path / "t.csv", ["a", "b"], [[text, -1.5], ["plain", "-1.5"]])
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["a"].startswith("'") and read_cell(rows[0]["a"]) == text
    assert [row["b"] for row in rows] == ["-1.5", "-1.5"] and rows[1]["a"] == "plain"


@pytest.mark.parametrize("text", ["a", "'a", "", "é=1", "-1.5", "1e-5", "'"])
def test_other_cells_stay(text):
    assert safe_cell(text) == text and read_cell(text) == text


def test_control_characters_are_escaped_on_the_terminal(capsys):
    escape_output()
    escape_output()
    print("a\x1b[2Jb\x07\tc é\x9b1m")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x07\tc é\\x9b1m\n"


def test_the_table_lists_existing_commands():
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 20 and len({row.count("|") for row in rows}) == 1
    for name in ("reconstruct", "enhance", "encode", "decode", "embed", "evaluate", "sample"):
        assert any(re.search(rf"`{name}\b", row) for row in rows), name
