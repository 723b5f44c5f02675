"""Speed of the training step: tiles/s, FLOPs, GFLOP/s, MFU.

    python benchmarks/train_step.py [--preset f8c32] [--crop 256] [--batch_size 4]

On a CPU with torch and diffusers installed, the step of a full-resolution KL autoencoder in PyTorch
with the same latent size runs in turn, so that the ratio holds on a noisy machine: diffusers'
AutoencoderKL, block_out_channels 64-128-128-128, one layer per block, batch 1.
"""

import argparse
import importlib.util
import statistics

import jax
from common import crops, seconds, training_step

from vae.configs.fundus256 import LATENT_CHANNELS, get_config
from vae.tasks.linear_initialization import fit_linear

# Dense peak of the compute dtype, FLOP/s per device, from the makers' data sheets.
PEAK = {
    ("H100", "bfloat16"): 989e12,
    ("H100", "float32"): 494e12,  # TF32
    ("H200", "bfloat16"): 989e12,
    ("H200", "float32"): 494e12,
    ("A100", "bfloat16"): 312e12,
    ("A100", "float32"): 156e12,
    ("TPU v4", "bfloat16"): 275e12,
    ("TPU v5 lite", "bfloat16"): 197e12,
    ("TPU v5p", "bfloat16"): 459e12,
}


def our_step(arguments):
    """Returns (a function that takes one step and waits for it, FLOPs of a step)."""
    config = get_config(arguments.preset)
    config.batch_size, config.data.crop = arguments.batch_size, arguments.crop
    config.data.size = max(config.data.size, arguments.crop)
    config.data.scales = (1,)  # other scales only add the cost of cropping
    config.train.compute_dtype = arguments.dtype
    tiles = crops(config.batch_size, config.data.size)
    return training_step(config, tiles, fit_linear(config, lambda: [tiles]))


def torch_step(latent_channels: int):
    """Returns a step of the PyTorch autoencoder at batch 1: AdamW on MSE + KL."""
    import torch
    from diffusers import AutoencoderKL

    widths = (64, 128, 128, 128)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latent_channels,
    )
    parameters = sum(p.numel() for p in model.parameters())
    print(f"PyTorch {torch.__version__}: {parameters:,} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images = torch.rand(1, 3, 256, 256) * 2 - 1

    def step():
        posterior = model.encode(images).latent_dist
        output = model.decode(posterior.sample()).sample
        loss = (output - images).square().mean() + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=LATENT_CHANNELS, default="f8c32")
    parser.add_argument("--crop", type=int, default=256, help="pixels")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    device = jax.devices()[0].device_kind
    ours, flops = our_step(arguments)
    beside = None
    found = all(map(importlib.util.find_spec, ("torch", "diffusers")))
    if jax.default_backend() == "cpu" and found:
        beside = torch_step(LATENT_CHANNELS[arguments.preset])
    for step in (ours, beside):
        if step is not None:
            step()
    times, other_times = [], []
    for _ in range(arguments.repeats):
        times.append(seconds(ours))
        if beside is not None:
            other_times.append(seconds(beside))

    pixels = arguments.crop**2 / 256**2  # rates count tiles of 256 x 256 for any crop
    tiles = arguments.batch_size * pixels
    rate = tiles / statistics.median(times)
    achieved = flops / statistics.median(times)
    print(
        f"{jax.device_count()} x {device}, {arguments.preset}, crop {arguments.crop}, "
        f"batch {arguments.batch_size}, {arguments.dtype}, medians of {arguments.repeats}"
    )
    print(
        f"ours     {rate:10.2f} tiles/s   {flops / tiles / 1e9:.1f} GFLOP a tile   "
        f"{achieved / 1e9:,.0f} GFLOP/s"
    )
    peaks = [
        peak for (name, dtype), peak in PEAK.items() if name in device and dtype == arguments.dtype
    ]
    if peaks:
        share = achieved / jax.device_count() / peaks[0]
        print(f"MFU      {share:10.1%} of {peaks[0] / 1e12:.0f} TFLOP/s")
    else:
        print(f"MFU             -   the peak of {device!r} is not known")
    if other_times:
        ratios = [tiles * b / a for a, b in zip(times, other_times, strict=True)]
        print(f"PyTorch  {1 / statistics.median(other_times):10.2f} tiles/s")
        print(
            f"ours / PyTorch, pair by pair: median {statistics.median(ratios):.1f}, "
            f"{min(ratios):.1f} to {max(ratios):.1f}"
        )


if __name__ == "__main__":
    main()
