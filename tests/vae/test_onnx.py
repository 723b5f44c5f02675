"""Exported ONNX files in onnxruntime, by the lines of their README, compared with JAX.

Skipped without the packages of the extra [onnx].
"""

import json
import re

import jax
import numpy as np
import pytest

import vae
from vae import weights
from vae.checkpoints.loading import load_saved
from vae.cli import main
from vae.data.errors import DataError, UsageError
from vae.inference.onnx_files import OPSET, write_onnx

onnx = pytest.importorskip("onnx", reason="no extra [onnx]")
pytest.importorskip("jax2onnx", reason="no extra [onnx]")
pytest.importorskip("onnxruntime", reason="no onnxruntime")

RANGE = 1e-4  # largest difference, as a share of the range of values


def run_readme(folder, images, monkeypatch):
    """Runs the Python lines of the README: mean, log-variance and decoded images."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    names = {"images": images}
    monkeypatch.chdir(folder)
    exec(lines.rpartition("decoded = np.rint")[0], names)
    return names["mean"], names["log_var"], names["decoded"]


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert np.abs(ours - theirs).max() <= RANGE * np.ptp(theirs)


@pytest.mark.parametrize("name", weights.NAMES)
def test_onnxruntime_agrees_with_jax_at_every_size(name, tmp_path, monkeypatch):
    write_onnx(tmp_path / "onnx", load_saved(name))
    model = vae.load_model(name)
    variables = model.saved.variables
    rng = np.random.default_rng(0)
    apply = jax.jit(lambda latents: model._module.apply(variables, latents, method="decode"))
    for shape in ((2, 48, 32, 3), (1, 8, 16, 3)):
        images = rng.integers(0, 256, shape, np.uint8)
        mean, log_var, decoded = run_readme(tmp_path / "onnx", images, monkeypatch)
        posterior = model.posterior(images)
        assert_close(mean, posterior.mean)
        assert_close(log_var, posterior.log_var)
        wanted = np.asarray(apply(mean))
        assert_close(decoded, np.clip((wanted + 1) * 127.5, 0, 255))


def test_the_files_say_what_they_are(tmp_path, capsys):
    assert main(["export", "f8c4", "--onnx", str(tmp_path / "onnx")]) == 0
    assert "encoder.onnx" in capsys.readouterr().out
    folder = tmp_path / "onnx"
    names = {"encoder.onnx", "decoder.onnx", "about.json", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    about = json.loads((folder / "about.json").read_text())
    assert about["opset"] == OPSET and about["model"]["hash"] == vae.load_model("f8c4").hash
    assert f"opset {OPSET}" in (folder / "README.md").read_text()
    shapes = {"images": ["n", "8*h", "8*w", "3"], "latents": ["n", "h", "w", "4"]}
    for name in ("encoder", "decoder"):
        file = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(file, full_check=True)
        assert max(use.version for use in file.opset_import if not use.domain) == OPSET
        for value in (*file.graph.input, *file.graph.output):
            dims = value.type.tensor_type.shape.dim
            shape = [dim.dim_param or str(dim.dim_value) for dim in dims]
            assert shape == shapes.get(value.name, shapes["latents"])


def test_other_models_are_refused(vector_model, tmp_path, capsys):
    for model, reason in (("enhance", "light and blur"), ("prior", "solver")):
        assert main(["export", model, "--onnx", str(tmp_path / "onnx")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "exports autoencoders only" in line and reason in line
    with pytest.raises(DataError, match="--stablehlo exports it"):
        write_onnx(tmp_path / "onnx", load_saved(vector_model))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        write_onnx(tmp_path / "full", load_saved("f8c4"))
    assert not (tmp_path / "onnx").exists()
