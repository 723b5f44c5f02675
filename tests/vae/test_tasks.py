"""The training loop trains a product that it does not know."""

import json

import numpy as np
import pytest
import smallest_task

from vae.data.errors import UsageError
from vae.tasks import task_of
from vae.training.train import evaluate_workdir, train


@pytest.fixture
def config(tiny_data):
    config = smallest_task.get_config()
    config.data.update(dir=str(tiny_data), source="", size=32, crop=16, fit_tiles=64)
    config.train.update(tensorboard=False, log_every=1, checkpoint_every=2, steps=4)
    config.optimizer.update(learning_rate=0.05, schedule="constant", warmup_steps=0)
    config.eval.every = 2
    return config


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_a_fourth_product_trains_and_continues(config, tmp_path, capsys):
    train(config, tmp_path / "whole")
    whole = losses(tmp_path / "whole")
    assert len(whole) == 4 and whole[-1] < whole[0]
    report = capsys.readouterr().out.splitlines()[-1]
    assert "colour -0." in report
    evaluate_workdir(config, tmp_path / "whole")
    assert capsys.readouterr().out.splitlines()[-1] == report
    config.train.steps = 2
    train(config, tmp_path / "parts")
    config.train.steps = 4
    train(config, tmp_path / "parts")
    # Bit for bit the same.
    np.testing.assert_array_equal(losses(tmp_path / "parts"), whole)


def test_its_own_settings_are_checked(config, tmp_path):
    config.model.channels = 4
    with pytest.raises(UsageError, match=r"model\.channels must be 3"):
        train(config, tmp_path / "run")
    config.model = {"channels": 3, "chanels": 3}
    with pytest.raises(UsageError, match=r"unknown key model\.chanels"):
        train(config, tmp_path / "run")


def test_a_module_that_is_no_task_is_named(config):
    config.task = "vae.tasks.nothing"
    with pytest.raises(UsageError, match=r"task='vae\.tasks\.nothing' is no module with a TASK"):
        task_of(config)
