"""The prior: network, objective, training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.checkpoints.loading import load_saved
from vae.configs import prior256
from vae.data.errors import DataError, UsageError
from vae.data.pipeline import open_dataset, train_batches
from vae.models import LatentFlow, Posterior
from vae.models.prior import deviations
from vae.models.spectrum import Spectrum
from vae.sharding import make_mesh, put_batch, tree_sharding
from vae.tasks import task_of
from vae.tasks.flow import flow_loss, label_numbers, make_encoder
from vae.tasks.prior_initialization import for_latents, load_autoencoder
from vae.training.initialization import state_from_variables
from vae.training.steps import make_train_step
from vae.training.train import train
from vae.training.train_state import abstract_state

SIDE, CHANNELS = 8, 4


@pytest.fixture(scope="module")
def dataset(small_data):
    return open_dataset(small_data)


def perturbed(variables, seed=0, scale=0.1):
    """Perturbs the zero-initialised parameters, so that the output depends on all inputs."""
    leaves, tree = jax.tree.flatten(variables["params"])
    rng = np.random.default_rng(seed)
    moved = [leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return {**variables, "params": jax.tree.unflatten(tree, moved)}


@pytest.fixture(scope="module")
def flow():
    model = LatentFlow(CHANNELS, SIDE, (8, 16), (1, 1), 2, ("left", "right"))
    x = jnp.zeros((1, SIDE, SIDE, CHANNELS))
    variables = jax.jit(model.init)(jax.random.key(0), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))
    return model, variables


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_starts_as_the_best_gaussian(flow):
    model, variables = flow
    x, t = normal(3, SIDE, SIDE, CHANNELS), np.array([0.1, 0.5, 0.9], np.float32)
    apply = jax.jit(functools.partial(model.apply, method="velocity"))
    velocity = apply(variables, x, t, np.zeros(3, np.int32))
    # Cov(s w - e, x_t) / Var(x_t) for x_t = (1 - t) e + t s w with standard normal e and w.
    t, s = t[:, None, None, None], deviations(SIDE)
    slope = (t * s**2 - (1 - t)) / ((1 - t) ** 2 + (t * s) ** 2)
    np.testing.assert_allclose(velocity, slope * x, rtol=1e-5, atol=1e-6)


def test_error_of_a_gaussian_is_one(flow):
    model, variables = flow
    shape = (64, SIDE, SIDE, CHANNELS)
    t = np.random.default_rng(3).uniform(size=64).astype(np.float32)
    apply = jax.jit(functools.partial(model.apply, method="errors"))
    nobody = np.zeros(64, np.int32)
    errors, seen = apply(variables, normal(*shape), normal(*shape, seed=1), t, nobody)
    # The standard error of the mean of 16,384 independent squares is 1.1%.
    assert float(jnp.square(errors).mean()) == pytest.approx(1, abs=0.05)
    assert float(jnp.square(seen).mean()) == pytest.approx(1, abs=0.05)


def test_errors_match_the_velocity(flow):
    model, variables = flow
    variables = perturbed(variables)
    latents, noise = normal(2, SIDE, SIDE, CHANNELS), normal(2, SIDE, SIDE, CHANNELS, seed=1)
    t, label = np.array([0.3, 0.8], np.float32), np.array([1, 2], np.int32)
    apply = lambda method: jax.jit(functools.partial(model.apply, method=method))  # noqa: E731
    errors, _ = apply("errors")(variables, latents, noise, t, label)
    goal = model.apply(variables, latents, method="whiten")
    s, t_ = deviations(SIDE), t[:, None, None, None]
    x = (1 - t_) * noise + t_ * goal
    velocity = apply("velocity")(variables, x, t, label)
    unit = s / np.sqrt((1 - t_) ** 2 + (t_ * s) ** 2)
    np.testing.assert_allclose(errors, (velocity - (goal - noise)) / unit, atol=2e-4)


def test_velocity_depends_on_all_inputs(flow):
    """The velocity depends on x at all positions, on the time, and on the label."""
    model, variables = flow
    variables = perturbed(variables)
    x, half, none = normal(1, SIDE, SIDE, CHANNELS), np.full(1, 0.5, np.float32), np.zeros(1, int)
    apply = jax.jit(functools.partial(model.apply, variables, method="velocity"))
    base = apply(x, half, none)
    far = x.copy()
    far[0, 0, 0, 0] += 1
    assert float(jnp.abs(apply(far, half, none) - base)[0, -1, -1].max()) > 1e-6
    assert float(jnp.abs(apply(x, half + 0.1, none) - base).max()) > 1e-3
    assert float(jnp.abs(apply(x, half, none + 1) - base).max()) > 1e-3
    np.testing.assert_array_equal(apply(x, half, none), base)


def test_levels_must_fit():
    with pytest.raises(ValueError, match="divisible by 4"):
        LatentFlow(4, 6, (8, 8, 8), (1, 1, 1)).init(
            jax.random.key(0), jnp.zeros((1, 6, 6, 4)), jnp.zeros(1), jnp.zeros(1, int)
        )


def test_loss_does_not_depend_on_the_division_into_batches(flow):
    """Random draws depend on the index of the row only."""
    model, variables = flow
    config = prior256.get_config("smoke")
    loss = jax.jit(flow_loss(config, model))
    fixed, params = {"spectrum": variables["spectrum"]}, perturbed(variables)["params"]
    example = {
        "mean": normal(4, SIDE, SIDE, CHANNELS),
        "log_var": normal(4, SIDE, SIDE, CHANNELS, seed=1) - 3,
        "label": np.array([0, 1, 2, 1], np.int32),
    }
    key, rows = jax.random.key(5), np.arange(4)
    whole, (metrics, _) = loss(params, fixed, {}, example, rows, key)
    halves = [
        loss(params, fixed, {}, jax.tree.map(lambda a, c=cut: a[c], example), rows[cut], key)[0]
        for cut in (slice(0, 2), slice(2, 4))
    ]
    assert float(whole) == pytest.approx(float(sum(halves)) / 2, rel=1e-5)
    assert metrics["loss_octave"].shape == (len(model.widths) + 1,)


def test_labels_that_are_never_dropped(flow):
    """With label_dropout=1 only labels in `always_labelled` are kept."""
    model, variables = flow
    fixed, params = {"spectrum": variables["spectrum"]}, perturbed(variables)["params"]
    latents = {"mean": normal(1, SIDE, SIDE, CHANNELS), "log_var": np.zeros((1, *[SIDE] * 2, 4))}

    def losses(dropout, labels):
        config = prior256.get_config("smoke")
        config.prior.update(label_dropout=dropout, always_labelled=("right",))
        loss, rows, key = jax.jit(flow_loss(config, model)), np.arange(1), jax.random.key(5)
        examples = (latents | {"label": np.array([label], np.int32)} for label in labels)
        return [float(loss(params, fixed, {}, example, rows, key)[0]) for example in examples]

    nameless, left, right = losses(0.0, (0, 1, 2))
    assert len({nameless, left, right}) == 3
    assert losses(1.0, (1, 2)) == [nameless, right]


def test_label_numbers_count_from_one():
    found = label_numbers(np.array(["right", "left", "other"]), ("left", "right"))
    np.testing.assert_array_equal(found, [2, 1, 0])


def test_starts_from_a_prior_of_other_labels(capsys):
    config, saved = prior256.get_config(), load_saved("prior")
    config.model = saved.config.model.copy_and_resolve_references()
    same = task_of(config).from_saved(saved)["params"]["label"]["embedding"]
    np.testing.assert_array_equal(same, saved.variables["params"]["label"]["embedding"])
    config.model.labels = ("hrf", "disc", "chase_db1")
    assert task_of(config).from_saved(saved)["params"]["label"]["embedding"].shape[0] == 4
    assert "start fresh: ['params/label/embedding']" in capsys.readouterr().out
    config.model.depths = (1, 1, 1, 1)
    with pytest.raises(DataError, match="is another model"):
        task_of(config).from_saved(saved)


def test_config_is_filled_in(dataset):
    config = prior256.get_config("smoke")
    filled = for_latents(config, load_saved("f8c8"), dataset)
    assert (filled.model.latent_channels, filled.model.latent_side) == (8, 8)
    assert filled.model.labels == ("synthetic",) and config.model.labels == ()
    config.prior.conditional = False
    assert for_latents(config, load_saved("f8c8"), dataset).model.labels == ()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data.crop": 60}, "multiple of 2"),
        # The coarsest level would have no frequency, and the loss would be NaN.
        ({"data.crop": 16}, "latents of 2 positions .* at least 4"),
        ({"model.labels": ("a",), "prior.conditional": False}, "drop one"),
        ({"model.labels": tuple(map(str, range(1001)))}, "1001 labels"),
        ({"prior.always_labelled": ("disc",)}, r"always_labelled has \['disc'\]"),
    ],
)
def test_impossible_settings_are_refused(dataset, change, message):
    config = prior256.get_config("smoke")
    config.update_from_flattened_dict(change)
    with pytest.raises(UsageError, match=message):
        for_latents(config, load_saved("f8c4"), dataset)


def test_vector_models_are_refused(vector_model):
    config = prior256.get_config("smoke")
    config.prior.autoencoder = str(vector_model)
    with pytest.raises(DataError, match="published"):
        load_autoencoder(config)


def steps(dataset, mesh, count, accumulate=1):
    config = prior256.get_config("smoke")
    config.train.accumulate = accumulate
    config.optimizer.name = "adam"  # compiles in half the time
    config.batch_size = 16
    config.mesh.fsdp_min_size = 1024
    task = task_of(config)
    task.open(dataset)
    sharding = tree_sharding(abstract_state(task), mesh, config.mesh.fsdp_min_size)
    state = state_from_variables(task, task.variables(dataset, sharding.variables), sharding)
    before = jax.device_get(state.params)
    step, feed = make_train_step(task, mesh, sharding), task.feed(dataset, mesh, 0)
    for number in range(count):
        state, metrics = step(state, feed.to_device(next(feed.batches), number))
    return before, jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """Runs a minimal training without evaluation; returns its workdir."""
    workdir = tmp_path_factory.mktemp("prior")
    return short_run(dataset, workdir, 4)


def short_run(dataset, workdir, count):
    config = prior256.get_config("smoke")
    config.data.update(source="", dir=str(dataset.path))
    config.train.update(tensorboard=False, log_every=1, checkpoint_every=2)
    config.eval.every = 0
    config.optimizer.update(name="adam", schedule="constant", warmup_steps=0)
    config.train.steps = count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae.tasks.prior.Prior.report", lambda *_: None)
        train(config, workdir)
    return workdir


def test_run_continues_bit_for_bit(run, dataset, tmp_path):
    short_run(dataset, tmp_path, 2)
    short_run(dataset, tmp_path, 4)
    one, two = load_saved(run), load_saved(tmp_path)
    assert one.step == two.step == 4
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(two.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_run_refuses_another_autoencoder(run, dataset):
    config = prior256.get_config("smoke")
    config.data.update(source="", dir=str(dataset.path))
    config.train.tensorboard = False
    config.prior.autoencoder = "f8c8"
    with pytest.raises(DataError, match="another --workdir"):
        train(config, run)


@pytest.mark.usefixtures("eight_devices")
def test_every_mesh_gives_the_same_parameters(dataset):
    before, state, metrics = steps(dataset, make_mesh(1, 1), 3)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, state.params)
    assert all(value > 0 for value in jax.tree.leaves(moved["network"]["out0"]))
    assert isinstance(state.fixed["spectrum"]["fit"], Spectrum)
    assert (state.statistics["latent_var"] > 0).all()
    _, same, others = steps(dataset, make_mesh(2, 4), 3, accumulate=2)
    assert others["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    # Sums in another order; Adam normalises gradients, so small ones amplify the difference: a
    # value may move by 9e-3 in three steps of 3e-3.
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(same.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.usefixtures("eight_devices")
def test_encoder_gives_posteriors(dataset):
    config = prior256.get_config("smoke")
    autoencoder, mesh = load_autoencoder(config), make_mesh(8, 1)
    config = for_latents(config, autoencoder, dataset)
    batch = next(train_batches(dataset, size=64, seed=0, batch_size=8))
    placed = put_batch(mesh, {"image": batch["image"]})
    made = make_encoder(config, mesh, autoencoder)(placed["image"], 0)
    assert made["mean"].shape == (8, SIDE, SIDE, 4)
    posterior = Posterior(**made)
    assert np.isfinite(posterior.kl()).all() and (posterior.kl() > 0).all()
