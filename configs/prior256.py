"""Sampling: a prior over the latents of a trained autoencoder, by flow matching.

    --config=configs/prior256.py[:preset] --config.data.dir=DIR [--config.prior.autoencoder=MODEL]

Presets: `f8c4` (the default) is a prior of the autoencoder of that name that ships, small enough to
be trained on a CPU; `large` the same for an accelerator and many tiles; `smoke` runs everything
once within seconds on data of its own.
"""

from ml_collections import ConfigDict

from vae.checkpoints.config import PRIOR, default_config, make_brief
from vae.data.errors import UsageError

PRESETS = ("f8c4", "large", "smoke")


def get_config(preset: str = "f8c4") -> ConfigDict:
    """The configuration of a preset; all of them can be changed by `--config.x.y=...`."""
    if preset not in PRESETS:
        raise UsageError(f"prior256.py:{preset} is no preset; there are {', '.join(PRESETS)}")
    config = default_config(PRIOR)
    config.name = "prior256" if preset == "f8c4" else f"prior256_{preset}"
    config.batch_size = 64
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 3e-3
    config.eval.batch_size = 16
    if preset == "large":
        config.model.widths = (96, 192, 384, 512)
        config.model.depths = (2, 2, 3, 3)
        config.model.heads = 8
        config.batch_size = 256
        config.prior.draws = 1
        config.optimizer.learning_rate = 1e-3
        config.train.ema_decay = 0.9999
    elif preset == "smoke":
        _smoke(config)
    return config


def _smoke(config: ConfigDict) -> None:
    """As small as it can be with every part taking part."""
    make_brief(config)
    config.data.crop = 64
    config.model.widths = (8, 16)
    config.model.depths = (1, 1)
    config.model.heads = 2
    config.prior.sample_steps = 4
