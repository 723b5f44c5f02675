"""Exported StableHLO programs, which run without this package."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import vae
from vae.checkpoints.loading import load_saved
from vae.data.errors import DataError, UsageError
from vae.inference import stablehlo
from vae.inference.stablehlo import write_stablehlo


def run_readme(folder, images):
    """Runs the lines of README.txt in a process that cannot import this package.

    Returns:
      Mean, log-variance and reconstruction for each array of images.
    """
    readme = (folder / "README.txt").read_text(encoding="utf-8")
    lines = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
    np.savez(folder.parent / "in.npz", *images)
    code = [
        "import sys",
        "for name in ('vae', 'data', 'flax', 'configs'): sys.modules[name] = None",
        *lines[:-2],
        "outputs = []",
        "for images in np.load('../in.npz').values():",
        *("    " + line for line in lines[-2:]),
        "    outputs += [np.asarray(mean), np.asarray(log_var), images]",
        "np.savez('../out.npz', *outputs)",
    ]
    subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=folder, env=os.environ | {"PYTHONPATH": ""}, check=True, timeout=120,
    )  # fmt: skip
    outputs = list(np.load(folder.parent / "out.npz").values())
    return [outputs[i : i + 3] for i in range(0, len(outputs), 3)]


def test_programs_reproduce_the_model_at_every_size(finished, tmp_path):
    _, workdir = finished
    sizes = write_stablehlo(tmp_path / "new" / "programs", load_saved(workdir))
    folder = tmp_path / "new" / "programs"
    assert sizes == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == {"encode.stablehlo", "decode.stablehlo", "about.json", "README.txt"}

    model = vae.load_model(workdir)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, h, w, 3), np.uint8) for n, h, w in ((3, 32, 48), (1, 16, 8))]
    for pixels, (mean, log_var, output) in zip(images, run_readme(folder, images), strict=True):
        posterior = model.posterior(pixels)
        # With weights as constants, the compiler may order float32 sums differently.
        np.testing.assert_allclose(mean, posterior.mean, atol=1e-4)
        np.testing.assert_allclose(log_var, posterior.log_var, atol=1e-4)
        expected = model.reconstruct(pixels).astype(int)
        assert np.abs(output - expected).max() <= 1
        assert (output != expected).mean() < 1e-3
    about = json.loads((folder / "about.json").read_text())
    assert about["model"]["hash"] == model.hash
    assert about["programs"]["encode"]["images"] == "uint8 [n, 8*h, 8*w, 3]"
    assert about["written_by"]["version"] == vae.__version__
    assert {"cpu", "cuda", "tpu"} <= set(about["platforms"])

    encode = jax.export.deserialize((folder / "encode.stablehlo").read_bytes())
    with pytest.raises(ValueError, match="8\\*h"):
        encode.call(np.zeros((1, 30, 32, 3), np.uint8))


def test_programs_of_a_model_of_one_tile_size(vector_model, tmp_path):
    write_stablehlo(tmp_path / "programs", load_saved(vector_model))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    ((mean, _, output),) = run_readme(tmp_path / "programs", [images])
    model = vae.load_model(vector_model)
    np.testing.assert_allclose(mean, model.encode(images), atol=1e-4)
    assert np.abs(output - model.reconstruct(images).astype(int)).max() <= 1
    assert "Images of another size are refused" in (tmp_path / "programs/README.txt").read_text()


def test_failed_export_leaves_no_files(vector_model, tmp_path, monkeypatch):
    saved = load_saved(vector_model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        write_stablehlo(tmp_path / "full", saved)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        write_stablehlo(tmp_path / "file", saved)
    monkeypatch.setattr(stablehlo, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"export it with --out FILE\.safetensors"):
        write_stablehlo(tmp_path / "large", saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
