"""`fundus-vae evaluate`, `info` and `export`: their outputs and their error messages."""

import csv
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import vae
from vae.checkpoints.loading import load_saved
from vae.checkpoints.provenance import portable, portable_text
from vae.cli import main
from vae.configs import published


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The finished run, exported by the command."""
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    assert main(["export", str(finished[1]), "--out", str(path)]) == 0
    return path


def refused(command, capsys, message) -> int:
    """Checks that the last line of an error matches `message`; returns the exit code."""
    code = main([str(word) for word in command])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(f"^error: .*{message}", lines[0]), lines
    return code


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


# --- evaluate ------------------------------------------------------------------------------------


def test_an_exported_file_has_no_paths_of_its_machine(finished, exported, tiny_data):
    of_run, of_file = (load_saved(path) for path in (finished[1], exported))
    assert of_run.config.data.dir == str(tiny_data)
    assert of_file.config.data.dir == tiny_data.name
    assert str(tiny_data.parent).encode() not in exported.read_bytes()
    (exported.parent / "mine").touch()
    assert exported.stat().st_mode == (exported.parent / "mine").stat().st_mode


def test_the_stored_command_keeps_file_names(finished):
    saved = load_saved(finished[1])
    command = "run_experiment.py --config=configs/a.py:b --workdir=/home/me/eyes --config.seed=3"
    saved = dataclasses.replace(saved, provenance=saved.provenance | {"command": command})
    assert portable(saved).provenance["command"] == command.replace("/home/me/", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a --workdir=/home/jane/eyes --x=1", "a --workdir=eyes --x=1"),
        ("a '--workdir=/home/jane doe/my eyes'", "a '--workdir=my eyes'"),
        ("a --data ~/jane/eyes --out ~jane/x", "a --data eyes --out x"),
        ("a --data ../jane/eyes --out ./jane/x", "a --data eyes --out x"),
        ("a '--labels=('/jane/b', '~/jane/c')'", "a '--labels=('b', 'c')'"),
        ("gs://jane/study/eyes", "eyes"),
        ("C:\\Users\\jane\\eyes", "eyes"),
        ("trained on /home/jane/eyes.", "trained on eyes."),
        ("/home/jane/", "jane"),
        ("run_experiment.py --config=configs/a.py:b", "run_experiment.py --config=configs/a.py:b"),
        ("of the prior N(0, I): none and/or f8c32", "of the prior N(0, I): none and/or f8c32"),
    ],
)
def test_texts_lose_the_folders_of_paths(text, expected):
    assert portable_text(text) == expected


def test_paths_in_tuples_and_other_entries_lose_their_folders(finished):
    saved = load_saved(finished[1])
    saved.config.data.source = "/home/jane/a"
    made = {"source": "~/jane/m.pth", "more": ["/home/jane/b", 3, None]}
    found = portable(dataclasses.replace(saved, provenance=made))
    assert found.config.data.source == "a"
    assert found.provenance == {"source": "m.pth", "more": ["b", 3, None]}


def test_exported_models_compute_in_float32(finished):
    """A model trained in bfloat16 computes in float32 after export."""
    saved = load_saved(finished[1])
    saved.config.train.compute_dtype = "bfloat16"
    assert portable(saved).config.train.compute_dtype == "float32"


def test_an_exported_file_is_evaluated_like_the_run(
    finished, exported, tiny_data, tmp_path, capsys
):
    config, workdir = finished
    before = snapshot(workdir)
    command = ["evaluate", "--model", exported, "--data", tiny_data, "--split", config.eval.split]
    assert main([str(word) for word in [*command, "--out", tmp_path / "out"]]) == 0
    assert "model_sampled" in capsys.readouterr().out
    assert snapshot(workdir) == before
    of_run = json.loads((workdir / "results.json").read_text())
    ours = json.loads((tmp_path / "out" / "results.json").read_text())
    assert ours["rows"] == of_run["rows"]
    assert ours["photographs"] == of_run["photographs"]
    assert ours["model"] == of_run["model"] == vae.load_model(exported).hash
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {".fundus-vae.json", "results.json", "tiles.csv", "reconstructions.png"}
    with open(tmp_path / "out" / "tiles.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == ours["counts"]["tiles"] + ours["counts"]["left_out"]
    assert {(row["model"], row["version"]) for row in rows} == {(ours["model"], vae.__version__)}


def test_a_vector_model_is_compared_with_pca_of_the_same_size(
    vector_model, tiny_data, tmp_path, capsys
):
    command = ["evaluate", "--model", vector_model, "--data", tiny_data, "--limit", "8"]
    assert main([str(word) for word in [*command, "--out", tmp_path]]) == 0
    assert "8 tiles of 32 x 32 pixels" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    size = published.get_config("tiny").model.latent_size
    assert rows["model"]["latents"] == size
    patches = 8**2
    assert rows["pca"]["latents"] == patches * max(round(size / patches), 1)
    assert rows["pca"]["psnr"] > rows["mean_colour"]["psnr"]


def test_evaluate_refuses(finished, exported, tiny_data, tmp_path, capsys):
    _, workdir = finished
    data = ["--data", tiny_data]
    model = ["--model", exported]
    file = tmp_path / "file"
    file.write_text("mine")

    def check(arguments, message):
        return refused(["evaluate", *arguments], capsys, message)

    # Without --model the bundled weights are used, and these are for larger tiles.
    assert check([*data], "made for tiles of 256 x 256 pixels") == 1
    assert check([*model, *data, "--limit", "-1"], "--limit -1") == 2
    assert check([*model, *data, "--split", "dev"], "--split dev: .*no such split.*'train'") == 2
    assert check(["--model", tmp_path / "gone", *data], "gone: no such model") == 1
    assert check(["--model", tiny_data, *data], "is a dataset, no model") == 1
    assert check([*model, "--data", workdir], "no dataset here") == 1
    assert check([*model, *data, "--out", file], "file cannot be written: it is a file") == 2
    assert (
        check(
            [*model, *data, "--report", file / "below"], "below: cannot be written: Not a directory"
        )
        == 1
    )
    assert file.read_text() == "mine"


def test_a_report_without_matplotlib_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    command = ["evaluate", "--data", tmp_path / "gone", "--report", tmp_path / "report"]
    message = r"matplotlib.* --report needs `pip install 'fundus-vae\[report\]'`"
    assert refused(command, capsys, message) == 2


def test_evaluate_refuses_data_that_does_not_fit(
    exported, vector_model, tiny_data, tmp_path, capsys, reseal
):
    shutil.copytree(tiny_data, tmp_path / "smaller")
    (path,) = (tmp_path / "smaller").rglob("metadata.json")
    reseal(path.parent, smallest={"tile": "a/b/c", "height": 24, "width": 24})
    smaller = ["--data", tmp_path / "smaller"]
    for model in (exported, vector_model):
        command = ["evaluate", "--model", model, *smaller, "--out", tmp_path / "out"]
        assert refused(command, capsys, "tiles of 32 x 32 pixels.* is 24 x 24; .*--tile 32") == 1
    assert not (tmp_path / "out").exists()

    shutil.copytree(tiny_data, tmp_path / "empty")
    (path,) = (tmp_path / "empty").rglob("dataset_info.json")
    info = json.loads(path.read_text())
    for split in info["splits"]:
        if split["name"] == "test":
            split["shardLengths"] = []
    path.write_text(json.dumps(info))
    reseal(path.parent)
    command = ["evaluate", "--model", exported, "--data", tmp_path / "empty"]
    assert refused(command, capsys, "--split test: .*no tiles in it") == 1


# --- info ----------------------------------------------------------------------------------------


def test_info_of_every_kind_of_model(finished, exported, tmp_path, capsys):
    config, workdir = finished
    abouts = []
    shutil.copy(exported, tmp_path / "model.safetensors")
    for path in (workdir, workdir / "checkpoints" / "8", exported, tmp_path):
        assert main(["info", str(path), "--json"]) == 0
        abouts.append(json.loads(capsys.readouterr().out))
    of_run, of_checkpoint, of_file, of_folder = abouts
    assert of_run == of_checkpoint
    assert of_file["kind"] == of_folder["kind"] == "exported file"
    same = ("hash", "step", "parameters", "preset", "latents", "latent", "version")
    for about in abouts:
        assert [about[key] for key in same] == [of_run[key] for key in same]
        # An exported file keeps names of folders without their paths.
        assert about["trained"]["fingerprint"] == of_run["trained"]["fingerprint"]
        assert Path(about["trained"]["data"]).name == Path(of_run["trained"]["data"]).name
    assert (of_run["step"], of_run["preset"], of_run["latents"]) == (8, "f8c8", [4, 4, 8])
    assert of_run["hash"] == vae.load_model(workdir).hash
    assert of_run["version"] == vae.__version__
    assert len(of_run["trained"]["fingerprint"]) == 32 and of_run["trained"]["command"]
    results = json.loads((workdir / "results.json").read_text())
    model = next(row for row in results["rows"] if row["name"] == "model")
    assert of_run["metrics"]["psnr"] == model["psnr"]
    assert of_run["metrics"]["split"] == config.eval.split
    assert of_file["metrics"] is None

    assert main(["info", str(workdir)]) == 0
    text = capsys.readouterr().out
    for words in ("step 8", of_run["hash"], "4 x 4 x 8 = 128 values", f"{model['psnr']:.2f} dB"):
        assert words in text


def test_info_ignores_metrics_of_another_step(finished, capsys):
    _, workdir = finished
    assert main(["info", str(workdir / "checkpoints" / "4"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["step"] == 4 and about["metrics"] is None


def test_info_of_a_vector_model(vector_model, capsys):
    assert main(["info", str(vector_model)]) == 0
    text = capsys.readouterr().out
    assert "32 x 32 pixels only" in text and "every value sees the whole tile" in text
    assert "step 7" in text and "version unknown" in text


# --- export --------------------------------------------------------------------------------------


def test_export_the_mean_of_two_checkpoints(finished, vector_model, tmp_path, capsys):
    ends = [finished[1] / "checkpoints" / step for step in ("0", "8")]
    command = ["export", str(ends[1]), "--average", str(ends[0]), "--out"]
    assert main([*command, str(tmp_path / "mean.safetensors")]) == 0
    mean, *two = (load_saved(path).variables for path in (tmp_path / "mean.safetensors", *ends))
    for a, b, c in zip(*map(jax.tree.leaves, (mean, *two)), strict=True):
        np.testing.assert_allclose(a, (np.float64(b) + c) / 2, rtol=1e-6, atol=1e-9)
    command[3] = str(vector_model)
    assert main([*command, str(tmp_path / "none.safetensors")]) == 1
    assert "models of one size have a mean" in capsys.readouterr().err
    assert not (tmp_path / "none.safetensors").exists()


def test_export_float16(finished, exported, tmp_path, capsys):
    _, workdir = finished
    small = tmp_path / "small.safetensors"
    assert main(["export", str(workdir), "--out", str(small), "--dtype", "float16"]) == 0
    assert f"{small.stat().st_size:,d} bytes, float16" in capsys.readouterr().out
    assert small.stat().st_size < exported.stat().st_size
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    outputs = [vae.load_model(path).reconstruct(images).astype(int) for path in (exported, small)]
    # The conv path corrects by a few grey levels; its float16 weights have 11 significant bits.
    assert np.abs(outputs[0] - outputs[1]).max() <= 1


def test_export_refuses(finished, exported, tmp_path, capsys):
    workdir = str(finished[1])

    def check(arguments, message):
        return refused(["export", *arguments], capsys, message)

    new = tmp_path / "new.safetensors"
    assert check([], "the following arguments are required: M") == 2
    assert check([workdir], "nothing to write") == 2
    assert check([workdir, "--out", tmp_path / "new.bin"], "ends in .safetensors") == 2
    assert check([workdir, "--out", exported], "is there already") == 2
    assert check([workdir, "--out", tmp_path / "gone" / "m.safetensors"], "there is no folder") == 2
    assert (
        check(
            [workdir, "--stablehlo", tmp_path / "x", "--dtype", "float16"], "is for --out and --hub"
        )
        == 2
    )
    # If one of the two cannot be written, neither is.
    both = ["--out", new, "--stablehlo", exported.parent]
    assert check([workdir, *both], "is there already") == 2
    assert check([tmp_path / "gone", "--out", new], "no such model") == 1
    (tmp_path / "model.pth").write_bytes(b"PK")
    assert check([tmp_path / "model.pth", "--out", new], "convert_torch_checkpoint") == 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(exported.read_bytes()[:1000])
    assert check([damaged, "--out", new], "damaged.safetensors: damaged") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.safetensors", "model.pth"]
