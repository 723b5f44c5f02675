"""The training step of an enhancer."""

import jax
import numpy as np
import pytest

from vae.checkpoints.loading import load_saved
from vae.configs import enhance256
from vae.data.errors import DataError
from vae.data.pipeline import open_dataset, train_batches
from vae.models.degradations import DEGRADATIONS
from vae.sharding import make_mesh, put_batch, tree_sharding
from vae.tasks import task_of
from vae.tasks.task import plain
from vae.training.initialization import check_same_run, state_from_variables
from vae.training.steps import make_train_step
from vae.training.train_state import abstract_state


@pytest.fixture(scope="module")
def dataset(small_data):
    return open_dataset(small_data)


@pytest.fixture(scope="module")
def config():
    config = enhance256.get_config("smoke")
    config.data.fit_tiles = 16
    config.mesh.fsdp_min_size = 1024
    config.batch_size = 16
    config.optimizer.name = "adam"  # compiles in half the time
    for name in set(DEGRADATIONS) - {"haze", "defocus", "noise"}:
        config.degrade[name] = 0.0  # compiles in a third of the time; test_pairs has all of them
    return config


@pytest.fixture
def sharpening(config):
    config = config.copy_and_resolve_references()
    config.train.stage = "sharpening"
    config.data.crop, config.data.scales, config.degrade.clean = 64, (1,), 0.0
    return config


def run(config, dataset, steps, mesh, tone=0.0):
    """Returns parameters before and after, and the last metrics; `tone`: offset of tone biases."""
    task = task_of(config)
    sharding = tree_sharding(abstract_state(task), mesh, config.mesh.fsdp_min_size)
    state = state_from_variables(task, task.variables(dataset, sharding.variables), sharding)
    bias = state.params["tone"]["whole_head"]["bias"]
    state.params["tone"]["whole_head"]["bias"] = jax.device_put(bias + tone, bias.sharding)
    before = jax.device_get(state.params)
    step = make_train_step(task, mesh, sharding)
    batches = train_batches(
        dataset, size=config.data.size, seed=0, batch_size=config.batch_size, context=True
    )
    for _ in range(steps):
        batch = next(batches)
        batch = {name: batch[name] for name in ("image", "thumbnail", "fov_circle")}
        state, metrics = step(state, put_batch(mesh, batch))
    return before, jax.device_get(state.params), jax.device_get(metrics)


def test_the_tone_stage_learns_alone_from_thumbnails(config, dataset):
    config = config.copy_and_resolve_references()
    config.train.stage, config.train.thumbnail_draws = "tone", 2
    before, after, metrics = run(config, dataset, 2, make_mesh(1, 1))
    assert np.isfinite(metrics["loss"]) and metrics["kl"] == 0
    for name in before:
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[name], after[name])
        assert (max(jax.tree.leaves(moved)) > 0) == (name == "tone"), name


def test_the_detail_stage_learns_alone(config, dataset):
    config = config.copy_and_resolve_references()
    config.train.stage = "detail"
    before, after, _ = run(config, dataset, 2, make_mesh(1, 1))
    for name in ("tone", "sharpening"):
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before["decoder"], after["decoder"])
    assert max(jax.tree.leaves(moved)) > 0


def test_sharpening_learns_alone(sharpening, dataset):
    before, after, metrics = run(sharpening, dataset, 2, make_mesh(1, 1))
    assert np.isfinite(metrics["loss"]) and metrics["kl"] == 0
    for name in before:
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[name], after[name])
        assert (max(jax.tree.leaves(moved)) > 0) == (name == "sharpening"), name


def test_sharpening_does_not_learn_errors_of_the_tone_stage(sharpening, dataset):
    """On unblurred input the stage learns no change, whatever the tone error."""
    sharpening.degrade.clean = 1.0
    task, mesh = task_of(sharpening), make_mesh(1, 1)
    variables = jax.jit(task.fresh_variables)()
    params = variables.pop("params")
    params["tone"]["whole_head"]["bias"] += 0.3
    rows, key = np.arange(16), jax.random.key(0)

    def error(params, batch):
        example = task.example(batch, rows, 0)
        return task.loss(params, variables, {}, example, rows, key)[1][0]["mse"]

    feed = task.feed(dataset, mesh, 0)
    # A PSNR of 120 dB, with values in [-1, 1].
    assert jax.jit(error)(params, feed.to_device(next(feed.batches), 0)) < 4e-12


@pytest.mark.soak
def test_sharpening_gets_the_output_of_the_tone_stage(sharpening, dataset):
    _, plain_after, _ = run(sharpening, dataset, 2, make_mesh(1, 1))
    before, after, _ = run(sharpening, dataset, 2, make_mesh(1, 1), tone=0.3)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain_after, after)
    assert max(jax.tree.leaves(moved["sharpening"])) > 1e-5
    jax.tree.map(np.testing.assert_array_equal, before["tone"], after["tone"])


def test_starts_from_the_bundled_autoencoder(capsys):
    config = enhance256.get_config()
    config.init_from = "f8c32"
    saved = load_saved("f8c32")
    variables = task_of(config).from_saved(saved)
    shapes = jax.tree.map(np.shape, variables["params"])
    assert shapes == jax.tree.map(np.shape, abstract_state(task_of(config)).params)
    kernel = saved.variables["params"]["encoder"]["stage0"]["block0"]["conv1"]["kernel"]
    there = variables["params"]["encoder"]["stage0"]["block0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(there, kernel)
    # Step 0 is the identity, so the autoencoder's last layer, which corrects a codec, is left out.
    assert not variables["params"]["decoder"]["head"]["kernel"].any()
    assert "'params/tone/whole_head/bias'" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"init_from=f8c32 is another model.*latent_channels': 16"):
        task_of(config).from_saved(load_saved("f8c16"))


def test_a_run_continues_only_with_its_own_model(config, tmp_path):
    model = plain(config.model)
    check_same_run({"model": model, "version": "1"}, {"model": model, "version": "2"}, tmp_path)
    with pytest.raises(DataError, match="use another --workdir"):
        check_same_run({"model": model}, {"model": model | {"tone_width": 3}}, tmp_path)


@pytest.mark.usefixtures("eight_devices")
def test_every_part_learns(config, dataset):
    before, after, metrics = run(config, dataset, 2, make_mesh(8, 1))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    # Once the heads are nonzero, all layers before them get gradients.
    for name in ("tone", "sharpening", "decoder", "encoder", "linear"):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[name], after[name])
        assert max(jax.tree.leaves(moved)) > 0, name


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.soak
def test_accumulation_and_sharding_give_the_same_parameters(config, dataset):
    config = config.copy_and_resolve_references()
    config.optimizer.name = "muon"
    _, after, metrics = run(config, dataset, 2, make_mesh(8, 1))
    parts = config.copy_and_resolve_references()
    parts.train.accumulate = 2
    _, same, others = run(parts, dataset, 2, make_mesh(1, 8))
    assert others["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    # Sums in another order, amplified by two steps of Muon's orthogonalisation.
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
