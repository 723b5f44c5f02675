"""Sampling: the solver, matching of prior and autoencoder, the commands."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image

from vae import weights
from vae.checkpoints.loading import load_saved, variables_hash
from vae.checkpoints.modules import initial_variables
from vae.checkpoints.safetensors_io import SavedModel, write_safetensors
from vae.cli import main
from vae.configs import prior256
from vae.data.errors import DataError, UsageError
from vae.data.images import read_image, write_image
from vae.data.pipeline import open_dataset
from vae.inference.model import Model, load_model
from vae.inference.sample import CHUNK, Sampler, _slerp, _times, load_sampler
from vae.inference.sample_files import grid
from vae.models import with_spectrum
from vae.tasks.flow import spectrum_of
from vae.tasks.prior_initialization import for_latents

SIDE = 64


@pytest.fixture(scope="module")
def dataset(small_data):
    return open_dataset(small_data)


@pytest.fixture(scope="module")
def autoencoder():
    return load_saved("f8c4")


@pytest.fixture(scope="module")
def prior(dataset, autoencoder, tmp_path_factory):
    """An exported prior with perturbed parameters."""
    config = prior256.get_config("smoke")
    config = for_latents(config, autoencoder, dataset)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)
    fresh = with_spectrum(
        jax.jit(lambda: initial_variables(config))(), spectrum_of(autoencoder, [noise], SIDE)
    )
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32),
        fresh["params"],
    )
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    about = {"autoencoder": variables_hash(autoencoder.variables)}
    variables = {**fresh, "params": params}
    saved = SavedModel(path, config, 7, variables, np.zeros(4), np.ones(4), about)
    write_safetensors(path, saved)
    return path


@pytest.fixture(scope="module")
def sampler(prior):
    return load_sampler(prior)


def test_a_tile_is_a_function_of_seed_and_number(sampler):
    many = sampler.sample(range(CHUNK + 3), seed=4)
    assert many.shape == (CHUNK + 3, SIDE, SIDE, 3) and many.dtype == np.uint8
    # Bit for bit the same alone, in another order, and in another chunk.
    np.testing.assert_array_equal(sampler.sample([CHUNK + 1, 2], seed=4), many[[CHUNK + 1, 2]])
    assert np.abs(sampler.sample([2], seed=5)[0].astype(int) - many[2]).max() > 0
    assert np.abs(many[0].astype(int) - many[1]).max() > 0


def test_both_solvers_converge_to_the_same_result(sampler):
    fine = sampler.latents([0, 1], steps=64)
    error = {
        method: np.abs(sampler.latents([0, 1], steps=16, method=method) - fine).mean()
        for method in ("euler", "heun")
    }
    assert error["heun"] < error["euler"] / 4 < 0.05


def test_steps_are_shorter_at_the_start():
    times = _times(8, 3.0)
    assert times[0] == 0 and times[-1] == 1 and times.dtype == np.float32
    assert (np.diff(times, 2) > 0).all() and times[1] < 1 / 8 / 2


def test_labels_and_guidance_change_what_is_drawn(sampler):
    plain, named = (sampler.latents([0], label=label) for label in (None, "synthetic"))
    np.testing.assert_array_equal(sampler.latents([0], label="synthetic", guidance=1.0), named)
    more = sampler.latents([0], label="synthetic", guidance=2.0)
    assert np.abs(named - plain).max() > 1e-4
    # Guidance extrapolates; to first order the difference doubles.
    along = np.sum((more - named) * (named - plain)) / np.sum((named - plain) ** 2)
    assert along == pytest.approx(1, abs=0.3)
    np.testing.assert_allclose(
        sampler.latents([0], label="synthetic", guidance=0.0), plain, atol=1e-4
    )


def test_interpolation_begins_and_ends_with_the_reconstructions(sampler, autoencoder):
    ends = sampler.sample([0, 1])
    way = sampler.between(*ends, 3, steps=32)
    whole = Model(autoencoder).reconstruct(ends)
    # To noise and back in 32 second-order steps each.
    for made, end in zip(way[[0, 2]], whole, strict=True):
        assert np.abs(made.astype(int) - end).mean() < 1
    assert np.abs(way[1].astype(int) - way[0]).mean() > 1


def test_interpolated_noise_keeps_its_norm():
    a, b = np.random.default_rng(0).standard_normal((2, 4096))
    assert np.std(_slerp(a, b, 0.5)) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(_slerp(a, a, 0.3), a)


def test_vector_models_have_the_prior_of_their_training(vector_model):
    sampler = load_sampler(vector_model)
    tiles = sampler.sample(range(3))
    assert tiles.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(sampler.sample([2]), tiles[2:])
    latents = sampler.latents(range(2000))
    assert latents.std() == pytest.approx(1, abs=0.02)
    with pytest.raises(UsageError, match="has no labels"):
        sampler.latents([0], label="left")


def test_normal_is_a_prior_for_every_model():
    sampler = load_sampler("f8c8", "normal")
    assert isinstance(sampler, Sampler) and sampler.prior is None
    assert sampler.latent_shape == (32, 32, 8)
    latents = sampler.latents([0, 1])
    assert latents.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "first, second, message",
    [
        ("f8c8", "PRIOR", "can decode its samples"),
        ("f8c4", "f8c8", "not a prior: its architecture is autoencoder_kl"),
        ("PRIOR", "PRIOR", "two priors"),
        ("enhance", None, "no autoencoder"),
        ("VECTOR", "PRIOR", "is not for it"),
        ("f8c8", None, "has no prior|no prior comes"),
        ("nowhere", None, "no such model"),
    ],
)
def test_unrelated_models_are_refused(first, second, message, prior, vector_model):
    named = {"PRIOR": str(prior), "VECTOR": str(vector_model)}
    with pytest.raises(DataError, match=message):
        load_sampler(named.get(first, first), named.get(second, second))


def test_a_missing_autoencoder_is_named(prior, tmp_path):
    saved = load_saved(prior)
    saved.config.prior.autoencoder = "elsewhere"
    path = tmp_path / "lost.safetensors"
    write_safetensors(path, saved)
    with pytest.raises(DataError, match="name it as the model"):
        load_sampler(path)
    assert load_sampler("f8c4", path).sample([0]).shape == (1, SIDE, SIDE, 3)


def test_a_prior_is_no_autoencoder(prior):
    with pytest.raises(DataError, match="fundus-vae sample"):
        load_model(prior)


def test_grid_holds_all_tiles():
    tiles = np.zeros((5, 8, 8, 3), np.uint8)
    sheet = grid(tiles, columns=3)
    assert sheet.shape == (2 * 12 + 4, 3 * 12 + 4, 3)
    assert (sheet == 0).all(axis=-1).sum() == 5 * 64
    assert grid(tiles[:2], columns=8, side=4).shape == (12, 20, 3)


def test_sample_command(prior, sampler, tmp_path, capsys):
    out = tmp_path / "new"
    assert (
        main(["sample", "--model", str(prior), "--n", "3", "--seed", "9", "--out", str(out)]) == 0
    )
    assert "of no person's eye" in capsys.readouterr().out
    with (out / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"seed9_0000{i}.png" for i in range(3)]
    made = np.stack([read_image(out / row["file"]) for row in rows])
    np.testing.assert_array_equal(made, sampler.sample(range(3), seed=9))
    text = Image.open(out / rows[1]["file"]).text
    assert text["prior"] == sampler.hash and "of no person's eye" in text["generated"]
    assert read_image(out / "sheet.png").shape[2] == 3


def test_interpolate_command(prior, sampler, tmp_path):
    tiles = sampler.sample([0, 1])
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    write_image(paths[0], tiles[0])
    write_image(paths[1], np.pad(tiles[1], ((10, 10), (20, 20), (0, 0))))  # its centre is used
    out = tmp_path / "way"
    code = main(["interpolate", *map(str, paths), "--model", str(prior), "--n", "3", "--out",
                 str(out)])  # fmt: skip
    assert code == 0
    assert sorted(p.name for p in out.iterdir()) == [
        ".fundus-vae.json", "between_000.png", "between_001.png", "between_002.png",
        "interpolation.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--n", "0"], 2, "--n 0: expected a number of tiles"),
        (["--n", "100000000"], 2, "expected a number of tiles"),
        (["--steps", "0"], 2, "--steps 0"),
        (["--seed", "-1"], 2, "--seed -1"),
        (["--label", "nobody"], 2, "--label nobody: this prior knows synthetic"),
        (["--guidance", "3"], 2, "give --label"),
        (["--prior", "f8c4"], 1, "two priors"),
    ],
)
def test_sample_refuses(prior, arguments, code, message, tmp_path, capsys):
    out = tmp_path / "new"
    assert main(["sample", "--model", str(prior), "--out", str(out), *arguments]) == code
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_other_commands_refuse_a_prior(prior, tmp_path, capsys):
    for arguments in (
        ["evaluate", "--model", str(prior), "--data", "somewhere"],
        ["export", str(prior), "--stablehlo", str(tmp_path / "programs")],
        ["enhance", "eye.jpg", "--model", str(prior), "--out", str(tmp_path / "out")],
    ):
        assert main(arguments) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1


def test_interpolate_refuses_small_images(prior, tmp_path, capsys):
    small = tmp_path / "small.png"
    write_image(small, np.zeros((20, 20, 3), np.uint8))
    arguments = ["interpolate", str(small), str(small), "--model", str(prior)]
    assert main([*arguments, "--out", str(tmp_path / "way")]) == 1
    assert "expected at least 64 x 64" in capsys.readouterr().err
    assert main([*arguments, "--n", "1", "--out", str(tmp_path / "way")]) == 2
    assert not (tmp_path / "way").exists()


def test_info_of_a_prior_names_its_autoencoder(prior, autoencoder, capsys):
    assert main(["info", str(prior)]) == 0
    text = capsys.readouterr().out
    assert variables_hash(autoencoder.variables) in text and "synthetic" in text


def test_evaluate_samples_of_a_folder(prior, dataset, sampler, tmp_path, capsys):
    folder = tmp_path / "tiles"
    folder.mkdir()
    for number, tile in enumerate(sampler.sample(range(8))):
        write_image(folder / f"{number}.png", tile)
    arguments = ["evaluate-samples", "--model", str(prior), "--data", str(dataset.path)]
    arguments += ["--n", "8", "--split", "val", "--samples", str(folder)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "floor" in text and "held out" in text and "samples  " in text
    assert (tmp_path / "out" / "samples.json").exists()
    assert main([*arguments[:5], "--n", "3"]) == 2
    assert main([*arguments[:5], "--split", "nowhere"]) == 2


def test_the_bundled_prior():
    sampler = load_sampler()
    assert sampler.side == 256 and "hrf" in sampler.labels
    assert weights.SAMPLE.stat().st_size <= 10e6
    tile = sampler.sample([0], steps=4)[0]
    # In a fundus photograph red is brighter than green, and green than blue.
    red, green, blue = tile.reshape(-1, 3).mean(axis=0)
    assert red > green > blue
