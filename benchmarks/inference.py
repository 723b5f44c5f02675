"""Speed and memory of inference.

    python benchmarks/inference.py [--model PATH] [--quick] [--parts enhance]

Measurements, for an initialized f8c32 unless a model is given: `reconstruct` of a photograph of
3504 x 2336 pixels against the bare compiled functions on tiles, and the command `fundus-vae
reconstruct`; if torch and diffusers are installed, the tiled AutoencoderKL of diffusers with 5M
parameters; `encode` of 20,000 JPEG tiles of a dataset; and the bundled enhancer on the photograph
against its bare function on tiles. Compared programs run in turn, and medians of the pairs' ratios
are printed, so results hold on a noisy machine.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import jax
import numpy as np
import psutil
from common import seconds
from etils import epath

import vae
from vae.checkpoints.modules import initial_variables
from vae.checkpoints.safetensors_io import SavedModel, write_safetensors
from vae.configs.fundus256 import get_config
from vae.data.fov import find_fov
from vae.data.images import encode_image, write_image
from vae.data.inputs import open_inputs
from vae.data.synthetic import fundus_photograph
from vae.inference.batches import MAX_BATCH
from vae.inference.enhance import load_enhancer
from vae.inference.model import Model
from vae.inference.windows import LARGEST, STEP, window_origins, window_side
from vae.tasks import task_of
from vae.tasks.linear_initialization import fit_linear
from vae.training.train_state import initial_state

HEIGHT, WIDTH, TILE = 2336, 3504, 256
PARTS = ("reconstruct", "enhance", "torch", "encode")


def fresh_model(photograph: np.ndarray) -> Model:
    """Returns an f8c32 after initialization: as fast as a trained model."""
    config = get_config()
    tiles = photograph[None, :1024, 1000:2024]
    fit = fit_linear(config, lambda: [tiles])
    state = initial_state(task_of(config), initial_variables(config, fit))
    return Model(
        SavedModel(
            path=epath.Path("fresh"), config=config, step=0, variables=state.variables,
            **jax.tree.map(np.asarray, state.statistics),
            provenance={},
        )
    )  # fmt: skip


def halo_overhead(model: Model) -> tuple[float, float]:
    """Returns how many pixels encoder and decoder compute per pixel of the photograph."""
    f, module = model.downsample, model._module
    ratios = []
    for halo in (-(-module.encoder_halo // f), module.decoder_halo):
        computed = 1
        for length in (HEIGHT // f, WIDTH // f):
            side = window_side(length, halo, largest=LARGEST // f, step=STEP // f)
            computed *= side * len(window_origins(length, side, halo))
        ratios.append(computed * f * f / (HEIGHT * WIDTH))
    return ratios[0], ratios[1]


def photograph_beside_tiles(model: Model, photograph: np.ndarray, repeats: int) -> None:
    """Prints the rate of `reconstruct` on a photograph next to that of the bare functions."""
    tiles = HEIGHT * WIDTH / TILE**2
    best = {}
    for batch in (1, 4, MAX_BATCH):  # the bare functions are measured at their fastest batch size
        images = np.stack([photograph[i : i + TILE, 1000:1256] for i in range(batch)])
        latents = model._encode(images).mean

        def encode(images=images):
            jax.block_until_ready(model._encode(images))

        def decode(latents=latents):
            jax.block_until_ready(model._decode(latents))

        for name, function in (("encode", encode), ("decode", decode)):
            function()
            rate = batch / min(seconds(function) for _ in range(3))
            best[name] = max(best.get(name, (0.0, 0, function)), (rate, batch, function),
                             key=lambda entry: entry[0])  # fmt: skip
    encoder, decoder = halo_overhead(model)
    model.reconstruct(photograph)  # compiles
    rates, shares = [], []
    for _ in range(repeats):
        bare = {}
        for name, (_, batch, function) in best.items():
            calls = max(4, 64 // batch)
            bare[name] = (
                seconds(lambda f=function, n=calls: [f() for _ in range(n)]) / calls / batch
            )
        spent = seconds(lambda: model.reconstruct(photograph))
        rates.append((1 / sum(bare.values()), tiles / spent))
        shares.append(tiles * (encoder * bare["encode"] + decoder * bare["decode"]) / spent)
    bare, ours = (statistics.median(column) for column in zip(*rates, strict=True))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{device}, {model.saved.config.name}, medians of {repeats}, tiles of {TILE} x {TILE}")
    batches = ", ".join(f"{name} {entry[1]}" for name, entry in best.items())
    print(f"bare encode + decode            {bare:7.2f} tiles/s   (batches: {batches})")
    print(f"reconstruct {WIDTH} x {HEIGHT}         {ours:7.2f} tiles/s   {tiles / ours:.2f} s")
    print(f"halo: {encoder - 1:.1%} more pixels encoded, {decoder - 1:.1%} more decoded; "
          f"without it {statistics.median(shares):.2f} of the bare rate")  # fmt: skip


def command_line(model: Model, photograph: np.ndarray, folder: Path) -> None:
    """Prints time and peak memory of the command in a new process, on one photograph."""
    exported = folder / "model.safetensors"
    write_safetensors(exported, model.saved)
    write_image(folder / "eye.jpg", photograph)
    command = [sys.executable, "-m", "vae.cli", "reconstruct", str(folder / "eye.jpg"),
               "--model", str(exported), "--out", str(folder / "out")]  # fmt: skip
    spent = seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"fundus-vae reconstruct eye.jpg  {spent:7.1f} s with start, compilation, metrics and "
          f"pictures; peak {peak:.2f} GiB resident")  # fmt: skip


def torch_beside(photograph: np.ndarray, model: Model, side: int, repeats: int) -> None:
    """Prints rates of diffusers' tiled AutoencoderKL and of ours on a square of the photograph."""
    import torch
    from diffusers import AutoencoderKL

    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 128, 128, 128),
        layers_per_block=1,
        latent_channels=model.latent_channels,
        sample_size=512,  # the side of its tiles, which overlap by a quarter
    ).eval()
    theirs.enable_tiling()
    image = np.ascontiguousarray(photograph[400 : 400 + side, 1200 : 1200 + side])
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1

    @torch.inference_mode()
    def run():
        theirs.decode(theirs.encode(tensor).latent_dist.mean)

    model.reconstruct(image)
    pairs = [(seconds(lambda: model.reconstruct(image)), seconds(run)) for _ in range(repeats)]
    ours, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    tiles = side**2 / TILE**2
    ratio = statistics.median(b / a for a, b in pairs)
    size = sum(p.numel() for p in theirs.parameters()) / 1e6
    print(f"{side} x {side}: ours {tiles / ours:.2f} tiles/s; PyTorch {torch.__version__}, "
          f"diffusers' tiled AutoencoderKL of {size:.1f}M parameters {tiles / other:.2f} tiles/s; "
          f"ours / theirs {ratio:.1f}")  # fmt: skip


