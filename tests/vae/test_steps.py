"""The sharded step: the same losses on every mesh, accumulation, EMA, freezing, randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from vae.checkpoints.modules import initial_variables, make_model
from vae.configs.fundus256 import get_config
from vae.data.pipeline import first_tiles, open_dataset
from vae.data.synthetic import fundus_photograph
from vae.metrics import to_float
from vae.models.augment import augment, shrink
from vae.sharding import local_rows, make_mesh, partition, put_batch, tree_sharding
from vae.tasks import task_of
from vae.tasks.linear_initialization import fit_linear
from vae.tasks.randomness import step_key
from vae.training.optimizer import learning_rate_schedule
from vae.training.steps import make_train_step
from vae.training.train_state import abstract_state, initial_state

pytestmark = pytest.mark.usefixtures("eight_devices")

STEPS, RATE = 5, 1e-3
# The loss sums terms of order one; float32 sums in another order change it by 1e-6 per step.
LOSS_TOLERANCE = STEPS * 1e-6


@pytest.fixture(scope="module")
def batches():
    photograph = fundus_photograph(1, 256)
    rng = np.random.default_rng(0)
    origins = rng.integers(40, 180, (STEPS, 8, 2))
    return np.stack([[photograph[y : y + 32, x : x + 32] for y, x in step] for step in origins])


def fresh_state(config, tiles, fits={}):  # noqa: B006  (all configs here have one fit)
    key = tiles.tobytes()
    if key not in fits:
        fits[key] = fit_linear(config, lambda: [tiles])
    return initial_state(task_of(config), initial_variables(config, fits[key]))


def perturbed(params):
    """Makes all parameters nonzero; the linear path (sums of 1,728 values) remains a codec."""
    rng = np.random.default_rng(1)

    def move(path, leaf):
        deviation = 0.002 if path[0].key == "linear" else 0.02
        return leaf + jnp.asarray(rng.normal(0, deviation, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(move, params)


def run(config, batches, mesh_shape=(1, 1), perturb=True):
    """Returns (losses [STEPS], state) of a run; with `perturb`, no initial parameter is zero."""
    devices = np.array(jax.devices()[: np.prod(mesh_shape)]).reshape(mesh_shape)
    mesh = Mesh(devices, ("data", "fsdp"))
    sharding = tree_sharding(abstract_state(task_of(config)), mesh, config.mesh.fsdp_min_size)
    state = fresh_state(config, batches[0])
    if perturb:
        moved = perturbed(state.params)
        state = state.replace(params=moved, ema_params=jax.tree.map(jnp.copy, moved))
    state = jax.device_put(state, sharding)
    step = make_train_step(task_of(config), mesh, sharding)
    losses = []
    for batch in batches:
        state, metrics = step(state, put_batch(mesh, {"image": batch})["image"])
        losses.append(float(metrics["loss"]))
    return np.array(losses), state, metrics


@pytest.fixture
def config(tiny_config):
    tiny_config.mesh.fsdp_min_size = 16
    tiny_config.optimizer.update(name="muon", learning_rate=RATE)
    return tiny_config


@pytest.fixture(scope="module")
def single(batches, request):
    """The reference run on one device."""
    return {}


def reference(single, config, batches):
    if not single:
        single["run"] = run(config, batches)
    return single["run"]


@pytest.mark.parametrize(
    "shape", [(4, 2), *(pytest.param(s, marks=pytest.mark.soak) for s in [(8, 1), (1, 8)])]
)
def test_same_losses_on_every_mesh(config, batches, single, shape):
    losses, state, _ = run(config, batches, shape)
    expected, expected_state, _ = reference(single, config, batches)
    assert len(set(expected)) == STEPS
    np.testing.assert_allclose(losses, expected, rtol=0, atol=LOSS_TOLERANCE)
    if shape[1] > 1:
        leaves = jax.tree.leaves(state.params)
        assert any(not leaf.sharding.is_fully_replicated for leaf in leaves)
    # Adam divides by the root of the second moment: where a gradient is only rounding, a step of
    # the size of the rate can have either sign. The difference is at most rate times steps.
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2 * STEPS * RATE)


def test_accumulation_changes_nothing(config, batches, single):
    config.train.accumulate = 4
    losses, _, _ = run(config, batches, (2, 1))
    expected = reference(single, config, batches)[0]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=LOSS_TOLERANCE)


def test_every_parameter_moves_and_no_path_is_dead(config, batches, single):
    start = fresh_state(config, batches[0]).params
    _, state, metrics = reference(single, config, batches)
    begun = perturbed(start)
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(state.params)[0], jax.tree.leaves(begun), strict=True
    ):
        assert np.abs(a - b).max() > 0, jax.tree_util.keystr(path)
    assert int(state.step) == STEPS
    assert metrics["kl_channel"].shape == (8,)
    assert 0 <= int(metrics["active_units"]) <= 8


def test_frozen_linear_path(config, batches):
    config.optimizer.update(name="adam", linear_multiplier=0.0)
    _, state, _ = run(config, batches, perturb=False)
    _, overlapping = fit_linear(config, lambda: [batches[0]])
    np.testing.assert_array_equal(state.params["linear"]["analysis"], overlapping.analysis)
    assert np.abs(state.params["encoder"]["head"]["kernel"]).max() > 0


def test_muon_steps_are_orthogonal(config, batches):
    """Singular values of a kernel's update differ by at most a factor of two.

    Five Newton-Schulz steps bring them into [0.7, 1.2] (Jordan, 2024); those of Adam's updates
    spread over orders of magnitude.
    """
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 0
    start = fresh_state(config, batches[0]).params
    _, state, _ = run(config, batches[:1], perturb=False)
    moved = state.params["encoder"]["head"]["kernel"] - start["encoder"]["head"]["kernel"]
    singular = np.linalg.svd(moved, compute_uv=False)
    assert singular[0] < 2 * singular[-1]


def test_ema_follows_its_rule(config, batches):
    """The decay is min(d, (1 + t) / (10 + t)), starting with a copy of the parameters."""
    config.optimizer.name = "adam"
    config.train.ema_decay = 0.15
    one, many = batches[:1], batches[:2]
    start = fresh_state(config, batches[0]).params
    first, second = run(config, one, perturb=False)[1], run(config, many, perturb=False)[1]
    name = ("encoder", "head", "kernel")
    get = lambda tree: np.asarray(tree[name[0]][name[1]][name[2]])  # noqa: E731
    ema = get(start)
    for t, params in enumerate((first.params, second.params)):
        decay = min(0.15, (1 + t) / (10 + t))
        ema = decay * ema + (1 - decay) * get(params)
    np.testing.assert_allclose(get(second.ema_params), ema, rtol=1e-5, atol=1e-8)


def test_start_does_not_fall_below_pca(config, tiny_data):
    """After 20 steps of the usual rate the mean reconstruction is no worse than PCA - 0.05 dB."""
    tiles = np.concatenate(list(first_tiles(open_dataset(tiny_data), size=32, seed=0)))
    config.data.crop = 32
    config.optimizer.learning_rate = get_config().optimizer.learning_rate
    config.optimizer.update(name="adam", warmup_steps=5)
    pca, _ = fit_linear(config, lambda: [tiles])
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    sharding = tree_sharding(abstract_state(task_of(config)), mesh, config.mesh.fsdp_min_size)
    state = jax.device_put(fresh_state(config, tiles), sharding)
    step = make_train_step(task_of(config), mesh, sharding)
    for i in range(20):
        rows = np.arange(8 * i, 8 * i + 8) % len(tiles)
        state, _ = step(state, put_batch(mesh, {"image": tiles[rows]})["image"])
    x = to_float(tiles)
    decoded = make_model(config).apply(state.variables, x)
    error, pca_error = (
        np.mean(np.square(y - x)) for y in (decoded, pca.decode(pca.encode(x).mean))
    )
    assert 10 * np.log10(pca_error / error) > -0.05


def test_state_is_donated(config, batches):
    _, state, _ = run(config, batches[:1])
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    sharding = tree_sharding(abstract_state(task_of(config)), mesh, 16)
    kept = state.params["encoder"]["head"]["kernel"]
    make_train_step(task_of(config), mesh, sharding)(
        state, put_batch(mesh, {"image": batches[1]})["image"]
    )
    assert kept.is_deleted()


def test_streams_are_independent():
    keys = [step_key(0, duty, step) for duty in ("posterior", "augment") for step in (0, 1)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4


def test_augmentation_is_a_symmetry_of_a_crop():
    images = np.arange(4 * 12 * 12 * 3, dtype=np.uint8).reshape(4, 12, 12, 3)
    key, rows = jax.random.key(0), jnp.arange(4)
    seen = set()
    for i in range(40):
        out = np.asarray(augment(images, jax.random.fold_in(key, i), rows, 12, True))
        symmetries = [
            np.rot90(a, k) for a in (images[0], images[0].swapaxes(0, 1)) for k in range(4)
        ]
        match = [n for n, s in enumerate(symmetries) if np.array_equal(s, out[0])]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) == 8  # 40 draws miss one of eight with probability 0.04; the seed is fixed
    crop = np.asarray(augment(images, key, rows, 8, False))[2]
    windows = [images[2, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    assert any(np.array_equal(crop, window) for window in windows)
    part = augment(images[2:3], key, rows[2:3], 8, False)[0]
    np.testing.assert_array_equal(part, crop)


def test_the_linear_fit_sees_every_scale(config):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 64, 72, 3), np.uint8).cumsum(axis=2, dtype=np.uint8)
    config.data.scales = (1, 2, 2)
    fit = fit_linear(config, lambda: [tiles])
    config.data.scales = (1,)
    again = fit_linear(config, lambda: [shrink(tiles[:, :, :64], 2), tiles])
    for a, b in zip(jax.tree.leaves(fit), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_scales_are_means_of_windows_with_the_configured_frequencies():
    images = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3), np.uint8)
    windows = {
        scale: {
            shrink(images[0, y : y + 4 * scale, x : x + 4 * scale], scale).tobytes()
            for y in range(13 - 4 * scale)
            for x in range(13 - 4 * scale)
        }
        for scale in (1, 2)
    }
    counts = dict.fromkeys(windows, 0)
    rows = jnp.arange(300)
    for out in np.asarray(
        augment(np.repeat(images, 300, axis=0), jax.random.key(0), rows, 4, False, (1, 2, 2))
    ):
        (scale,) = [scale for scale, found in windows.items() if out.tobytes() in found]
        counts[scale] += 1
    # 200 of 300 are expected, with a standard deviation of 8.
    assert 170 < counts[2] < 230


def test_shrinking_takes_means_and_rounds():
    image = np.array([[0, 1, 255, 255], [1, 0, 255, 254]], np.uint8)[..., None]
    for array in (image, jnp.asarray(image)):
        np.testing.assert_array_equal(np.asarray(shrink(array, 2))[..., 0], [[1, 255]])


def test_shrinking_is_the_same_inside_a_program():
    """Regression: jitted casts to integers rounded instead of truncating."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jitted = jax.jit(lambda array: shrink(array, 2))(image)
    np.testing.assert_array_equal(jitted, shrink(image, 2))
    exact = image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(jitted) - exact).max() <= 0.5


