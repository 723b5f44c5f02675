"""Leaves every camera out once: trains variants on the other cameras and evaluates them on it.

    python benchmarks/leave_out.py --data_dir D --out runs/leave_out.jsonl [--minutes 2] \\
        [--preset f8c32] [--seed 0] [base balance colour ...]
    python benchmarks/leave_out.py --out runs/leave_out.jsonl --table

A camera is a label of the dataset. Each variant trains for the same CPU time, without compilation
and start, on the training tiles of the other cameras. It is evaluated on tiles of the val and test
patients of the camera that was left out, and on val tiles of the cameras that were trained on. A
line of JSON is appended to --out for each camera; what is there already is not repeated. A variant
that is worse than `base` on two cameras is not trained further.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from recipe import pca_codec, score

from vae.checkpoints.modules import initial_variables, make_model
from vae.configs.fundus256 import LATENT_CHANNELS, get_config
from vae.data.in_memory import whole_split
from vae.data.order import BalancedOrder, Order
from vae.data.pipeline import eval_batches, open_dataset
from vae.sharding import make_mesh, put_batch, tree_sharding
from vae.tasks import task_of
from vae.tasks.linear_initialization import fit_linear
from vae.training.steps import make_train_step
from vae.training.train_state import abstract_state, initial_state
from vae.training.validation import validate

CAMERAS = ("fives", "mfiddr", "hrf", "chase_db1")  # idrid has 3 photographs
TILES, TILES_OF_OTHERS = 60, 20
SIDE, SEED = 256, 0
SMALL = {
    "data.crop": 64,
    "batch_size": 32,
    "optimizer.warmup_steps": 20,
    "train.ema_decay": 0.98,
}
CAMERA = {f"cameras.{name}": 1.0 for name in ("colour", "grain", "sharpness", "jpeg")}
DEEPER = {"model.encoder_depth": (1, 4), "model.decoder_depth": (3, 3)}
VARIANTS = {
    "base": {},
    "balance": {"data.balance": 1.0},
    "balance .5": {"data.balance": 0.5},
    **{name.removeprefix("cameras."): {name: 1.0} for name in CAMERA},
    "all cameras": CAMERA,
    "ssim 32": {"loss.ssim_weight": 32.0},
    "beta .5": {"loss.beta": 0.5},
    "deeper": DEEPER,
    "dense": {
        "model.deep_width": 256,
        "model.encoder_depth": (1, 2),
        "model.decoder_depth": (1, 4),
    },
    "scale 1": {"data.scales": (1,)},
}


class Data:
    """The tiles of a dataset in memory.

    Attributes:
      images: Training tiles, uint8 [N, 256, 256, 3].
      labels: Their labels, str [N].
      held: For each label of val and test: tiles as dicts of `image` and `fov`.
    """

    def __init__(self, path: str):
        dataset = open_dataset(path)
        self.images, _ = whole_split(dataset, size=SIDE)
        self.labels = dataset.labels("train")
        self.held = {}
        for split in ("val", "test"):
            for batch in eval_batches(dataset, split, size=SIDE, seed=SEED, batch_size=16):
                for i in np.flatnonzero(batch["valid"]):
                    found = self.held.setdefault((split, str(batch["label"][i])), [])
                    found.append({"image": batch["image"][i], "fov": batch["fov"][i]})

    def sets(self, camera: str) -> dict[str, list[dict]]:
        """Returns the tiles to evaluate: of the camera that is left out, and of each other."""
        rng = np.random.default_rng(SEED)

        def some(found, count):
            return [found[i] for i in sorted(rng.permutation(len(found))[:count])]

        unseen = self.held["val", camera] + self.held["test", camera]
        own = [label for label in CAMERAS if label != camera]
        return {camera: some(unseen, TILES)} | {
            label: some(self.held["val", label], TILES_OF_OTHERS) for label in own
        }

    @functools.lru_cache(maxsize=2)  # noqa: B019  (one object for the whole process)
    def order(self, camera: str, seed: int, balance: float):
        """Returns a function from positions to numbers of training tiles without the camera."""
        rows = np.flatnonzero(self.labels != camera)
        labels = self.labels[rows]
        order = BalancedOrder(labels, seed, balance) if balance else Order(len(rows), seed)
        return lambda positions: rows[[order.at(position) for position in positions]]


@functools.lru_cache(maxsize=64)
def linear_fit(data: Data, camera: str, channels: int, scales: tuple, beta: float, balance: float):
    """Returns the linear codec of the training tiles without a camera."""
    config = get_config()
    config.model.latent_channels, config.loss.beta, config.data.scales = channels, beta, scales
    tiles = data.images[data.order(camera, SEED, balance)(range(config.data.fit_tiles))]
    return fit_linear(config, lambda: np.split(tiles, len(tiles) // 64))


def train(config, data: Data, camera: str, fit, minutes: float, guess: int):
    """Trains for CPU minutes; returns (variables, steps). A good guess saves a compilation."""
    mesh = make_mesh()
    batch_size = config.batch_size
    order = data.order(camera, config.seed, config.data.balance)

    def run(steps: int, planned: int):
        config.train.steps = planned
        task = task_of(config)
        sharding = tree_sharding(abstract_state(task), mesh, config.mesh.fsdp_min_size)
        state = jax.device_put(initial_state(task, initial_variables(config, fit)), sharding)
        step, times = make_train_step(task, mesh, sharding), []
        for k in range(steps):
            numbers = order(range(k * batch_size, (k + 1) * batch_size))
            batch = put_batch(mesh, {"image": data.images[numbers]})["image"]
            start = time.process_time()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics["loss"])
            times.append(time.process_time() - start)
        # The fastest step depends least on other jobs.
        return state, min(times[1:])

    if not minutes:
        return jax.jit(lambda fit: initial_variables(config, fit))(fit), 0
    _, seconds = run(7, guess)
    steps = round(60 * minutes / seconds)
    if abs(steps / guess - 1) < 0.08:
        steps = guess
    return run(steps, steps)[0].variables, steps


def measure(options, data: Data, name: str, camera: str, guess: int) -> dict:
    """Trains a variant without a camera; returns its row."""
    config = get_config(options.preset)
    config.update_from_flattened_dict(SMALL | VARIANTS[name])
    config.data.dir, config.seed = options.data_dir, options.seed
    validate(config, jax.device_count())
    keys = config.model.latent_channels, config.data.scales, config.loss.beta, config.data.balance
    fit = linear_fit(data, camera, *keys)
    variables, steps = train(config, data, camera, fit, options.minutes, guess)
    model = make_model(config)

    def ours(variables, x):
        posterior = model.apply(variables, x, method="encode")
        return model.apply(variables, posterior.mean, method="decode"), posterior.kl()

    sets = data.sets(camera)
    row = {
        "name": name,
        "preset": options.preset,
        "minutes": options.minutes,
        "seed": options.seed,
        "left_out": camera,
        "steps": steps,
        "sets": score(ours, variables, sets),
    }
    if not options.minutes:
        row["pca"] = score(pca_codec, fit[0], sets)
    return row


KEY = ("name", "preset", "minutes", "seed", "left_out")


def read(path: Path) -> dict[tuple, dict]:
    """Returns the rows of a file by `KEY`."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(row[key] for key in KEY): row for row in map(json.loads, lines)}


