"""Options that several commands share."""

import argparse

from vae.weights import DEFAULT, NAMES

MODELS = (
    "a run's workdir, checkpoints/STEP in it, an exported .safetensors file, what "
    f"convert_torch_checkpoint wrote, or weights that ship: {', '.join(NAMES)}"
)


def add_model(parser: argparse.ArgumentParser, which: str = "") -> None:
    """Registers `--model`, which may be left out; `which` is said before what it can be."""
    parser.add_argument(
        "--model", default=DEFAULT, metavar="M", help=f"{which}{MODELS} ({DEFAULT.stem})"
    )
