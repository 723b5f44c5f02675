"""Speed of the published architecture compared with the same PyTorch module.

    python benchmarks/published_step.py [--batch_size 16] [--what forward step] [--rounds 5]

forward: encode, and decode the mean. step: the published recipe, sum of squares + KL + (1 - SSIM),
gradients clipped to a norm of 1, Adam. Both frameworks take turns, so that the ratio holds on a
noisy machine. Each turn is a separate process, so that 12 GB of memory are enough for a step.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import crops, seconds, training_step
from published_loss import published_loss

from vae.checkpoints.modules import initial_variables
from vae.configs.published import get_config
from vae.convert_torch_checkpoint.torch_module import PublishedVAE
from vae.models import FundusVAE


def our_forward(images: np.ndarray) -> Callable[[], None]:
    model, config = FundusVAE(), get_config()
    variables = jax.jit(lambda: initial_variables(config))()
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    forward = jax.jit(model.apply)
    return lambda: jax.block_until_ready(forward(variables, x))


def their_forward(images: np.ndarray) -> Callable[[], None]:
    module = PublishedVAE(FundusVAE()).eval()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255

    def forward():
        with torch.inference_mode():
            module.decode(module.encode(x)[0])

    return forward


def our_step(images: np.ndarray) -> Callable[[], None]:
    config = get_config()
    config.batch_size, config.data.augment = len(images), False
    return training_step(config, images)[0]


def their_step(images: np.ndarray) -> Callable[[], None]:
    module = PublishedVAE(FundusVAE()).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-4)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def step():
        target = x.float() / 255
        mean, log_var = module.encode(target)
        image = module.decode(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
        loss = published_loss(target, image, mean, log_var).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return step


MAKERS = {
    ("forward", "ours"): our_forward,
    ("forward", "PyTorch"): their_forward,
    ("step", "ours"): our_step,
    ("step", "PyTorch"): their_step,
}


def timed(what: str, who: str, batch_size: int, repeats: int) -> list[float]:
    """Returns the seconds of each repeat in this process, after one call that compiles."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    function = MAKERS[what, who](crops(batch_size, 256))
    function()
    return [seconds(function) for _ in range(repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="turns per framework")
    parser.add_argument("--repeats", type=int, default=2, help="repeats within a turn")
    what = ("forward", "step")
    parser.add_argument("--what", nargs="+", choices=what, default=what)
    parser.add_argument("--who", choices=("ours", "PyTorch"), help="run one turn, print JSON")
    arguments = parser.parse_args()
    if arguments.who:
        function = arguments.what[0]
        times = timed(function, arguments.who, arguments.batch_size, arguments.repeats)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": statistics.median(times), "peak": peak}))
        return
    print(
        f"{len(os.sched_getaffinity(0))} cores, batch {arguments.batch_size}, float32, "
        f"medians of {arguments.rounds} rounds of {arguments.repeats}"
    )
    for function in arguments.what:
        compare(function, arguments)


def compare(what: str, arguments: argparse.Namespace) -> None:
    """Runs both in turn, in separate processes, and prints rates, peak memory and ratios."""
    turns = {"ours": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        for _ in range(arguments.rounds):
            for who, results in turns.items():
                command = [sys.executable, __file__, "--who", who, "--what", what]
                command += ["--batch_size", str(arguments.batch_size)]
                command += ["--repeats", str(arguments.repeats)]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
                results.append(json.loads(done.stdout))
    for who, results in turns.items():
        rate = arguments.batch_size / statistics.median(turn["seconds"] for turn in results)
        peak = max(turn["peak"] for turn in results)
        print(f"{what:8} {who:8} {rate:6.2f} tiles/s, peak {peak / 1e9:.1f} GB")
    pairs = zip(turns["ours"], turns["PyTorch"], strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    print(
        f"{what:8} ours / PyTorch, pair by pair: median {statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
