"""The main experiment: an f8 autoencoder of 256-pixel fundus tiles.

    --config=configs/fundus256.py[:preset] --config.data.dir=DIR

Presets by latent size (input values / latent values of a tile): f8c4 48:1, f8c8 24:1, f8c16 12:1,
f8c32 6:1 (the default), f8c48 4:1; `demo` trains on the bundled photograph within minutes on a
CPU; `smoke` runs everything once within seconds on data of its own.
"""

from ml_collections import ConfigDict

from vae.checkpoints.config import default_config, make_brief
from vae.data.errors import UsageError

LATENT_CHANNELS = {"f8c4": 4, "f8c8": 8, "f8c16": 16, "f8c32": 32, "f8c48": 48}
PRESETS = (*LATENT_CHANNELS, "demo", "smoke")


def get_config(preset: str = "f8c32") -> ConfigDict:
    """The configuration of a preset; all of them can be changed by `--config.x.y=...`."""
    if preset not in PRESETS:
        raise UsageError(f"fundus256.py:{preset} is no preset; there are {', '.join(PRESETS)}")
    config = default_config()
    config.name = f"fundus256_{preset}"
    config.model.latent_channels = LATENT_CHANNELS.get(preset, 32)
    config.data.crop = 128
    config.data.scales = (1, 1, 2)
    config.batch_size = 256
    config.optimizer.name = "muon"
    config.loss.ssim_weight = 16.0
    if preset in ("f8c8", "f8c16", "f8c48"):
        config.loss.beta = 0.5
        config.model.decoder_depth = (3, 3)
    if preset in ("f8c8", "f8c16"):
        config.model.encoder_depth = (1, 4)
    if preset in ("f8c16", "f8c48"):
        config.loss.ssim_weight = 32.0
    if preset == "demo":
        _demo(config)
    elif preset == "smoke":
        _smoke(config)
    return config


def _demo(config: ConfigDict) -> None:
    """Two CPU cores, six minutes, one photograph; small crops show more of it in a step."""
    config.data.source = "retina"
    config.data.scales = (1,)
    config.data.crop = 64
    config.batch_size = 32
    config.train.steps = 400
    config.train.max_minutes = 3.0
    config.train.ema_decay = 0.98
    config.train.log_every = 20
    config.train.checkpoint_every = 100
    config.optimizer.warmup_steps = 20
    config.eval.split = "test"  # nothing is chosen by it, and one photograph has no third part
    config.eval.every = 0
    config.eval.batch_size = 8


def _smoke(config: ConfigDict) -> None:
    """As small as it can be with every part taking part."""
    make_brief(config)
    config.data.crop = 32
    config.data.scales = (1,)
    config.model.latent_channels = 8
    config.model.width = 16
    config.model.deep_width = 16
    config.model.encoder_depth = (1, 1)
    config.model.decoder_depth = (1, 1)
