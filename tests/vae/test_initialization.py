"""The train state of step 0: values, buffers and shardings."""

import functools

import jax
import numpy as np
import pytest

from vae.checkpoints.loading import SavedModel
from vae.checkpoints.modules import initial_variables
from vae.configs import enhance256, fundus256, prior256
from vae.data.errors import DataError
from vae.sharding import make_mesh, tree_sharding
from vae.tasks import task_of
from vae.training.initialization import state_from_variables
from vae.training.train_state import abstract_state, initial_state

pytestmark = pytest.mark.usefixtures("eight_devices")

CONFIGS = {"autoencoder": fundus256, "enhancer": enhance256, "prior": prior256}


def places(tree):
    """Returns the address of the first device's shard of every leaf."""
    names = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path): leaf.addressable_shards[0].data.unsafe_buffer_pointer()
        for path, leaf in names
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_every_leaf_has_its_own_buffer(name):
    """Regression: a donated buffer was reused, so PCA's scale got the likelihood's value."""
    config = CONFIGS[name].get_config("smoke")
    abstract = abstract_state(task_of(config))
    sharding = tree_sharding(abstract, make_mesh(), config.mesh.fsdp_min_size)
    draw = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda leaf: draw.standard_normal(leaf.shape).astype(leaf.dtype), abstract.variables
    )
    # A copy on the devices, because NumPy's memory cannot be donated.
    variables = jax.jit(
        functools.partial(jax.tree.map, jax.numpy.copy), out_shardings=sharding.variables
    )(drawn)
    before = places(variables)
    state = state_from_variables(task_of(config), variables, sharding)
    whole = {"params": state.params, **state.fixed}
    assert places(whole) == before
    jax.tree.map(np.testing.assert_array_equal, whole, drawn)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, drawn["params"])
    assert set(places(state.ema_params).values()).isdisjoint(before.values())
    expected = jax.eval_shape(functools.partial(initial_state, task_of(config)), drawn)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )
    same = jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), state, sharding)
    assert all(jax.tree.leaves(same))


def test_variables_that_a_saved_model_lacks_start_fresh(tmp_path, capsys):
    had = fundus256.get_config("smoke")
    variables = jax.device_get(jax.jit(lambda: initial_variables(had))())
    saved = SavedModel(tmp_path, had, 3, variables, np.zeros(8), np.ones(8), {})
    config = had.copy_and_resolve_references()
    config.init_from = "before"
    assert jax.tree.map(np.shape, task_of(config).from_saved(saved)) == jax.tree.map(
        np.shape, variables
    )
    assert not capsys.readouterr().out
    config.model.encoder_depth = (1, 3)
    made = task_of(config).from_saved(saved)
    assert jax.tree.map(np.shape, made["params"]) == jax.tree.map(
        np.shape, abstract_state(task_of(config)).params
    )
    jax.tree.map(
        np.testing.assert_array_equal, made["params"]["decoder"], variables["params"]["decoder"]
    )
    listed = capsys.readouterr().out
    assert "encoder/stage1/block2/conv1/kernel" in listed and "decoder" not in listed
    config.model.encoder_depth = (0, 1)
    with pytest.raises(DataError, match=r"before is another model, .*stage0/block0.* none here"):
        task_of(config).from_saved(saved)
