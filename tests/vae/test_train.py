"""Whole runs: files, restarts, kills, SIGTERM, full disks, divergence."""

import copy
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import vae
from vae.checkpoints.loading import load_saved, read_config
from vae.checkpoints.orbax_io import checksums
from vae.cli import main
from vae.data.errors import DataError
from vae.data.fundus_tiles.build import build
from vae.sharding import make_mesh, tree_sharding
from vae.tasks import task_of
from vae.training.checkpoint import Checkpoints
from vae.training.train import IN_FLIGHT, NonFiniteLossError, evaluate_workdir, train
from vae.training.train_state import abstract_state

ROOT = pathlib.Path(__file__).resolve().parents[2]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def state_from_variables(workdir, config, step=8):
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return checkpoints.restore(step, abstract_state(task_of(config)))
    finally:
        checkpoints.close()


def flags(config, workdir):
    """Returns command-line flags with the differences of tiny_config from the smoke preset."""
    return [
        "--config=configs/fundus256.py:smoke",
        f"--workdir={workdir}",
        f"--config.data.dir={config.data.dir}",
        "--config.data.source=",
        "--config.data.size=32",
        "--config.data.crop=16",
        "--config.data.fit_tiles=64",
        "--config.train.tensorboard=false",
        "--config.train.log_every=1",
        "--config.eval.every=4",
        f"--config.optimizer.name={config.optimizer.name}",
    ]


