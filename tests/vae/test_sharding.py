"""Partitions of all parameters over eight devices, memory per device, and collectives.

`golden_partitions.json` holds the partitions of all presets. After an intended change, rewrite it
from the root of the project and review the difference:

    python -m tests.vae.test_sharding
"""

import importlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from vae.checkpoints.modules import initial_variables
from vae.configs import enhance256, fundus256, prior256, published
from vae.sharding import (
    batch_sharding,
    device_bytes,
    largest_leaves,
    make_mesh,
    tree_sharding,
)
from vae.tasks import task_of
from vae.training.optimizer import path_name
from vae.training.steps import make_train_step
from vae.training.train_state import abstract_state

pytestmark = pytest.mark.usefixtures("eight_devices")

GOLDEN = pathlib.Path(__file__).with_name("golden_partitions.json")
NAMES = [
    f"{module.__name__.split('.')[-1]}:{preset}"
    for module in (enhance256, fundus256, prior256, published)
    for preset in module.PRESETS
]
DEVICES = 8
FEWEST = 1024  # smallest number of values of a sharded leaf in the small model


def get_config(name):
    module, preset = name.split(":")
    return importlib.import_module(f"vae.configs.{module}").get_config(preset)


def partitions(name):
    """Returns {path: "shape: partition"} of every parameter on a mesh of (data=1, fsdp=8)."""
    config = get_config(name)
    params = jax.eval_shape(lambda: initial_variables(config))["params"]
    sharding = tree_sharding({"params": params}, make_mesh(1, DEVICES), config.mesh.fsdp_min_size)
    return {
        path_name(path): f"{list(leaf.shape)}: {', '.join(map(str, where.spec)) or 'replicated'}"
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(sharding), strict=True
        )
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_partition_is_the_golden_one(name):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert sorted(golden) == sorted(NAMES)
    assert partitions(name) == golden[name], f"if this is meant: {__doc__}"


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, DEVICES)


def small_config():
    """A small published architecture whose last layer holds most of the state."""
    config = get_config("published:tiny")
    config.model.decoder_width = 1024
    config.train.ema_decay = 0.9
    config.mesh.fsdp_min_size = FEWEST
    # Crops of several scales, so that the result does not depend on a single crop shape.
    config.data.size *= 2
    config.data.scales = (1, 1, 2)
    return config


def compiled_step(config, mesh):
    """Returns (abstract state, sharding, compiled step) without allocating arrays."""
    state = abstract_state(task_of(config))
    sharding = tree_sharding(state, mesh, config.mesh.fsdp_min_size)
    shape = (config.batch_size, config.data.size, config.data.size, 3)
    images = jax.ShapeDtypeStruct(shape, np.uint8)
    return (
        state,
        sharding,
        make_train_step(task_of(config), mesh, sharding).lower(state, images).compile(),
    )


def state_bytes(compiled, config):
    """Returns bytes of the state per device: the compiled step's arguments without the images."""
    images = config.batch_size // DEVICES * config.data.size**2 * 3
    return compiled.memory_analysis().argument_size_in_bytes - images


@pytest.fixture(scope="module")
def small(mesh):
    return compiled_step(small_config(), mesh)


@pytest.mark.parametrize("name", ["fundus256:f8c32", "published:full"])
def test_moments_and_average_are_sharded_like_their_parameter(name, mesh):
    config = get_config(name)
    config.train.ema_decay = 0.9
    sharding = tree_sharding(abstract_state(task_of(config)), mesh, config.mesh.fsdp_min_size)
    assert any(not where.is_fully_replicated for where in jax.tree.leaves(sharding.params))
    assert sharding.params == sharding.ema_params
    parameters = named(sharding.params)
    moments = {
        name: [where for path, where in named(sharding.opt_state).items() if path.endswith(name)]
        for name in parameters
    }
    # Adam has two moments per parameter, Muon one per kernel.
    assert all(found and set(found) == {parameters[name]} for name, found in moments.items())


def named(tree):
    """Returns leaves by path, for example `/encoder/head/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/" + path_name(path): leaf for path, leaf in leaves}


def test_memory_of_the_compiled_step_matches_the_partitions(small):
    state, sharding, compiled = small
    held = device_bytes(state, sharding)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    # The tolerance covers the alignment of about a hundred small leaves.
    assert state_bytes(compiled, small_config()) == pytest.approx(held, rel=0.02)
    assert held == pytest.approx(whole / DEVICES, rel=0.15)
    # The old state is donated, so the new state reuses its memory.
    assert compiled.memory_analysis().alias_size_in_bytes == pytest.approx(held, rel=0.02)


def collectives(compiled, kind):
    """Returns the lines of a compiled step that are collectives of a kind."""
    pattern = re.compile(rf" {kind}(-start)?\(")
    return [line for line in compiled.as_text().splitlines() if pattern.search(line)]


def check_the_largest_layer_is_gathered_once(state, compiled):
    """Forward and backward pass of the largest layer are adjacent and share one gathered copy."""
    rows, columns = state.params["decoder"]["to_image"]["weight"].shape
    whole = f"f32[{rows},{columns}]"
    gathers = collectives(compiled, "all-gather")
    assert sum(whole in line for line in gathers) == 1
    # No device has the whole gradient, moments or update.
    assert not any(whole in line for line in collectives(compiled, "all-reduce"))
    text = compiled.as_text()
    entry = text[text.index("\nENTRY") :]
    made = re.findall(rf"%(\S+) = {re.escape(whole)}[^=]*? ([a-z-]+)\(", entry)
    assert [kind for _, kind in made] == ["all-gather"]
    users = [line for line in entry.splitlines() if re.search(rf"%{made[0][0]}\b", line)][1:]
    assert len(users) == 2
    assert all(re.search(r"op_name=\"[^\"]*decode[^\"]*to_image", line) for line in users)


def test_the_largest_layer_is_gathered_once(small):
    check_the_largest_layer_is_gathered_once(small[0], small[2])


def test_sharded_leaves_are_not_gathered_for_the_update(small):
    """XLA may also shard and re-gather the update of a small vector; this is allowed."""
    update = [line for line in collectives(small[2], "all-gather") if "jvp(" not in line]
    for line in update:
        shape = re.search(r"f32\[([\d,]*)\]", line)[1]
        assert np.prod([int(size) for size in shape.split(",")]) < FEWEST, line


def test_report_names_the_largest_leaves(small):
    state, sharding, _ = small
    first, header, *rows = largest_leaves(state, sharding, count=3).splitlines()
    held = device_bytes(state, sharding) / 1e6
    assert first.endswith(f"a device holds {held:,.1f} MB")
    assert header.split()[0] == "parameter" and len(rows) == 3
    assert rows[0].split("  ")[0] == "decoder/to_image/weight"
    assert re.search(r" 3072 x 1024 +fsdp +12\.6 +1\.6$", rows[0])


def test_batch_is_sharded_over_both_axes():
    sharding = batch_sharding(make_mesh(4, 2))
    assert sharding.shard_shape((16, 32, 32, 3)) == (2, 32, 32, 3)


@pytest.mark.soak
def test_each_of_eight_devices_holds_an_eighth_of_the_published_state(mesh):
    config = get_config("published:full")
    state, _, compiled = compiled_step(config, mesh)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert whole > 5.1e9  # parameters and two moments of 432 million values
    assert state_bytes(compiled, config) == pytest.approx(whole / DEVICES, rel=0.15)
    check_the_largest_layer_is_gathered_once(state, compiled)


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    golden = {name: partitions(name) for name in NAMES}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
