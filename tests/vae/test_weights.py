"""The bundled weights, on a photograph that was not used in their training."""

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data as bundled

import vae
from vae import weights
from vae.cli import main
from vae.data.fov import find_fov
from vae.inference.compare import compare
from vae.metrics import masked_psnr, ssim, to_float, to_uint8
from vae.models.degradations import FovGeometry, degrade

SIDE, COUNT = 128, 12


@pytest.fixture(scope="module")
def tiles():
    """Returns tiles of scikit-image's retina at random origins, uint8 [N, S, S, 3]."""
    photograph, rng = bundled.retina(), np.random.default_rng(0)
    corners = rng.integers(350, 1411 - 350 - SIDE, (COUNT, 2))
    return np.stack([photograph[y : y + SIDE, x : x + SIDE] for y, x in corners])


def figures(tiles, made):
    everywhere = np.ones(tiles.shape[:3], bool)
    similarity = ssim(tiles / np.float32(255), np.asarray(made) / np.float32(255))
    return float(np.mean(similarity)), float(np.mean(masked_psnr(tiles, made, everywhere)))


@pytest.mark.parametrize("name", weights.NAMES)
def test_above_pca_on_the_bundled_photograph(name, tiles):
    model = vae.load_model(name)
    assert weights.bundled_file(name).stat().st_size <= 6_000_000
    pca = jax.tree.map(np.asarray, model.saved.variables["pca"]["fit"])
    linear = to_uint8(pca.decode(pca.encode(to_float(tiles)).mean))
    floor, ours = figures(tiles, linear), figures(tiles, model.reconstruct(tiles))
    # All presets exceed PCA by more than 0.5 dB; less indicates weights of other code or data.
    assert ours[0] > floor[0] and ours[1] > floor[1] + 0.5, (ours, floor)


def test_the_default_model_is_bundled(tmp_path, capsys):
    assert vae.load_model().hash == vae.load_model(weights.DEFAULT.stem).hash
    assert main(["info", weights.DEFAULT.stem, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["preset"] == weights.DEFAULT.stem
    assert about["metrics"]["ssim"] > about["metrics"]["pca"]["ssim"]


def test_a_folder_of_the_same_name_is_not_taken_for_the_weights(tmp_path, monkeypatch, capsys):
    (tmp_path / "f8c32").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["info", "f8c32"]) == 1
    assert "write ./f8c32" in capsys.readouterr().err
    assert main(["info", "./f8c32"]) == 1
    assert "an empty folder" in capsys.readouterr().err
    assert main(["info", str(weights.DEFAULT)]) == 0


def test_stored_metrics_belong_to_the_weights():
    for name in weights.NAMES:
        content = json.loads((weights.FOLDER / f"{name}.json").read_text())
        assert content["model"] == vae.load_model(name).hash
    content = json.loads((weights.FOLDER / "enhance.json").read_text())
    assert content["model"] == vae.load_enhancer().hash
    content = json.loads((weights.FOLDER / "prior.json").read_text())
    sampler = vae.load_sampler()
    assert (content["prior"], content["autoencoder"]) == (sampler.hash, sampler.model.hash)


def test_the_bundled_enhancer_improves_a_degraded_photograph():
    """A hazy and noisy photograph is improved, and a clean one hardly changed."""
    assert weights.ENHANCE.stat().st_size <= 10_000_000
    photograph = cv2.resize(bundled.retina(), (706, 706), interpolation=cv2.INTER_AREA)
    fov = find_fov(photograph)
    centre = map(jnp.float32, (fov.y, fov.x, fov.radius))
    geometry = FovGeometry(jnp.int32(0), jnp.int32(0), *centre)
    inside = fov.mask(*photograph.shape[:2])
    clean = np.where(inside[..., None], photograph, np.uint8(0))
    severities = {"haze": 0.8, "noise": 0.5}
    bad = degrade(clean / np.float32(255), inside, geometry, severities, jax.random.key(0))
    bad = np.rint(np.asarray(bad) * 255).astype(np.uint8)
    model = vae.load_enhancer()
    made, kept = model.enhanced(bad, fov), model.enhance(clean, fov)
    (ssim_before, before), (ssim_after, after) = (
        compare(clean, x, inside) for x in (bad, made.image)
    )
    # Measured: 22.6 to 23.9 dB, SSIM 0.734 to 0.890. Much less indicates weights of other code.
    assert after > before + 0.5 and ssim_after > ssim_before + 0.1
    assert {"hazy", "noisy"} <= set(made.judgement.reasons)
    assert compare(clean, kept, inside)[0] > 0.99
