"""One CPU device, a shared compilation cache, and fixtures that are made once for all tests."""

import contextlib
import fcntl
import os
import pathlib
import shutil

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = ROOT / ".jax_cache"
# Subprocesses inherit these; they must be set before JAX is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Most of the time goes into compiling small programs that run a few times. Without LLVM's
# optimisation, MLIR fusions and parts for several threads this takes a third of the time. An empty
# XLA_FLAGS compiles as users do; CI does that for tests of seams.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
# There is one worker per core. With more threads, BLAS and OpenMP spin while they wait.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import jax  # noqa: E402
import jax.extend  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

threadpool_limits(1, "blas")  # a plugin of pytest may have loaded NumPy before


@pytest.fixture(scope="module")
def eight_devices():
    """Provides eight simulated CPU devices instead of one; earlier arrays become invalid."""
    _use_devices(8)
    yield
    _use_devices(1)


def _use_devices(count: int) -> None:
    jax.extend.backend.clear_backends()
    jax.config.update("jax_num_cpu_devices", count)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`with once(name) as (folder, made)`: a folder shared by xdist workers; the first fills it.

    The others wait. `made` is False if the folder has yet to be filled. Tests only read it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    @contextlib.contextmanager
    def shared(name: str):
        folder, done = root / name, root / f"{name}.done"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = done.exists()
            if not made:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            yield folder, made
            done.touch()

    return shared


@pytest.fixture(scope="session")
def tiny_tiles(once) -> pathlib.Path:
    """Tiles of 32 pixels from eight synthetic photographs, cut by make_tiles."""
    from vae.data.demo import synthetic_tiles

    with once("tiny") as (folder, _):
        return synthetic_tiles(folder, tile=32)


@pytest.fixture(scope="session")
def tiny_data(tiny_tiles, once) -> pathlib.Path:
    """A dataset built from `tiny_tiles`."""
    from vae.data.fundus_tiles.build import build

    with once("tiny_data") as (folder, made):
        if not made:
            build(tiny_tiles, folder, report=lambda line: None)
    return folder


@pytest.fixture(scope="session")
def small_data(once) -> pathlib.Path:
    """A built dataset of 64-pixel tiles, like the one that the smoke presets make."""
    from vae.data.demo import prepare

    with once("small_data") as (folder, _):
        return pathlib.Path(prepare("synthetic", folder, 64))


@pytest.fixture
def tiny_config(tiny_data):
    """A config of the smallest model on the tiny dataset."""
    from vae.configs.fundus256 import get_config

    config = get_config("smoke")
    config.data.source = ""
    config.data.dir = str(tiny_data)
    config.data.size = 32
    config.data.crop = 16
    config.data.fit_tiles = 64
    config.train.tensorboard = False
    config.optimizer.name = "adam"  # compiles in half the time
    return config


@pytest.fixture(scope="session")
def finished(tiny_data, once):
    """Returns (config, workdir) of an undisturbed run of 8 steps, with checkpoints at 0, 4, 8."""
    from vae.configs.fundus256 import get_config

    config = get_config("smoke")
    config.data.update(dir=str(tiny_data), source="", size=32, crop=16, fit_tiles=64)
    config.train.update(tensorboard=False, log_every=1, checkpoint_every=4, steps=8)
    config.eval.every = 4
    config.optimizer.name = "adam"  # compiles in half the time
    from vae.training.train import train

    with once("finished") as (workdir, made):
        if not made:
            train(config, workdir)
    return config, workdir


@pytest.fixture(scope="session")
def vector_model(once):
    """An exported, untrained FundusVAE with one vector per 32-pixel tile."""
    from vae.checkpoints.modules import initial_variables
    from vae.checkpoints.safetensors_io import SavedModel, write_safetensors
    from vae.configs.published import get_config

    with once("vector") as (folder, made):
        path = folder / "vector.safetensors"
        if not made:
            config = get_config("tiny")
            size = config.model.latent_size
            variables = jax.jit(lambda: initial_variables(config))()
            statistics = np.zeros(size), np.ones(size)
            write_safetensors(
                path, SavedModel(path, config, 7, variables, *statistics, provenance={})
            )
    return path


@pytest.fixture
def reseal():
    """A function that writes the checksums of a dataset anew, after a test has changed its files.

    Arguments: the folder of the shards, and new values of the metadata.
    """
    import json

    from vae.data import dataset, records, schema

    def reseal(folder, **changes):
        metadata = json.loads((folder / "metadata.json").read_text()) | changes
        del metadata["crc"]
        info = json.loads((folder / "dataset_info.json").read_text())
        suffix = info.get("fileFormat", "tfrecord")
        metadata["shards"] = {}
        for split in info["splits"]:
            for path in sorted(folder.glob(f"fundus_tiles-{split['name']}.{suffix}-*")):
                if split["shardLengths"]:
                    metadata["shards"][path.name] = records.index_hash(records.read_index(path))
        metadata["files"] = {name: dataset.file_hash(folder / name) for name in metadata["files"]}
        (folder / "metadata.json").write_text(json.dumps(schema.sealed(metadata)))

    return reseal
