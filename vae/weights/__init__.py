"""The weights that come with the package. README.md beside this file is their model card."""

from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("f8c4", "f8c8", "f8c16", "f8c32", "f8c48")
# The reconstruction model wherever none is named: a file, so that no folder can take its place.
DEFAULT = FOLDER / "f8c32.safetensors"
# The enhancer, and the prior that new tiles are drawn from, likewise.
ENHANCE = FOLDER / "enhance.safetensors"
SAMPLE = FOLDER / "prior.safetensors"


def shipped(name: str) -> Path | None:
    """The file of the weights of that name; None where the package has none."""
    others = (ENHANCE.stem, SAMPLE.stem)
    return FOLDER / f"{name}.safetensors" if name in (*NAMES, *others) else None
