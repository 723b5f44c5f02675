"""Rate of the input pipeline relative to the rate of decoding alone.

    python benchmarks/input_pipeline.py                     # tiles of procedural photographs
    python benchmarks/input_pipeline.py --tiles DIR         # your own tiles, PNG or JPEG
    python benchmarks/input_pipeline.py --data_dir DIR      # a built dataset

The limit is the rate at which the same number of threads decodes the same images from memory and
drops them. Limit and pipeline take turns, so that a disturbance of the machine affects both.
Medians of both and of the turns' ratios are printed.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from vae.data import pipeline
from vae.data.cores import available_cores
from vae.data.fundus_tiles.build import build
from vae.data.images import encode_image
from vae.data.synthetic import fundus_photograph


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--tiles", help="directory of tiles to build from")
    source.add_argument("--data_dir", help="a built dataset")
    parser.add_argument("--size", type=int, default=256, help="side of the tiles, pixels")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn")
    options = parser.parse_args()

    print(f"{options.threads} threads, {options.size}-pixel tiles, batches of {options.batch_size}")
    print(f"{'':>12}{'kB/tile':>9}{'limit/s':>9}{'ours/s':>9}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, data_dir in _datasets(options, Path(scratch)):
            _measure(name, data_dir, options)


def _datasets(options: argparse.Namespace, scratch: Path) -> list[tuple[str, Path]]:
    if options.data_dir:
        return [("dataset", Path(options.data_dir))]
    if options.tiles:
        trees = {"tiles": options.tiles}
    else:
        trees = {name: scratch / name for name in ("JPEG q95", "PNG")}
        write_tiles(trees, options.size)
    for name, tree in trees.items():
        build(tree, scratch / f"{name} data", patients_unknown=True, report=lambda line: None)
    return [(name, scratch / f"{name} data") for name in trees]


def write_tiles(trees: dict[str, Path], size: int, photographs: int = 24) -> None:
    """Cuts the same tiles from procedural photographs, as JPEG and as PNG."""
    for photograph in range(photographs):
        image = fundus_photograph(photograph, 8 * size)
        rng = np.random.default_rng(photograph)
        for tree in trees.values():
            (tree / "synthetic" / f"p{photograph:02d}").mkdir(parents=True)
        for number in range(64):
            y, x = rng.integers(2 * size, 5 * size, 2)  # Inside the disc.
            tile = image[y : y + size, x : x + size]
            for name, tree in trees.items():
                suffix = ".png" if name == "PNG" else ".jpg"
                path = tree / "synthetic" / f"p{photograph:02d}" / f"{number:02d}{suffix}"
                path.write_bytes(encode_image(tile, suffix))


def _measure(name: str, data_dir: Path, options: argparse.Namespace) -> None:
    dataset = pipeline.open_dataset(data_dir)
    source = dataset.source("train")
    count = min(len(source), 4096)
    images = [
        np.frombuffer(
            tf_example_pb2.Example.FromString(source[number])
            .features.feature["image"]
            .bytes_list.value[0],
            np.uint8,
        )
        for number in range(count)
    ]
    batches = pipeline.train_batches(
        dataset, size=options.size, seed=0, batch_size=options.batch_size, threads=options.threads
    )
    limits, ours = [], []
    for _ in range(options.repeats):
        limits.append(_decode(images, options.threads, options.seconds))
        ours.append(_take(batches, options.threads, options.seconds))
    ratio = statistics.median(our / limit for our, limit in zip(ours, limits, strict=True))
    size = statistics.mean(map(len, images)) / 1000
    limit, our = statistics.median(limits), statistics.median(ours)
    print(f"{name:>12}{size:>9.1f}{limit:>9.0f}{our:>9.0f}{ratio:>7.2f}", flush=True)


def _decode(images: Sequence[np.ndarray], threads: int, seconds: float) -> float:
    """Returns the tiles/s of decoding alone."""
    done = [0] * threads
    began = time.perf_counter()

    def work(thread: int) -> None:
        while time.perf_counter() < began + seconds:
            for image in images[thread :: threads * 8]:
                cv2.imdecode(image, cv2.IMREAD_COLOR)
                done[thread] += 1

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - began)


def _take(batches, threads: int, seconds: float) -> float:
    """Returns the tiles/s of the pipeline, without the batches that were ready at the start."""
    for _ in range(4 * threads):
        next(batches)
    done, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        done += len(next(batches)["image"])
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
