"""One run of the recipe search: trains a variant for a given CPU time and evaluates it on val.

    python benchmarks/recipe.py --data_dir D --out runs/recipe.jsonl [--name N] [--cpu_minutes 4] \\
        [--preset f8c32] [loss.beta=0.5 model.width=96 ...]
    python benchmarks/recipe.py --out runs/recipe.jsonl --table

Variants are compared at equal compute: the first steps are timed, in CPU time of the process, which
depends little on other jobs, and the schedule gets as many steps as fit. For each label of the val
split, the line of JSON appended to --out holds the gain of the posterior mean, rounded to 8 bits,
over PCA of the same size, and the posterior's rate.
"""

import argparse
import ast
import json
import time
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np

from vae.checkpoints.modules import initial_variables, make_model
from vae.configs.fundus256 import LATENT_CHANNELS, get_config
from vae.data.pipeline import eval_batches, first_tiles, open_dataset, train_batches
from vae.metrics import masked_psnr, masked_ssim, to_float, to_uint8
from vae.sharding import make_mesh, put_batch, tree_sharding
from vae.tasks import task_of
from vae.tasks.linear_initialization import fit_linear
from vae.training.steps import make_train_step
from vae.training.train_state import abstract_state, initial_state
from vae.training.validation import validate

TILES_A_LABEL = 24  # the number of val tiles of the smallest label of the development photographs
TIMED = 4  # steps


def val_tiles(dataset, size: int, seed: int) -> dict[str, list[dict]]:
    """Returns label -> a fixed sample of its val tiles (image, fov)."""
    tiles = defaultdict(list)
    for batch in eval_batches(dataset, "val", size=size, seed=seed, batch_size=16):
        for i in np.flatnonzero(batch["valid"]):
            tiles[batch["label"][i]].append({"image": batch["image"][i], "fov": batch["fov"][i]})
    rng = np.random.default_rng(seed)
    return {
        label: [found[i] for i in sorted(rng.permutation(len(found))[:TILES_A_LABEL])]
        for label, found in sorted(tiles.items())
    }


def score(reconstruct, variables, tiles: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Returns label -> means of SSIM, PSNR in dB, PSNR before rounding, and KL in bytes a tile."""

    # Variables are an argument, because XLA 0.10.2 miscompiles a constant kernel of zeros.
    @jax.jit
    def metrics(variables, image, fov):
        x = to_float(image)
        y, kl = reconstruct(variables, x)
        rounded = to_uint8(y)
        return {
            "ssim": masked_ssim(image / 255.0, rounded / 255.0, fov),
            "psnr": masked_psnr(image, rounded, fov),
            "psnr_unrounded": masked_psnr(image, (y + 1) * 127.5, fov),
            "bytes": kl / np.log(2) / 8,
        }

    means = {}
    for label, found in tiles.items():
        rows = []
        for i in range(0, len(found), 8):
            part = found[i : i + 8]
            stacked = (np.stack([t[key] for t in part]) for key in ("image", "fov"))
            rows.append(metrics(variables, *stacked))
        means[label] = {
            key: float(np.mean(np.concatenate([row[key] for row in rows]))) for key in rows[0]
        }
    return means


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="a built dataset with a val split")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="")
    parser.add_argument("--preset", default="f8c32", choices=LATENT_CHANNELS)
    parser.add_argument("--cpu_minutes", type=float, default=4.0, help="0: no training")
    parser.add_argument("--table", action="store_true", help="only print the table of --out")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.out.read_text().splitlines()]))
        return
    if not options.data_dir:
        parser.error("give --data_dir, or --table to print earlier runs")
    append(options)


def append(options: argparse.Namespace) -> None:
    """Trains one variant, evaluates it, and appends its row to `options.out`."""

    config = get_config(options.preset)
    config.data.dir, config.data.crop, config.batch_size = options.data_dir, 128, 8
    config.train.ema_decay, config.optimizer.warmup_steps = 0.98, 20
    overrides = {}
    for override in options.overrides:
        key, value = override.split("=", 1)
        try:
            overrides[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[key] = value
    config.update_from_flattened_dict(overrides)
    config.train.steps = TIMED
    validate(config, jax.device_count())

    dataset = open_dataset(config.data.dir)
    size, seed = config.data.size, config.seed
    fit = fit_linear(
        config,
        lambda: first_tiles(dataset, size=size, seed=seed, count=config.data.fit_tiles),
    )
    mesh = make_mesh()
    sharding = tree_sharding(abstract_state(task_of(config)), mesh, config.mesh.fsdp_min_size)

    def run(steps: int):
        config.train.steps = max(steps, 1)
        state = jax.device_put(
            initial_state(task_of(config), initial_variables(config, fit)), sharding
        )
        batches = train_batches(
            dataset, size=size, seed=seed, batch_size=config.batch_size, threads=1
        )
        step = make_train_step(task_of(config), mesh, sharding)
        spent = 0.0
        for k in range(steps):
            batch = put_batch(mesh, {"image": next(batches)["image"]})["image"]
            start = time.process_time()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics["loss"])
            if k:  # the first compiles
                spent += time.process_time() - start
            if not k % 100:
                print(k, {n: round(float(metrics[n]), 4) for n in ("loss", "ssim", "psnr")})
        return state, spent / max(steps - 1, 1)

    state, cpu_seconds = run(TIMED if options.cpu_minutes else 0)
    steps = round(60 * options.cpu_minutes / cpu_seconds) if options.cpu_minutes else 0
    if steps:
        state, cpu_seconds = run(max(steps, TIMED))
    model, variables = make_model(config), state.variables

    def ours(variables, x):
        posterior = model.apply(variables, x, method="encode")
        return model.apply(variables, posterior.mean, method="decode"), posterior.kl()

    tiles = val_tiles(dataset, size, seed)
    found, floor = score(ours, variables, tiles), score(pca_codec, fit[0], tiles)
    row = {
        "name": options.name or " ".join(options.overrides) or "as it is",
        "preset": options.preset,
        "overrides": overrides,
        "steps": steps,
        "cpu_seconds_a_step": round(cpu_seconds, 3),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "labels": {
            label: {key: round(value, 5) for key, value in metrics.items()}
            | {
                "gain_db": round(metrics["psnr"] - floor[label]["psnr"], 3),
                "gain_ssim": round(metrics["ssim"] - floor[label]["ssim"], 5),
            }
            for label, metrics in found.items()
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(line(row))


def line(row: dict) -> str:
    """Formats a row as a line of text with the gains by label."""
    gains = "  ".join(
        f"{label} {f['gain_db']:+.2f} dB {f['gain_ssim']:+.4f} {f['bytes'] / 1000:.1f} kB"
        for label, f in row["labels"].items()
    )
    return f"{row['name']:40} {row['steps']:5} x {row['cpu_seconds_a_step']:.2f}s  {gains}"


def table(rows: list[dict]) -> str:
    """Formats the rows as a Markdown table."""
    labels = list(rows[0]["labels"])
    lines = [
        f"| run | preset | steps | {' | '.join(f'{label} dB, SSIM, kB' for label in labels)} |",
        "|---" * (3 + len(labels)) + "|",
    ]
    for row in rows:
        cells = (
            f"{f['gain_db']:+.2f}, {f['gain_ssim']:+.4f}, {f['bytes'] / 1000:.1f}"
            for f in row["labels"].values()
        )
        lines.append(f"| {row['name']} | {row['preset']} | {row['steps']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pca_codec(pca, x):
    posterior = pca.encode(x)
    return pca.decode(posterior.mean), posterior.kl()


if __name__ == "__main__":
    main()
