"""The command `fundus-vae reconstruct`."""

import csv
import math
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import vae
from vae.cli import main
from vae.data.images import read_image, write_image
from vae.data.inputs import open_inputs
from vae.data.synthetic import fundus_photograph


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two photographs of different cameras, one with a burned-in name, and three bad files."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "left").mkdir()
    eye = fundus_photograph(1, 400)
    eye[:24, :120] = 255  # burned in
    write_image(root / "left" / "eye 1.png", eye)
    write_image(root / "eye.jpg", fundus_photograph(2, 420)[:390])
    (root / "bad.png").write_bytes(b"no picture")
    (root / "left" / "empty.jpg").touch()
    (root / "left" / "half.png").write_bytes((root / "left" / "eye 1.png").read_bytes()[:5000])
    return root


@pytest.fixture
def model(finished):
    return str(finished[1])


def table(out):
    with (out / "reconstructions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    """Returns all files except the marker of the folder."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != ".fundus-vae.json")
    return sorted(p.relative_to(folder).as_posix() for p in found)


def test_folder_with_bad_files_finishes_the_others(photographs, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reconstruct", str(photographs), "--model", model, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert files(out) == [
        "comparisons/eye.png", "comparisons/left/eye 1.png",
        "differences/eye.png", "differences/left/eye 1.png",
        "reconstructions.csv",
        "reconstructions/eye.png", "reconstructions/left/eye 1.png",
        "rejected.csv",
    ]  # fmt: skip
    for name in ("bad.png", "empty.jpg", "half.png"):
        assert sum(name in line for line in printed.err.splitlines()) == 1
    with open(out / "rejected.csv", encoding="utf-8", newline="") as listed:
        reasons = {row["item"]: row["reason"] for row in csv.DictReader(listed)}
    assert set(reasons) == {"bad", "left/empty", "left/half"}
    assert all(reason in printed.err for reason in reasons.values())
    assert printed.err.splitlines()[-1].startswith("error: 3 of 5 images failed")
    rows = table(out)
    assert [row["id"] for row in rows] == ["eye", "left/eye 1"]
    loaded = vae.load_model(model)
    for row in rows:
        assert row["model"] == loaded.hash and row["version"] == vae.__version__
        assert row["command"].endswith(shlex.join(sys.argv[1:])) and row["fov"] == "disc"
        assert f"SSIM {float(row['ssim']):.4f}  PSNR {float(row['psnr']):.2f} dB" in printed.out
    mean = np.mean([float(row["psnr"]) for row in rows])
    assert "mean of 2 images: SSIM" in printed.out and f"PSNR {mean:.2f} dB" in printed.out

    # The files equal the results of `reconstruct` in Python, black outside the field of view.
    item = next(i for i in open_inputs([photographs]).read() if i.item_id == "left/eye 1")
    written = read_image(out / "reconstructions" / "left" / "eye 1.png")
    expected = np.where(item.mask()[..., None], loaded.reconstruct(item.inside()), 0)
    np.testing.assert_array_equal(written, expected)
    assert not written[:24, :120].any() and item.image[:24, :120].all()

    with Image.open(out / "differences" / "eye.png") as picture:
        picture.load()
        assert picture.text["model"] == loaded.hash and picture.text["version"] == vae.__version__
        # The complete command is in the table only: it may name other photographs.
        words = picture.text["command"].split()
        assert len(words) <= 2 and words == rows[0]["command"].split()[: len(words)]
        assert "grey levels" in picture.text["scale"]
        assert picture.size == (420, 390)


def test_border_is_kept_on_request(photographs, model, tmp_path):
    out = tmp_path / "out"
    eye = photographs / "left" / "eye 1.png"
    options = ["--out", str(out), "--keep_border", "--no_pictures", "--format", "jpg"]
    assert main(["reconstruct", str(eye), "--model", model, *options]) == 0
    assert files(out) == ["reconstructions.csv", "reconstructions/eye 1.jpg"]
    whole = vae.load_model(model).reconstruct(read_image(eye))
    written = read_image(out / "reconstructions" / "eye 1.jpg").astype(int)
    assert np.abs(written - whole).mean() < 4 and whole[:24, :120].any()  # JPEG's loss
    with Image.open(out / "reconstructions" / "eye 1.jpg") as picture:
        assert picture.info["comment"].decode().startswith("model: ")
        assert not picture.getexif()


def test_tiles_of_a_dataset(tiny_data, model, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["reconstruct", str(tiny_data), "--split", "test", "--model", model]
    assert main([*arguments, "--out", str(out)]) == 0
    inputs = open_inputs([tiny_data], split="test")
    rows = table(out)
    assert [row["id"] for row in rows] == inputs.names()
    assert {row["split"] for row in rows} == {"test"} and all(row["patient"] for row in rows)
    measured = [float(row["psnr"]) for row in rows if not math.isnan(float(row["psnr"]))]
    assert f"PSNR {np.mean(measured):.2f} dB, inside the field of view" in capsys.readouterr().out
    before = {name: (out / name).stat().st_ino for name in files(out)}
    # A second run replaces the files and leaves no others.
    assert main([*arguments, "--out", str(out)]) == 0
    assert sorted(before) == files(out)
    assert all((out / name).stat().st_ino != inode for name, inode in before.items())


def test_wrong_use_is_one_line(photographs, model, tmp_path, capsys):
    eye, out = str(photographs / "eye.jpg"), str(tmp_path / "out")

    def refused(arguments, code, *words):
        assert main(["reconstruct", *arguments]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and all(word in line for word in words), line

    refused([eye, "--model", model], 2, "--out")
    refused(["--model", model, "--out", out], 2, "INPUT")
    refused([eye, "--model", eye, "--out", out], 1, "is a jpg file, no model")
    refused([eye, "--model", model, "--out", eye], 2, "which is read")
    refused([eye, "--model", model, "--out", out, "--levels", "0"], 2, "--levels 0")
    refused([eye + "x", "--model", model, "--out", out], 1, "no such file")
    refused([model, "--model", eye, "--out", out], 2, "is a model's workdir")
    inside = photographs / "left" / "result"
    refused(
        [str(photographs), "--model", model, "--out", str(inside)], 2, "the next run would read"
    )
    refused([str(photographs), "--model", model, "--out", str(photographs)], 2, "which is read")
    mine = tmp_path / "reconstructions"
    mine.mkdir()
    write_image(mine / "eye.png", fundus_photograph(3, 64))
    refused([str(mine), "--model", model, "--out", str(tmp_path)], 2, "could be overwritten")
    assert not inside.exists()


def test_interrupted_leaves_whole_files_only(photographs, model, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    eye = (photographs / "eye.jpg").read_bytes()
    for number in range(400):
        (many / f"{number:03d}.jpg").write_bytes(eye)
    out = tmp_path / "out"
    # A test run in the background of a shell ignores SIGINT, and its children inherit that.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listen}; import sys; from vae.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "reconstruct", str(many), "--model", model]
    run = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("differences/*.png")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130
    assert "Traceback" not in errors and "of 400 images are written" in errors
    written = [out / name for name in files(out)]
    assert 0 < len(written) < 1200
    for path in written:
        assert path.suffix == ".png" and not path.name.startswith(".")
        read_image(path)
