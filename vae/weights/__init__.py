"""The bundled weights. README.md in this folder is their model card."""

from pathlib import Path

FOLDER = Path(__file__).parent
# The bundled models and what each is for. The others than `NAMES` are no autoencoders.
PRESETS = {
    "f8c4": "autoencoder, 48:1: the fewest latents; fine vessels and texture are weakened",
    "f8c8": "autoencoder, 24:1: fewer latents, with the same weakening",
    "f8c16": "autoencoder, 12:1: few latents, for clustering, small classifiers, priors",
    "f8c32": "autoencoder, 6:1: the default, for reconstructions and downstream models",
    "f8c48": "autoencoder, 4:1: the best reconstruction",
    "enhance": "enhancer of dark, hazy, blurred or noisy photographs: vae.load_enhancer()",
    "prior": "prior over the latents of f8c4, for drawing new tiles: vae.load_sampler()",
}
NAMES = tuple(name for name, use in PRESETS.items() if use.startswith("autoencoder"))
# The default reconstruction model: a file path, which no local folder can shadow.
DEFAULT = FOLDER / "f8c32.safetensors"
# The default enhancer, and the default prior for sampling.
ENHANCE = FOLDER / "enhance.safetensors"
SAMPLE = FOLDER / "prior.safetensors"


def bundled_file(name: str) -> Path | None:
    """Returns the file of the bundled weights of this name; None for another name."""
    return FOLDER / f"{name}.safetensors" if name in PRESETS else None


def presets() -> dict[str, str]:
    """Returns the bundled models: each name, and in a few words what it is and is for."""
    return dict(PRESETS)
