"""A variational autoencoder for retinal fundus photographs.

import vae
model = vae.load_model("runs/fundus256")
latents = model.encode(tiles)              # uint8 [N, H, W, 3] -> float32 [N, H/8, W/8, C]
tiles = model.decode(latents)              # -> uint8 [N, H, W, 3]
photograph = model.reconstruct(photograph) # uint8 [H, W, 3] of any size, without seams
clear = vae.load_enhancer().enhance(photograph)
tiles = vae.load_sampler().sample(16, seed=0)  # synthetic tiles
vae.presets()  # the bundled models
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.weights import presets

__version__ = "0.1.0"
__all__ = [
    "EnhancementModel",
    "Model",
    "Sampler",
    "load_enhancer",
    "load_model",
    "load_sampler",
    "presets",
]

# In a checkout `vae.data` and `vae.configs` are the folders data/ and configs/ next to this
# package. An installed package contains them.
if (_CHECKOUT := Path(__file__).resolve().parents[1]).joinpath("run_experiment.py").is_file():
    __path__.append(str(_CHECKOUT))

if TYPE_CHECKING:
    from vae.inference.enhance import EnhancementModel, load_enhancer
    from vae.inference.model import Model, load_model
    from vae.inference.sample import Sampler, load_sampler


def __getattr__(name: str) -> Any:
    # Lazy imports, so that commands which only cut or build tiles do not wait for JAX.
    if name in __all__:
        from vae.inference import enhance, model, sample

        return next(getattr(m, name) for m in (model, enhance, sample) if hasattr(m, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
