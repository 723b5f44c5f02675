"""A model as a folder for the Hugging Face Hub, and models from a filled cache, without network."""

import json
import shutil
import sys

import pytest

import vae
from vae.checkpoints.loading import load_saved
from vae.cli import main
from vae.data.errors import DataError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of f8c4, written by the command."""
    path = tmp_path_factory.mktemp("hub") / "f8c4"
    assert main(["export", "f8c4", "--hub", str(path), "--dtype", "float16"]) == 0
    return path


def metadata(folder):
    _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    lines = (line.partition(": ") for line in front.splitlines())
    return {key: json.loads(value) for key, _, value in lines}


def test_the_folder_is_a_model_with_a_card(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    assert vae.load_model(folder).hash == vae.load_model("f8c4").hash
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["latent_channels"] == 4 and config["model_type"] == "fundus-vae"
    card = metadata(folder)
    assert card["license"] == "apache-2.0" and "HRF" in card["training_data"]["data"]
    assert "not for diagnosis" in card["limits"]
    (result,) = card["model-index"][0]["results"]
    figures = {figure["type"]: figure["value"] for figure in result["metrics"]}
    assert figures["psnr"] == pytest.approx(45.2, abs=0.05)
    assert str(vae.weights.FOLDER) not in (folder / "README.md").read_text()


def test_a_model_of_ones_own(finished, tmp_path, capsys):
    command = ["export", str(finished[1]), "--hub", str(tmp_path / "hub"), "--license", "cc-by-4.0"]
    assert main(command) == 0
    assert metadata(tmp_path / "hub")["license"] == "cc-by-4.0"
    for path in (tmp_path / "hub").iterdir():
        assert str(finished[1].parent).encode() not in path.read_bytes()
    capsys.readouterr()
    assert main(["export", "f8c4", "--out", str(tmp_path / "m.safetensors"), "--license", "x"]) == 2
    assert "--hub DIR, which is missing" in capsys.readouterr().err


def test_enhancer_and_prior_have_cards(tmp_path):
    for name, load in (("enhance", "load_enhancer"), ("prior", "load_sampler")):
        assert main(["export", name, "--hub", str(tmp_path / name)]) == 0
        assert f"vae.{load}(" in (tmp_path / name / "README.md").read_text()
        assert metadata(tmp_path / name)["model-index"][0]["name"]


@pytest.fixture
def cache(folder, tmp_path, monkeypatch):
    """A cache of huggingface_hub that holds the folder, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="no extra [hub]")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--f8c4"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for revision in ("main", "v1"):
        (repository / "refs" / revision).write_text(COMMIT)


def test_a_model_of_the_hub_is_read_from_the_cache(cache, folder, capsys):
    wanted = vae.load_model("f8c4").hash
    for name in ("hf://somebody/f8c4", "hf://somebody/f8c4@v1", f"hf://somebody/f8c4@{COMMIT}"):
        assert vae.load_model(name).hash == wanted
    assert main(["info", "hf://somebody/f8c4"]) == 0
    assert wanted in capsys.readouterr().out


def test_errors_are_one_line(cache, monkeypatch):
    for name in ("hf://somebody/f8c4@v2", "hf://nobody/nothing"):
        with pytest.raises(
            DataError, match="no model.safetensors from the hub or its cache"
        ) as got:
            load_saved(name)
        assert "\n" not in str(got.value) and name in str(got.value)
    for name in ("hf://f8c4", "hf://a/b/c", "hf://a/b@"):
        with pytest.raises(DataError, match="expected hf://owner/name"):
            load_saved(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"fundus-vae\[hub\]"):
        load_saved("hf://somebody/f8c4")
