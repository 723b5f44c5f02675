"""`sample`, `interpolate` and `evaluate-samples`: new tiles and their evaluation."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from vae.cli.options import declare, results
from vae.data.errors import UsageError
from vae.data.names import composed

MOST = 10_000_000  # tiles; a larger number is taken for a typing error
NOBODY = "These tiles are of no person's eye. Not for diagnosis, nor as evidence of anything."


def add(commands) -> None:
    """Registers the commands."""
    _add_sample(commands)
    _add_interpolate(commands)
    _add_evaluate(commands)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="M", help="the autoencoder, or a prior, which names its autoencoder "
        "(that of the bundled prior)"
    )  # fmt: skip
    parser.add_argument(
        "--prior", metavar="P", help="a run of configs/prior256.py, a checkpoint in it, an "
        "exported file, or normal for N(0, I) (the bundled prior; normal for the published "
        "architecture)"
    )  # fmt: skip


def _add_solver(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seed", type=int, default=0, metavar="S", help="seed of the noise (0)")
    add("--label", metavar="L", help="label of the tiles (unconditional)")
    add("--guidance", type=float, default=1.0, metavar="G",
        help="weight of the label (1: no guidance beyond the label)")  # fmt: skip
    add("--steps", type=int, metavar="K", help="solver steps (the prior's setting)")
    add("--method", choices=("euler", "heun"), default="heun",
        help="solver; heun evaluates twice per step (heun)")  # fmt: skip


def _add_sample(commands) -> None:
    parser = commands.add_parser(
        "sample",
        help="draw new tiles from a prior over latents",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Draws new tiles, and writes DIR/seedS_NUMBER.png, DIR/sheet.png with the "
        "first 64 of them, and\nDIR/samples.csv. A tile depends only on the seed and its number."
        "\n\n" + NOBODY,
        epilog="examples:\n"
        "  fundus-vae sample --n 64 --seed 0 --out new\n"
        "  fundus-vae sample --label fives --steps 30 --n 1000 --out new\n"
        "  fundus-vae sample --model published --n 16 --out new",
    )
    _add_models(parser)
    add = parser.add_argument
    add("--n", type=int, default=64, metavar="N", help="number of tiles (64)")
    add("--out", required=True, metavar="DIR", help="output folder; existing files are replaced")
    add("--format", dest="file_format", choices=("png", "jpg"), default="png",
        help="format of the tiles; jpg has quality 95 (png)")  # fmt: skip
    _add_solver(parser)
    declare(parser, results("out"), reads=("model", "prior"))
    parser.set_defaults(run=_sample)


def _add_interpolate(commands) -> None:
    parser = commands.add_parser(
        "interpolate",
        help="interpolate between two tiles",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes tiles from A to B as DIR/between_NUMBER.png, and a strip of them "
        "between the two originals as\nDIR/interpolation.png. The interpolation runs through the "
        "prior's noise, so that each step is a tile, too.",
        epilog="examples:\n  fundus-vae interpolate a.png b.png --n 8 --out way",
    )
    add = parser.add_argument
    add("first", metavar="A", help="a tile; a larger image is cropped to its middle")
    add("last", metavar="B", help="another tile")
    _add_models(parser)
    add("--n", type=int, default=8, metavar="N", help="number of tiles with both ends (8)")
    add("--steps", type=int, metavar="K", help="solver steps each way (the prior's setting)")
    add("--out", required=True, metavar="DIR", help="output folder; existing files are replaced")
    declare(parser, results("out"), reads=("first", "last", "model", "prior"))
    parser.set_defaults(run=_interpolate)


def _add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate-samples",
        help="compare sampled tiles with real ones",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares samples with the training tiles of a dataset: sliced Wasserstein "
        "distance, precision and\nrecall, colours, vesselness, and search for copies. Held-out "
        "tiles are the floor of each metric; simpler\npriors are measured too. Prints the table.",
        epilog="examples:\n"
        "  fundus-vae evaluate-samples --data dataset --out results\n"
        "  fundus-vae evaluate-samples --data dataset --samples folder --n 500",
    )
    _add_models(parser)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="the dataset, as `fundus-vae build` wrote it")
    add("--split", default="test", help="split whose tiles no model was trained on (test)")
    add("--n", type=int, default=1024, metavar="N", help="number of tiles in each set (1024)")
    add("--samples", metavar="DIR", help="evaluate the tiles of this folder instead of drawing any")
    add("--out", metavar="DIR", help="folder for samples.json and contact sheets")
    _add_solver(parser)
    declare(parser, results("out"), reads=("data", "samples", "model", "prior"))
    parser.set_defaults(run=_evaluate)


def _sample(
    model: str | None,
    prior: str | None,
    n: int,
    out: str,
    file_format: str,
    **options: Any,
) -> int:
    _check(n, options)
    from vae.inference.sample import load_sampler
    from vae.inference.sample_files import origin_of, write_samples

    sampler = load_sampler(model, prior)
    _check_label(sampler, options)
    print(_about(sampler))
    start, done = time.monotonic(), 0
    written = write_samples(
        sampler, Path(out), n, origin=origin_of(sampler), suffix=f".{file_format}", **options
    )
    from tqdm import tqdm

    try:
        with tqdm(total=n, unit="tile", disable=None) as bar:
            for done in written:
                bar.update(done - bar.n)
    except KeyboardInterrupt:
        print(f"interrupted; {done:,} of {n:,} tiles are written to {out}; the same command starts "
              "over", file=sys.stderr)  # fmt: skip
        return 130
    seconds = time.monotonic() - start
    print(f"{n:,} tiles in {seconds:,.1f} s ({n / seconds:.2f} a second), written to {out}")
    print(NOBODY)
    return 0


def _interpolate(
    first: str,
    last: str,
    model: str | None,
    prior: str | None,
    n: int,
    steps: int | None,
    out: str,
) -> int:
    if n < 2:
        raise UsageError(f"--n {n}: expected at least 2, the two ends")
    _check(n, {"steps": steps})
    from vae.inference.sample import load_sampler
    from vae.inference.sample_files import STRIP, origin_of, write_interpolation

    sampler = load_sampler(model, prior)
    print(_about(sampler))
    paths = [Path(first), Path(last)]
    write_interpolation(sampler, paths, Path(out), n, origin=origin_of(sampler), steps=steps)
    print(f"{n} tiles and {STRIP} written to {out}")
    print(NOBODY)
    return 0


def _evaluate(
    model: str | None,
    prior: str | None,
    data: str,
    split: str,
    n: int,
    samples: str | None,
    out: str | None,
    **options: Any,
) -> int:
    _check(n, options)
    from vae.evaluation.samples import evaluate_samples
    from vae.inference.sample import load_sampler

    sampler = load_sampler(model, prior)
    _check_label(sampler, options)
    print(_about(sampler))
    tiles = None if samples is None else _read_tiles(samples, sampler.side)
    evaluate_samples(sampler, data, count=n, split=split, out=out, tiles=tiles, **options)
    return 0


def _check(n: int, options: dict[str, Any]) -> None:
    if not 1 <= n <= MOST:
        raise UsageError(f"--n {n}: expected a number of tiles from 1 to {MOST:,}")
    steps = options.get("steps")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: expected at least 1")
    if not 0 <= options.get("seed", 0) < 2**32:
        raise UsageError(f"--seed {options['seed']}: expected a number from 0 to {2**32 - 1}")


def _check_label(sampler, options: dict[str, Any]) -> None:
    label = options["label"]
    if label is not None and composed(label) not in sampler.labels:
        known = ", ".join(sampler.labels) or "none, it was trained without labels"
        raise UsageError(f"--label {label}: this prior knows {known}")
    if options["guidance"] != 1 and label is None:
        raise UsageError(f"--guidance {options['guidance']:g} needs a label; give --label")


def _about(sampler) -> str:
    prior = "N(0, I)" if sampler.prior is None else f"{sampler.prior.path}, {sampler.hash}"
    return f"model {sampler.model.saved.path}, {sampler.model.hash}; prior {prior}"


def _read_tiles(folder: str, side: int):
    """Yields the tiles of a folder, uint8 [b, S, S, 3] at a time."""
    import numpy as np

    from vae.data.errors import DataError
    from vae.data.failures import Failure
    from vae.data.inputs import open_inputs

    batch = []
    for item in open_inputs([folder], split=None).read():
        if isinstance(item, Failure):
            raise DataError(item.reason)
        if item.image.shape[:2] != (side, side):
            height, width = item.image.shape[:2]
            raise DataError(f"{item.path}: {height} x {width}, expected tiles of {side} pixels")
        batch.append(item.image)
        if len(batch) == 64:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
