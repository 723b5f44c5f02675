"""Eight simulated CPU devices, a shared compilation cache, and a tiny built dataset."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = ROOT / ".jax_cache"
# Subprocesses inherit these; they must be set before JAX is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# Most of the time goes into compiling small programs that run a few times: LLVM leaves them as XLA
# wrote them. An empty XLA_FLAGS has them optimised as users' are; CI does that where seams matter.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tiny_tiles(tmp_path_factory) -> pathlib.Path:
    """Tiles of 32 pixels from eight synthetic photographs, cut by make_tiles."""
    from vae.data.demo import synthetic_tiles

    return synthetic_tiles(tmp_path_factory.mktemp("tiny"), tile=32)


@pytest.fixture(scope="session")
def tiny_data(tiny_tiles, tmp_path_factory) -> pathlib.Path:
    """The same tiles, built."""
    from vae.data.fundus_tiles.build import build

    data_dir = tmp_path_factory.mktemp("tiny_data")
    build(tiny_tiles, data_dir, report=lambda line: None)
    return data_dir


@pytest.fixture
def tiny_config(tiny_data):
    """A config of the smallest model on the tiny dataset, for eight devices."""
    from vae.configs.fundus256 import get_config

    config = get_config("smoke")
    config.data.source = ""
    config.data.dir = str(tiny_data)
    config.data.size = 32
    config.data.crop = 16
    config.data.fit_tiles = 64
    config.train.tensorboard = False
    return config


@pytest.fixture(scope="session")
def finished(tiny_data, tmp_path_factory):
    """An undisturbed run of 8 steps with checkpoints at 0, 4 and 8 -> (config, workdir)."""
    from vae.configs.fundus256 import get_config

    config = get_config("smoke")
    config.data.update(dir=str(tiny_data), source="", size=32, crop=16, fit_tiles=64)
    config.train.update(tensorboard=False, log_every=1, checkpoint_every=4, steps=8)
    config.eval.every = 4
    from vae.training.train import train

    workdir = tmp_path_factory.mktemp("finished")
    train(config, workdir)
    return config, workdir


@pytest.fixture(scope="session")
def vector_model(tmp_path_factory):
    """An exported FundusVAE with one vector a tile of 32 pixels, not trained."""
    from vae.checkpoints.exported import SavedModel, write_exported
    from vae.checkpoints.modules import initial_variables
    from vae.configs.published import get_config

    config = get_config("tiny")
    size = config.model.latent_size
    path = tmp_path_factory.mktemp("vector") / "vector.safetensors"
    variables = jax.jit(lambda: initial_variables(config))()
    statistics = np.zeros(size), np.ones(size)
    write_exported(path, SavedModel(path, config, 7, variables, *statistics, provenance={}))
    return path
