"""Impossible settings are refused with a message that gives the conflicting values."""

import json
import pathlib

import pytest

from vae.checkpoints.config import from_dict
from vae.configs import enhance256, fundus256, prior256, published
from vae.configs.fundus256 import PRESETS, get_config
from vae.data.errors import UsageError
from vae.tasks import task_of
from vae.training.train_state import abstract_state
from vae.training.validation import validate


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_validate_and_shape_evaluate(preset):
    config = get_config(preset)
    validate(config, device_count=1)
    state = abstract_state(task_of(config))
    assert state.params["linear"]["analysis"].shape == (
        *(config.model.linear_kernel,) * 2,
        3 * config.model.downsample**2,
        config.model.latent_channels,
    )


def test_default_preset_is_f8c32():
    assert get_config().model.latent_channels == 32


def test_unknown_preset():
    with pytest.raises(UsageError, match="fundus256.py:f8c5 is no preset; there are f8c4"):
        get_config("f8c5")


CASES = [
    ("batch_size", 12, 8, r"batch_size / train.accumulate = 12 is not divisible by the 8 devices"),
    ("data.crop", 300, 1, r"data.crop=300 must be a multiple of model.downsample=8"),
    ("data.crop", 512, 1, r"data.crop=512 is larger than data.size=256"),
    ("data.scales", (1, 4), 1, r"data.crop=128 at data.scales=\(1, 4\) is cut from 512 pixels"),
    ("data.scales", (0,), 1, r"data.scales=\(0,\) must be positive whole numbers"),
    ("data.scales", (), 1, r"data.scales=\(\) must be positive whole numbers"),
    ("data.balance", 1.5, 1, r"data.balance=1.5 must lie in \[0, 1\]"),
    ("cameras.grain", -0.5, 1, r"cameras.grain=-0.5 must lie in \[0, 1\]"),
    ("optimizer.init_from_factor", 0.0, 1, r"init_from_factor=0.0 must be positive"),
    ("data.size", 8, 1, r"data.size=8 must be .* at least 11"),
    ("model.downsample", 16, 1, r"model.downsample=16 needs one depth .* encoder_depth=\(1, 2\)"),
    ("model.latent_channels", 200, 1, r"latent_channels=200 is more than the 192 values"),
    ("model.linear_kernel", 2, 1, r"model.linear_kernel=2 must be odd"),
    ("model.linear_kernel", 33, 1, r"fit into data.size=256"),
    ("model.linear_kernel", 7, 1, r"over 9408 values, and the fit takes at most 5000"),
    ("optimizer.name", "sgd", 1, r"optimizer.name='sgd' is none of 'adam', 'muon'"),
    ("train.accumulate", 7, 1, r"batch_size=256 is not divisible by train.accumulate=7"),
    ("train.compute_dtype", "float8", 1, r"train.compute_dtype='float8' is none of 'float32'"),
    ("loss.likelihood", "cauchy", 1, r"'cauchy' is none of 'gaussian', 'laplace'"),
    ("loss.beta", -1.0, 1, r"loss.beta=-1.0 must not be negative"),
    ("train.ema_decay", 1.0, 1, r"train.ema_decay=1.0 must lie in \[0, 1\)"),
    ("train.steps", 0, 1, r"train.steps=0 must be positive"),
    ("mesh.fsdp", 3, 8, r"mesh.fsdp=3 does not divide the 8 devices"),
    ("mesh.data", 3, 8, r"mesh.data=3 x mesh.fsdp=1 is not the 8 devices"),
    ("eval.batch_size", 12, 8, r"eval.batch_size = 12 is not divisible by the 8 devices"),
    ("seed", -1, 1, r"seed=-1 must lie in \[0, 2\^32\)"),
    ("model.encoder_depth", (-1, 2), 1, r"encoder_depth=\(-1, 2\) must be positive"),
    ("data.source", "moon", 1, r"data.source='moon' is none of"),
    ("data.cache_dir", "cache", 1, r"data.cache_dir='cache' is where data.dir is copied to"),
    ("data.cache_dir", "gs://cache", 1, r"data.cache_dir='gs://cache' must be a local folder"),
]


@pytest.mark.parametrize(("key", "value", "devices", "message"), CASES)
def test_impossible_values(key, value, devices, message):
    config = get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UsageError, match=message):
        validate(config, devices)


def test_all_problems_at_once():
    config = get_config()
    config.batch_size, config.train.steps = -1, 0
    with pytest.raises(UsageError, match=r"batch_size=-1 .*; train.steps=0"):
        validate(config, 1)


def test_unknown_keys_and_wrong_types():
    config = get_config()
    with config.unlocked(), config.ignore_type():
        config.train.stepz = 5
        config.train.steps = "many"
    with pytest.raises(UsageError, match=r"unknown key train.stepz.*train.steps='many' is str"):
        validate(config, 1)


def test_stored_configs_have_the_settings_of_their_file():
    stored = json.loads(json.dumps(get_config("demo").to_dict()))
    assert from_dict(stored) == get_config("demo")
    for change, message in (
        ({"train": {**stored["train"], "views": 0}}, "unknown key train.views"),
        ({"loss": {"beta": 1.0}}, "loss.likelihood is missing"),
        ({"model": {**stored["model"], "architecture": "gan"}}, "'gan' is none of"),
    ):
        with pytest.raises(ValueError, match=message):
            from_dict(stored | change)


@pytest.mark.parametrize("file", [fundus256, published, enhance256, prior256])
def test_every_setting_of_a_config_file_has_a_line_of_its_own(file):
    """A config file shows every setting without the code."""
    lines = pathlib.Path(file.__file__).read_text().splitlines()
    settings = [line.split("=")[0].strip() for line in lines if line.startswith("    config.")]
    keys = file.get_config().to_dict()
    for group, value in keys.items():
        for name in value if isinstance(value, dict) else ():
            assert settings.count(f"config.{group}.{name}") == 1
        assert settings.count(f"config.{group}") == 1


def test_both_kinds_of_data():
    config = get_config("smoke")
    config.data.dir = "somewhere"
    with pytest.raises(UsageError, match="'somewhere' and data.source='synthetic' exclude"):
        validate(config, 1)
