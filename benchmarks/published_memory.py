"""Memory of a training step of the published architecture, as planned by XLA.

    python benchmarks/published_memory.py [--batches 8 16 128/16]

The step is compiled ahead of time for one device; the 432 million parameters are not allocated. A
batch is given as SIZE or SIZE/PARTS, where PARTS is `train.accumulate`.
"""

import argparse

import jax

from vae.configs.published import get_config
from vae.sharding import batch_sharding, make_mesh, tree_sharding
from vae.tasks import task_of
from vae.training.steps import make_train_step
from vae.training.train_state import abstract_state

GB = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", default=["8", "16", "128/16"])
    batches = parser.parse_args().batches
    print(f"{jax.devices()[0].device_kind}, GB: train state / other / total")
    for batch in batches:
        state, rest = planned(*map(int, (batch + "/1").split("/")[:2]))
        print(f"batch {batch:>7}: {state:5.2f} {rest:6.2f} {state + rest:6.2f}", flush=True)


def planned(batch_size: int, accumulate: int) -> tuple[float, float]:
    """Returns the GB of the donated train state, and of everything else during a step."""
    config = get_config()
    config.batch_size, config.train.accumulate = batch_size, accumulate
    mesh = make_mesh(data=1)
    abstract = abstract_state(task_of(config))
    sharding = tree_sharding(abstract, mesh, config.mesh.fsdp_min_size)
    images = jax.ShapeDtypeStruct(
        (batch_size, config.data.size, config.data.size, 3), "uint8", sharding=batch_sharding(mesh)
    )
    step = make_train_step(task_of(config), mesh, sharding)
    memory = step.lower(abstract, images).compile().memory_analysis()
    rest = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return memory.argument_size_in_bytes / GB, rest / GB


if __name__ == "__main__":
    main()