def encode_dataset(model: Model, photograph: np.ndarray, count: int, folder: Path) -> None:
    """Prints rate and memory of `encode` on a dataset, next to the rate of the bare function."""
    from vae.data.fundus_tiles.build import build
    from vae.inference.latent_store import FORMAT
    from vae.inference.latent_writer import open_writer
    from vae.inference.latents import describe_model, encode_inputs

    rng = np.random.default_rng(0)
    files = []
    for y, x in zip(rng.integers(300, 1700, 500), rng.integers(700, 2500, 500), strict=True):
        files.append(encode_image(photograph[y : y + TILE, x : x + TILE], ".jpg"))
    for number, file in enumerate(itertools.islice(itertools.cycle(files), count)):
        path = folder / "tiles" / "benchmark" / f"p{number // 200:05d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    with contextlib.redirect_stderr(io.StringIO()):
        build(
            folder / "tiles", folder / "data", patients_unknown=True, val=0, test=0,
            report=lambda line: None,
        )  # fmt: skip
    inputs = open_inputs([folder / "data"])
    images = np.stack([item.image for item in itertools.islice(inputs.read(), MAX_BATCH)])
    calls = 8 if count < 5000 else 64

    def bare() -> float:
        def run():
            for _ in range(calls):
                jax.device_get(model._encode(images).mean)

        return calls * MAX_BATCH / seconds(run)

    about = {"format": FORMAT, **describe_model(model), "inputs": [], "split": None,
             "count": len(inputs), "dtype": "float32", "log_var": False, "quantise": None,
             "keep_border": False, "fov": "auto", "fov_mask": None, "max_lost_share": 1,
             "version": vae.__version__, "command": "benchmark"}  # fmt: skip
    before = bare()
    with Resident() as memory:
        writer = open_writer(folder / "latents.zarr", about)
        spent = seconds(lambda: encode_inputs(model, inputs, writer))
    after = bare()
    megabytes = [sample / 2**20 for sample in memory.samples[len(memory.samples) // 4 :]]
    print(f"encode {count:,} JPEG tiles      {count / spent:7.1f} tiles/s, bare encoder "
          f"{before:.1f} before and {after:.1f} after: {2 * count / spent / (before + after):.2f} "
          f"of it; {megabytes[0]:,.0f} MiB resident after a quarter, {max(megabytes):,.0f} "
          f"at most, {megabytes[-1]:,.0f} at the end")  # fmt: skip


def enhance_photograph(photograph: np.ndarray, repeats: int, folder: Path) -> None:
    """Prints time and memory of `enhance`."""
    model, fov = load_enhancer(), find_fov(photograph)
    tiles = HEIGHT * WIDTH / TILE**2
    whole = lambda: model.enhance(photograph, fov)  # noqa: E731
    whole()
    spent = statistics.median(seconds(whole) for _ in range(repeats))
    print(f"enhance {WIDTH} x {HEIGHT}             {tiles / spent:7.2f} tiles/s   {spent:.2f} s")
    write_image(folder / "eye.jpg", photograph)
    program = ("import resource, sys; from vae.cli import main; main(sys.argv[1:]); "
               "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")  # fmt: skip
    command = [sys.executable, "-c", program, "enhance", str(folder / "eye.jpg"), "--out",
               str(folder / "enhanced")]  # fmt: skip
    printed: list[str] = []
    spent = seconds(lambda: printed.append(subprocess.check_output(command, text=True)))
    peak = int(printed[0].split()[-1]) / 2**20
    print(f"fundus-vae enhance eye.jpg      {spent:7.1f} s with start, compilation and pictures; "
          f"peak {peak:.2f} GiB resident")  # fmt: skip


class Resident:
    """Context manager that samples this process's resident memory, in bytes."""

    def __init__(self):
        self.samples: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Resident":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process(os.getpid())
        while not self._done.wait(0.2):
            self.samples.append(process.memory_info().rss)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="for vae.load_model (default: an initialized f8c32)")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, 1,000 tiles")
    parser.add_argument("--scratch", help="folder for a temporary dataset of 1 GB")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    options = parser.parse_args()

    eye = fundus_photograph(0, HEIGHT)
    photograph = np.pad(eye, ((0, 0), (0, WIDTH - HEIGHT), (0, 0)), mode="wrap")
    model = vae.load_model(options.model) if options.model else fresh_model(photograph)
    repeats = 3 if options.quick else 7
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        if "reconstruct" in options.parts:
            command_line(model, photograph, Path(scratch))
            photograph_beside_tiles(model, photograph, repeats)
        if "enhance" in options.parts:
            enhance_photograph(photograph, repeats, Path(scratch))
        found = all(map(importlib.util.find_spec, ("torch", "diffusers")))
        if "torch" in options.parts and jax.default_backend() == "cpu" and found:
            torch_beside(
                photograph, model, 512 if options.quick else 1024, 2 if options.quick else 5
            )
        if "encode" in options.parts:
            encode_dataset(model, photograph, 1_000 if options.quick else 20_000, Path(scratch))


if __name__ == "__main__":
    main()
