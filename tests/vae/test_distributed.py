"""Several real processes give the batches, losses, metrics and files of one process."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from vae.checkpoints.loading import load_saved
from vae.data.errors import UsageError
from vae.training.distributed import initialize
from vae.training.train import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Sums over the mesh are in another order; eight steps of AdamW amplify the difference.
TOLERANCE = 1e-4


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir) if "loss" in line}


def start(config, workdir, processes, action="none", at=0, extra=()):
    """Starts a run with 4 CPU devices in total; the last process does `action` at batch `at`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [
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
        f"--coordinator_address=localhost:{port}",
        f"--num_processes={processes}",
        *extra,
    ]
    started = []
    for i in range(processes):
        does = [action, str(at)] if i == processes - 1 else ["none", "0"]
        started.append(
            subprocess.Popen(
                [sys.executable, "tests/vae/interrupted.py", *does, *command, f"--process_id={i}"],
                cwd=ROOT,
                env=os.environ | {"JAX_NUM_CPU_DEVICES": str(4 // processes)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started):
    """Returns exit codes, standard outputs and standard errors."""
    ended = [process.communicate(timeout=300) for process in started]
    return [process.returncode for process in started], *zip(*ended, strict=True)


@pytest.fixture(scope="module")
def preempted(finished, tmp_path_factory):
    """Two processes of two devices, with SIGTERM to the second at batch 2: (workdir, results)."""
    workdir = tmp_path_factory.mktemp("preempted")
    # Slow steps: all processes must get the signal before the run ends.
    started = start(finished[0], workdir, 2, "slow_term", at=2)
    return workdir, finish(started)


def test_sigterm_to_one_process_stops_all_at_the_same_step(preempted):
    workdir, (codes, outputs, errors) = preempted
    assert codes == [143, 143], errors[1][-2000:]
    saved = load_saved(workdir)
    assert 2 <= saved.step < 8
    assert f"SIGTERM: saved checkpoint {saved.step}" in outputs[0]
    assert "SIGTERM" not in outputs[1]  # only process 0 prints
    assert not (workdir / "results.json").exists()


def test_losses_and_metrics_equal_those_of_one_process(preempted, finished):
    workdir, _ = preempted
    several, one = losses(workdir), losses(finished[1])
    steps = load_saved(workdir).step
    assert sorted(several) == list(range(steps))  # written once
    for step, loss in several.items():
        assert loss == pytest.approx(one[step], rel=TOLERANCE)
    at_0, undisturbed = (
        next(line for line in lines(path) if "eval_ssim" in line) for path in (workdir, finished[1])
    )
    assert at_0["eval_ssim"] == pytest.approx(undisturbed["eval_ssim"], abs=1e-6)


@pytest.mark.parametrize("processes", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_another_number_of_processes_continues(preempted, finished, tmp_path, processes):
    config, undisturbed = finished
    shutil.copytree(preempted[0], tmp_path, dirs_exist_ok=True)
    first = load_saved(tmp_path).step
    if processes == 1:
        train(config, tmp_path)
    else:
        codes, outputs, errors = finish(start(config, tmp_path, processes))
        assert codes == [0] * processes, errors
        assert f"continuing from checkpoint {first}" in outputs[0]
    several, one = losses(tmp_path), losses(undisturbed)
    assert sorted(several) == sorted(one)
    for step, loss in several.items():
        assert loss == pytest.approx(one[step], rel=TOLERANCE)
    results, expected = (
        json.loads((path / "results.json").read_text()) for path in (tmp_path, undisturbed)
    )
    assert results["counts"] == expected["counts"]
    for row, other in zip(results["rows"], expected["rows"], strict=True):
        assert row["ssim"] == pytest.approx(other["ssim"], abs=1e-4)
    for a, b in zip(
        jax.tree.leaves(load_saved(tmp_path).variables),
        jax.tree.leaves(load_saved(undisturbed).variables),
        strict=True,
    ):
        # Adam divides by its second moment, which may be pure rounding: a whole step of the rate.
        np.testing.assert_allclose(a, b, atol=3e-3, rtol=1e-2)


@pytest.mark.soak
def test_a_process_that_dies_ends_the_others(finished, tmp_path):
    started = start(finished[0], tmp_path, 2, "kill", at=3, extra=["--heartbeat_seconds=10"])
    codes, _, errors = finish(started)
    assert codes[1] == -9 and codes[0] not in (0, None)
    assert "error" in errors[0].lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None, 100), "--num_processes, --process_id missing"),
        (("localhost:1", 2, 2, 100), "--process_id=2 must lie in 0..1"),
        (("localhost", 2, 1, 100), "is not HOST:PORT"),
        (("localhost:1", 2, 1, 0), "--heartbeat_seconds=0 must be"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        initialize(*arguments)


def test_a_single_process_opens_no_port(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    initialize(None, None, None, 100)
    assert not jax.distributed.is_initialized()