def test_partition_rules():
    assert partition("params/a/kernel", (3, 3, 64, 128), 8, 1) == PartitionSpec(
        None, None, None, "fsdp"
    )
    assert partition("opt_state/1/mu/a/kernel", (2048, 64), 4, 1) == PartitionSpec("fsdp")
    assert partition("params/a/kernel", (64, 64), 8, 2**16) == PartitionSpec()
    assert partition("fixed/pca/fit/components", (192, 32), 8, 1) == PartitionSpec()
    assert partition("params/a/kernel", (3, 7), 2, 1) == PartitionSpec()


def test_local_rows_and_mesh():
    mesh = make_mesh(-1, 2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    np.testing.assert_array_equal(local_rows(mesh, 16), np.arange(16))


def test_schedule(config):
    config.optimizer.warmup_steps, config.train.steps = 10, 110
    rate = learning_rate_schedule(config)
    assert float(rate(0)) == pytest.approx(1e-4)
    assert float(rate(10)) == pytest.approx(1e-3)
    assert float(rate(60)) == pytest.approx(5e-4)
    assert float(rate(110)) == pytest.approx(0, abs=1e-9)
    config.init_from, config.optimizer.init_from_factor = "f8c32", 0.1
    assert float(learning_rate_schedule(config)(60)) == pytest.approx(5e-5)
    config.init_from = ""
    config.optimizer.schedule = "constant"
    assert float(learning_rate_schedule(config)(90)) == pytest.approx(1e-3)
