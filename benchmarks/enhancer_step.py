"""Time of an enhancer's training step, and the share of the degradations.

    python benchmarks/enhancer_step.py [--crop 64] [--batch_size 32] [--repeats 9]

Programs run in turn, and medians are printed: the training step with and without degradations (the
difference is their cost), and the generation of pairs by itself, with all, with single and without
degradations.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from common import training_step

from vae.configs import enhance256
from vae.data.synthetic import fundus_photograph
from vae.data.thumbnails import THUMBNAIL
from vae.models.degradations import DEGRADATIONS
from vae.models.pairs import make_pairs


def config_of(arguments, names):
    """Returns the config of a run that draws only the named degradations."""
    config = enhance256.get_config()
    config.batch_size, config.data.crop = arguments.batch_size, arguments.crop
    for name in DEGRADATIONS:
        config.degrade[name] = float(name in names)
    return config


def examples(config):
    """Returns a batch of tiles of one photograph."""
    size, rng = config.data.size, np.random.default_rng(0)
    photograph = fundus_photograph(0, 4 * size)
    origins = rng.integers(size, 2 * size, (config.batch_size, 2))
    tiles = np.stack([photograph[y : y + size, x : x + size] for y, x in origins])
    thumbnail = photograph[:: 4 * size // THUMBNAIL, :: 4 * size // THUMBNAIL]
    circles = np.concatenate([2 * size - origins, np.full((len(origins), 1), 2 * size)], axis=1)
    return {
        "image": tiles,
        "thumbnail": np.stack([thumbnail] * config.batch_size),
        "fov_circle": circles.astype(np.float32),
    }


def pairs_of(config, batch):
    """Returns a function that makes a batch of pairs and waits for it."""
    rows = jnp.arange(config.batch_size)
    make = jax.jit(lambda *arrays: make_pairs(*arrays, jax.random.key(0), rows, config))
    return lambda: jax.block_until_ready(
        make(batch["image"], batch["thumbnail"], batch["fov_circle"])
    )


def spent(function) -> float:
    """Returns seconds of one call: CPU time on a CPU, unaffected by other jobs; else wall time."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    function()
    return clock() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crop", type=int, default=64, help="pixels")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()

    every, none = config_of(arguments, DEGRADATIONS), config_of(arguments, ())
    batch = examples(every)
    programs = {
        "step": training_step(every, batch)[0],
        "step without degradations": training_step(none, batch)[0],
        "pairs": pairs_of(every, batch),
        "pairs without degradations": pairs_of(none, batch),
    }
    for name in DEGRADATIONS:
        programs[name] = pairs_of(config_of(arguments, (name,)), batch)
    for run in programs.values():
        run()
    times = {name: [] for name in programs}
    for _ in range(arguments.repeats):
        for name, run in programs.items():
            times[name].append(spent(run))
    median = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    shares = [
        1 - without / whole
        for whole, without in zip(times["step"], times["step without degradations"], strict=True)
    ]
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, crops of {arguments.crop}, batch "
        f"{arguments.batch_size}, medians of {arguments.repeats}, ms"
    )
    for name in list(programs)[:4]:
        print(f"{name:28}{median[name]:9.1f}")
    share = (median["pairs"] - median["pairs without degradations"]) / median["step"]
    between = f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
    print(f"degradations: {share:.1%} of the step by the pairs alone, {between} by the difference")
    for name in DEGRADATIONS:
        alone = median[name] - median["pairs without degradations"]
        print(f"  {name:26}{alone:9.1f}")


if __name__ == "__main__":
    main()
