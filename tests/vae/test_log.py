"""The log of a run: lines after a restart, rates, TensorBoard events."""

import json
import time

import numpy as np
import pytest

from vae.training.log import Clock, RunLog, console_line


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_after_a_restart_each_step_is_logged_once(tmp_path):
    log = RunLog(tmp_path, 0, tensorboard=False)
    for step in range(6):
        log.write(step, {"loss": np.float32(step), "kl_channel": np.arange(2.0)})
    log.close()
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # a line cut by a kill
    log = RunLog(tmp_path, 4, tensorboard=False)
    log.write(4, {"loss": float("nan")})
    log.close()
    assert steps(path) == [0, 1, 2, 3, 4]
    assert json.loads(path.read_text().splitlines()[1])["kl_channel"] == [0.0, 1.0]


def test_clock_measures_rate_and_waiting_time():
    clock = Clock(batch_size=8, last_step=100)
    assert clock.eta(0) == "-"
    for _ in range(4):
        time.sleep(0.01)
        clock.stepped()
    clock.waited(0.01)
    figures = clock.read()
    assert 0 < figures["tiles_per_s"] <= 4 * 8 / 0.04
    assert 0 < figures["input_wait"] <= 0.25
    assert clock.eta(100) == "0m00s"
    line = console_line(
        7, 100, dict.fromkeys(("loss", "bits_per_dim", "ssim", "psnr", "grad_norm"), 0.5) | figures,
        ("ssim", "psnr"), "1h02m",
    )  # fmt: skip
    assert line.startswith(
        "step   7/100  loss 0.5  ssim 0.5  psnr 0.5  grad_norm 0.5"
    ) and line.endswith("eta 1h02m")


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorflow")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0, tensorboard=True)
    log.write(3, {"loss": np.float32(0.25), "kl_channel": np.arange(2.0)})
    log.picture(3, "eval", np.zeros((4, 4, 3), np.uint8))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert "loss" in tags["tensors"] + tags["scalars"]
    assert "eval" in [tag.split("/")[0] for tag in tags["tensors"] + tags["images"]]