def gains(row: dict, base: dict) -> tuple[float, float]:
    """Returns the gain in PSNR, dB, on the camera that is left out, and the mean on the others."""
    gain = {label: f["psnr"] - base["sets"][label]["psnr"] for label, f in row["sets"].items()}
    unseen = gain.pop(row["left_out"])
    return unseen, statistics.mean(gain.values())


def table(rows: dict[tuple, dict]) -> str:
    """Formats the rows as a Markdown table of gains over `base`, and the rate relative to it."""
    lines = [
        f"| run | {' | '.join(CAMERAS)} | mean | own cameras | kB |",
        "|---" * (len(CAMERAS) + 4) + "|",
    ]
    for kind in dict.fromkeys(key[:4] for key in rows):
        found = {camera: rows.get((*kind, camera)) for camera in CAMERAS}
        bases = {camera: rows.get(("base", *kind[1:], camera)) for camera in CAMERAS}
        both = {c: (found[c], bases[c]) for c in CAMERAS if found[c] and bases[c]}
        if not both:
            continue
        gain = {camera: gains(*pair) for camera, pair in both.items()}
        rate = statistics.mean(
            pair[0]["sets"][c]["bytes"] / pair[1]["sets"][c]["bytes"] for c, pair in both.items()
        )
        cells = [f"{gain[c][0]:+.2f}" if c in gain else "" for c in CAMERAS]
        means = [statistics.mean(part) for part in zip(*gain.values(), strict=True)]
        label = ", ".join(map(str, kind))
        lines.append(
            f"| {label} | {' | '.join(cells)} | {means[0]:+.2f} | {means[1]:+.2f} "
            f"| {rate - 1:+.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="a built dataset whose labels are cameras")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="f8c32", choices=LATENT_CHANNELS)
    parser.add_argument("--minutes", type=float, default=2.0, help="of CPU time; 0: no training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cameras", nargs="+", choices=CAMERAS, default=CAMERAS)
    parser.add_argument("--table", action="store_true", help="only print the table of --out")
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; all by default")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.out)))
        return
    data, guess = Data(options.data_dir), 300
    for name in options.variants or VARIANTS:
        worse = 0
        for camera in options.cameras:
            rows = read(options.out)
            kind = options.preset, options.minutes, options.seed, camera
            if (name, *kind) not in rows and worse < 2:
                row = measure(options, data, name, camera, guess)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                rows[name, *kind] = row
            if (row := rows.get((name, *kind))) is None:
                continue
            guess = row["steps"] or guess
            gain = gains(row, rows.get(("base", *kind), row))
            worse += gain[0] < 0
            print(f"{name:12} {camera:10} {row['steps']:4} steps  unseen {gain[0]:+.3f} dB  "
                  f"own {gain[1]:+.3f} dB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
