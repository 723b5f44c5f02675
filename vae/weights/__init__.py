"""The bundled weights. README.md in this folder is their model card."""

from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("f8c4", "f8c8", "f8c16", "f8c32", "f8c48")
# The default reconstruction model: a file path, which no local folder can shadow.
DEFAULT = FOLDER / "f8c32.safetensors"
# The default enhancer, and the default prior for sampling.
ENHANCE = FOLDER / "enhance.safetensors"
SAMPLE = FOLDER / "prior.safetensors"


def bundled_file(name: str) -> Path | None:
    """Returns the file of the bundled weights of this name; None for another name."""
    others = (ENHANCE.stem, SAMPLE.stem)
    return FOLDER / f"{name}.safetensors" if name in (*NAMES, *others) else None