def interrupted(config, workdir, action, at, more=(), devices=1):
    return subprocess.run(
        [
            sys.executable,
            "tests/vae/interrupted.py",
            action,
            str(at),
            *flags(config, workdir),
            *more,
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_files_of_a_run(finished):
    config, workdir = finished
    assert {p.name for p in workdir.iterdir()} >= {
        "config.json", "checkpoints", "metrics.jsonl", "figures", "results.json", "tiles.csv",
    }  # fmt: skip
    assert read_config(workdir) == config
    written = lines(workdir)
    evaluations = [line for line in written if "eval_ssim" in line]
    assert [line["step"] for line in evaluations] == [0, 4, 8]
    written = [line for line in written if "loss" in line]
    assert [line["step"] for line in written] == list(range(8))
    assert all(np.isfinite(line["loss"]) and 0 <= line["input_wait"] <= 1 for line in written)
    assert len(written[0]["kl_channel"]) == config.model.latent_channels
    results = json.loads((workdir / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert set(rows) >= {"mean_colour", "bicubic_x4", "pca", "jpeg", "model", "model_sampled"}
    assert results["model"] == vae.load_model(workdir).hash
    assert rows["model"]["ssim"] > rows["bicubic_x4"]["ssim"] > rows["mean_colour"]["ssim"]


def test_kill_and_sigterm_change_nothing(finished, tmp_path):
    """With kill -9 and SIGTERM, state, losses and tiles equal an undisturbed run's, bit for bit."""
    config, undisturbed = finished
    killed = interrupted(config, tmp_path, "kill", at=7)
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert not (tmp_path / "results.json").exists()
    terminated = interrupted(config, tmp_path, "term", at=3)
    assert terminated.returncode == 143, terminated.stderr[-2000:]
    # It continued from checkpoint 4, took batches 4, 5 and 6, and stopped.
    assert "continuing from checkpoint 4" in terminated.stdout
    assert "SIGTERM: saved checkpoint 7" in terminated.stdout
    rest = interrupted(config, tmp_path, "none", at=0)
    assert rest.returncode == 0, rest.stderr[-2000:]
    assert "continuing from checkpoint 7" in rest.stdout
    assert (tmp_path / "results.json").exists()

    expected, state = (
        state_from_variables(undisturbed, config),
        state_from_variables(tmp_path, config),
    )
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(expected)[0], jax.tree.leaves(state), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    for key in ("step", "tiles_crc32", "loss", "eval_ssim"):
        assert [x.get(key) for x in lines(tmp_path)] == [x.get(key) for x in lines(undisturbed)]


def test_full_disk_keeps_the_last_checkpoint(finished, tmp_path):
    config, _ = finished
    full = interrupted(config, tmp_path, "full", at=6)
    assert full.returncode == 1
    assert "error: checkpoint 8 could not be written" in full.stderr
    assert "Traceback" not in full.stderr
    assert "the last complete one is 4" in full.stderr
    assert int(load_saved(tmp_path).step) == 4


def test_evaluation_mode(finished, tmp_path):
    """--mode=evaluate gives the table of the run."""
    config, workdir = finished[0], tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    before = json.loads((workdir / "results.json").read_text())
    (workdir / "results.json").unlink()
    evaluate_workdir(config, workdir)
    after = json.loads((workdir / "results.json").read_text())
    # Equal up to float32 sums in another layout of the variables.
    for a, b in zip(before["rows"], after["rows"], strict=True):
        assert a["name"] == b["name"] and a["ssim"] == pytest.approx(b["ssim"], abs=1e-5)


def test_divergence_is_never_saved(tiny_config, tmp_path):
    tiny_config.optimizer.learning_rate = 1e30
    tiny_config.eval.every = 0
    tiny_config.train.update(log_every=1, checkpoint_every=2)
    with pytest.raises(NonFiniteLossError, match=r"loss of step \d .* checkpoint .* is \d"):
        train(tiny_config, tmp_path)
    saved = load_saved(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.variables))


def test_changed_data_or_model_is_refused(finished, tiny_tiles, tmp_path):
    config, workdir = finished[0], tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    other = copy.deepcopy(config)
    other.model.width = 8
    with pytest.raises(DataError, match=r"belongs to the model .*'width': 16.* has .*'width': 8"):
        train(other, workdir)
    fewer = tmp_path / "tiles"
    fewer.mkdir()
    manifest = (tiny_tiles / "manifest.csv").read_text().splitlines(keepends=True)
    (fewer / "manifest.csv").write_text("".join(manifest[:1] + manifest[2:]))
    for line in manifest[2:]:
        name = line.split(",")[0]
        (fewer / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(tiny_tiles / name, fewer / name)
    build(fewer, tmp_path / "data", report=lambda line: None)
    other = copy.deepcopy(config)
    other.data.dir = str(tmp_path / "data")
    with pytest.raises(DataError, match="belongs to the fingerprint"):
        train(other, workdir)


def test_time_limit_ends_a_run_regularly(tiny_config, tmp_path, capsys):
    tiny_config.train.update(max_minutes=1e-9, steps=10_000)
    tiny_config.eval.every = 0
    train(tiny_config, tmp_path)
    assert "are over at step 0 of 10000" in capsys.readouterr().out
    assert (tmp_path / "results.json").exists()


def test_init_from_another_run(finished, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("vae.tasks.autoencoding.Autoencoding.report", lambda *_: None)
    _, workdir = finished
    tiny_config.init_from = str(workdir)
    tiny_config.train.steps, tiny_config.eval.every = 1, 0
    tiny_config.optimizer.learning_rate = 1e-12
    train(tiny_config, tmp_path)
    a, b = load_saved(workdir).variables, load_saved(tmp_path).variables
    # The average d x + (1 - d) x is rounded once or twice.
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=np.finfo(np.float32).eps, atol=1e-9)


def test_a_run_that_ends_worse_than_its_start_says_so(finished, tiny_config, tmp_path, capsys):
    tiny_config.init_from = str(finished[1])
    tiny_config.optimizer.init_from_factor = 1.0
    tiny_config.optimizer.update(learning_rate=0.3, warmup_steps=0, schedule="constant")
    tiny_config.train.update(steps=1, ema_decay=0.0)
    train(tiny_config, tmp_path / "worse")
    output = capsys.readouterr().out
    assert "warning: the model is worse than at step 0 (eval_psnr" in output
    assert "lower optimizer.init_from_factor" in output
    tiny_config.optimizer.init_from_factor = 1e-12
    train(tiny_config, tmp_path / "same")
    first, last = (x["eval_psnr"] for x in lines(tmp_path / "same") if "eval_psnr" in x)
    assert ("warning" in capsys.readouterr().out) == (last < first)


def test_wrong_models_are_named(finished, tmp_path):
    _, workdir = finished
    with pytest.raises(DataError, match="no such model"):
        load_saved(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is an empty folder, no model; expected a run's workdir"):
        load_saved(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_saved(tmp_path)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(DataError, match="no checkpoint yet"):
        load_saved(tmp_path)
    with pytest.raises(DataError, match="3: no such model"):
        load_saved(workdir / "checkpoints" / "3")


def test_checkpoint_with_a_lost_file(finished, tmp_path):
    _, workdir = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8" / "model")
    with pytest.raises(DataError, match="cannot be read"):
        load_saved(tmp_path / "run" / "checkpoints" / "8")


def test_a_damaged_newest_checkpoint_is_one_line_with_the_way_out(finished, tmp_path, capsys):
    config, workdir = finished
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    newest = run / "checkpoints" / "8"
    largest = max((newest / "model").rglob("d/*"), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    advice = rf"checkpoint {newest} cannot be read: .*remove that directory, and checkpoint 4 is"
    rng = np.random.default_rng(0)
    for position in (*rng.integers(len(whole), size=4), None):
        damaged = bytearray(whole)
        if position is None:
            damaged = damaged[:100]
        else:
            damaged[position] ^= 1 << int(rng.integers(8))
        largest.write_bytes(damaged)
        with pytest.raises(DataError, match=advice) as refusal:
            load_saved(run)
        assert "\n" not in str(refusal.value)
    assert main(["info", str(run)]) == 1
    with pytest.raises(DataError, match=advice):
        train(config, run)
    shutil.rmtree(newest)
    assert load_saved(run).step == 4
    shutil.rmtree(run / "checkpoints" / "4" / "model")
    with pytest.raises(DataError, match="remove that directory, and .*0 is used|no checkpoint is"):
        load_saved(run)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, np.bool_, np.float16])
def test_checksums_see_each_bit_and_no_sharding(dtype):
    array = np.random.default_rng(0).integers(0, 2, (8, 3, 4)).astype(dtype)
    sharding = tree_sharding({"a": array}, make_mesh(1, 8), min_size=1)
    expected = checksums({"a": jax.device_put(array)})
    assert checksums({"a": jax.device_put(array, sharding["a"])}) == expected
    for position in range(0, array.nbytes, 7):
        flipped = array.copy()
        flipped.view(np.uint8).reshape(-1)[position] ^= 1
        assert checksums({"a": jax.device_put(flipped)}) != expected
    assert checksums({"a": jax.device_put(array[::-1])}) != expected


def test_checkpoint_of_another_dtype(finished):
    config, workdir = finished
    abstract = abstract_state(task_of(config))
    half = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, np.float16), abstract.ema_params)
    checkpoints = Checkpoints(workdir / "checkpoints")
    with pytest.raises(DataError, match="belongs to another model, .*float32.*float16"):
        checkpoints.restore(8, abstract.replace(ema_params=half))
    checkpoints.close()


@pytest.mark.usefixtures("eight_devices")
def test_another_mesh_continues_with_the_same_batches(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("vae.tasks.autoencoding.Autoencoding.report", lambda *_: None)
    config, undisturbed = finished
    config = copy.deepcopy(config)
    config.mesh.update(fsdp=4, fsdp_min_size=64)
    config.data.on_device = True
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    train(config, tmp_path / "run")
    for a, b in zip(lines(tmp_path / "run"), lines(undisturbed), strict=True):
        assert a["step"] == b["step"] and a.get("tiles_crc32") == b.get("tiles_crc32")
        # Float32 sums in another order change terms of order one by 1e-6 per step.
        assert a.get("loss") == pytest.approx(b.get("loss"), abs=8e-6)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.soak
def test_twenty_kills_at_random_moments_change_nothing(finished, tmp_path):
    """After SIGKILL during steps, logging or saving, each restart finds a complete checkpoint.

    With a checkpoint every other step, a run saves most of the time. Kills come up to 0.4 s after
    a random batch after the compilation, so that each start makes progress.
    """
    steps = 300
    config = copy.deepcopy(finished[0])
    config.train.update(steps=steps, checkpoint_every=2, log_every=50)
    config.eval.every = 0
    config.optimizer.name = "muon"
    more = [f"--config.train.{key}={config.train[key]}" for key in ("steps", "checkpoint_every")]
    more += ["--config.train.log_every=50", "--config.eval.every=0"]
    random, reached = np.random.default_rng(0), [0]
    for _ in range(20):
        at, milliseconds = random.integers(IN_FLIGHT + 3, 9), random.integers(0, 400)
        killed = interrupted(config, tmp_path / "killed", f"kill+{milliseconds}", at, more, 8)
        assert killed.returncode == -9, killed.stderr[-2000:]
        reached.append(load_saved(tmp_path / "killed").step)
        assert f"continuing from checkpoint {reached[-2]} " in killed.stdout or reached[-2] == 0
    assert reached == sorted(reached) and len(set(reached)) > 10
    rest = interrupted(config, tmp_path / "killed", "none", 0, more, 8)
    assert rest.returncode == 0, rest.stderr[-2000:]
    train(config, tmp_path / "undisturbed")
    expected, state = (
        state_from_variables(tmp_path / name, config, step=steps)
        for name in ("undisturbed", "killed")
    )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    for key in ("step", "tiles_crc32", "loss"):
        written, undisturbed = (lines(tmp_path / name) for name in ("killed", "undisturbed"))
        assert [x.get(key) for x in written] == [x.get(key) for x in undisturbed]
