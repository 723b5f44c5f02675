"""Speed of sampling, and quality of samples against the number of steps.

    python benchmarks/sampling.py --data dataset [--n 256] [--out docs/figures/sampling_steps.png]

Each solver draws the same tiles (from the same noise) with increasing numbers of steps. Quality is
the sliced Wasserstein distance of Laplacian-pyramid patches to the training tiles, as in
`fundus-vae evaluate-samples`; the floor is the distance between halves of the training patients.
Rates of latents and of the decoder are separate and leave out the first call, which compiles.
"""

import argparse
import functools
import os
import time

import numpy as np

from vae.data.pipeline import eval_batches, open_dataset
from vae.evaluation.samples.summary import batched, shrunk, summarise
from vae.evaluation.samples.table import Reference, compare, floor
from vae.inference.sample import CHUNK, METHODS, load_sampler

STEPS = (1, 2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--model", metavar="M", help="a prior (the bundled one)")
    parser.add_argument("--n", type=int, default=256, help="tiles per set")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", metavar="PNG", help="a figure")
    arguments = parser.parse_args()
    sampler, dataset = load_sampler(arguments.model), open_dataset(arguments.data)
    print(f"{len(os.sched_getaffinity(0))} cores, {sampler.prior.path}, chunks of {CHUNK} tiles")

    def tiles(split: str, limit: int):
        for batch in eval_batches(
            dataset, split, size=sampler.side, seed=0, batch_size=64, limit=limit
        ):
            yield batch["image"][batch["valid"]], batch["patient"][batch["valid"]]

    # Precision and recall are not shown, so any cheap feature replaces the latents.
    summary = functools.partial(summarise, encode=_colours)
    pool, held_out = (
        summary(tiles(split, count))
        for split, count in (("train", 5 * arguments.n // 2), (arguments.split, arguments.n))
    )
    training = np.concatenate([shrunk(part) for part, _ in tiles("train", 4096)])
    real = Reference.from_summary(pool, training, held_out, arguments.n)
    lowest = floor(real)["swd"]
    print(f"floor {lowest:.3f}, held out {compare('', held_out, real)['swd']:.3f}")
    results = []
    for method in METHODS:
        for steps in arguments.steps:
            draw = functools.partial(sampler.latents, method=method, steps=steps)
            draw(range(CHUNK))
            start = time.perf_counter()
            latents = draw(range(arguments.n))
            seconds = time.perf_counter() - start
            row = compare("", summary(batched(sampler.decode(latents))), real)
            evaluations = steps * (1 + (method == "heun"))
            results.append((method, steps, evaluations, row["swd"]))
            print(
                f"{method:5} {steps:3} steps {evaluations:3} evaluations  SWD {row['swd']:.3f}  "
                f"{arguments.n / seconds:6.2f} latents/s",
                flush=True,
            )
    start = time.perf_counter()
    sampler.decode(latents)
    print(f"decoder {arguments.n / (time.perf_counter() - start):.2f} tiles/s")
    if arguments.out:
        _draw(results, lowest, arguments.out)


def _colours(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2)).astype(np.float32)


def _draw(results: list[tuple[str, int, int, float]], lowest: float, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for method in METHODS:
        points = [(e, swd) for name, _, e, swd in results if name == method]
        axes.plot(*zip(*points, strict=True), "o-", label=method)
    axes.axhline(lowest, color="grey", linestyle="--", label="floor: halves of the patients")
    axes.set(
        xscale="log", xlabel="evaluations of the network", ylabel="sliced Wasserstein, grey levels"
    )
    axes.set_xticks(sorted({e for _, _, e, _ in results}), minor=False)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
