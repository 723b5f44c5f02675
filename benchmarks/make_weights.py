"""Makes the bundled weights: trains each preset to the end of its schedule, then exports it.

    python benchmarks/make_weights.py --data_dir dataset --workdir runs/weights --out vae/weights \\
        [--gpu] [--minutes 90] [f8c4:600 f8c8 ...] [--set loss.beta=0.5 ...]

Each preset is one run of `run_experiment.py`, whose command is printed and stored in the file, and
one `fundus-vae export`. The presets are made one after the other, PRESET:STEPS with another number
of steps. The same command continues where it was stopped: exported presets are skipped, and a run
continues from its last checkpoint. A run that reaches its minutes before its last step is not
exported.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from vae.configs.fundus256 import LATENT_CHANNELS

ROOT = Path(__file__).resolve().parents[1]
# Small crops and batches for CPU cores; large ones, and all tiles in memory, for one accelerator.
CPU = {
    "data.crop": 64,
    "batch_size": 32,
    "train.ema_decay": 0.99,
    "train.checkpoint_every": 200,
    "eval.batch_size": 8,
    "eval.limit": 64,
}
GPU = {
    "data.crop": 128,
    "batch_size": 256,
    "data.on_device": True,
    "train.compute_dtype": "bfloat16",
}
CPU_STEPS, GPU_STEPS = 4000, 3000


def run(*command: str) -> None:
    """Prints and runs a command; ends this process if it fails."""
    print("$", shlex.join(command), flush=True)
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def make(preset: str, steps: int, options: argparse.Namespace, made: Path) -> None:
    """Trains a preset, or continues its run, and exports it as the file `made`."""
    workdir = options.workdir / preset
    settings = (GPU if options.gpu else CPU) | {
        "data.dir": str(options.data_dir),
        "train.steps": steps,
        "train.max_minutes": options.minutes,
        # At step 0 and at the end: the run says if it ends worse than its start.
        "eval.every": steps,
    }
    run(
        "run_experiment.py",
        f"--config=configs/fundus256.py:{preset}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
        *(f"--config.{setting}" for setting in options.set),
    )
    if not (workdir / "checkpoints" / str(steps)).exists():
        sys.exit(f"{preset}: {options.minutes:g} minutes ended before step {steps}; the same "
                 "command continues")  # fmt: skip
    run("-m", "vae.cli", "export", str(workdir), "--out", str(made), "--dtype", "float16")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="a built dataset")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported files")
    parser.add_argument("--gpu", action="store_true", help="settings for one accelerator")
    parser.add_argument("--minutes", type=float, default=0.0, help="of a run; 0: no limit")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings")
    parser.add_argument("presets", nargs="*", default=list(LATENT_CHANNELS), help="PRESET[:STEPS]")
    options = parser.parse_args()
    for name in ("data_dir", "workdir", "out"):
        setattr(options, name, getattr(options, name).resolve())
    options.out.mkdir(parents=True, exist_ok=True)
    # Ctrl-C goes to the run too, which saves a checkpoint and ends; this process waits for it.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    # A run that is continued compiles nothing again.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.workdir / "jax_cache"))
    for name in options.presets:
        preset, _, steps = name.partition(":")
        if preset not in LATENT_CHANNELS:
            parser.error(f"{preset} is none of {', '.join(LATENT_CHANNELS)}")
        made = options.workdir / f"{preset}.safetensors"
        if not made.exists():
            make(preset, int(steps or (GPU_STEPS if options.gpu else CPU_STEPS)), options, made)
        shutil.copyfile(made, options.out / made.name)
        print(f"{preset}: {options.out / made.name}", flush=True)


if __name__ == "__main__":
    main()
