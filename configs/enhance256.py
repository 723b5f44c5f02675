"""Enhancement: a degraded photograph made clear, trained on clean tiles that are degraded on the
device.

    --config=configs/enhance256.py[:preset] --config.data.dir=DIR

The dataset needs the photographs' views, which `fundus-vae make-tiles` and `build` store. Presets:
`f8c32` (the default) has the sizes of that reconstruction model and can start from its weights
(`--config.init_from=f8c32`). Of the same model, `tone` teaches the tone stage alone, from views,
`sharpening` what undoes blur, from what the tone stage makes of tiles, and `detail` the detail
stage alone, from tiles that are blurred, spotted, noisy, reduced or coded but neither dark nor
hazy: run `tone`, then `sharpening` with `--config.init_from` of that, and so on to `detail` and
`f8c32`. `smoke` runs everything once within seconds on data of its own. What is degraded, how
often and how much is `config.degrade`.
"""

from ml_collections import ConfigDict

from vae.checkpoints.config import ENHANCER, default_config, make_brief
from vae.data.errors import UsageError

PRESETS = ("f8c32", "tone", "sharpening", "detail", "smoke")
# What the tone stage undoes.
TONES = ("haze", "illumination", "colour_cast", "low_contrast")


def get_config(preset: str = "f8c32") -> ConfigDict:
    """The configuration of a preset; all of them can be changed by `--config.x.y=...`."""
    if preset not in PRESETS:
        raise UsageError(f"enhance256.py:{preset} is no preset; there are {', '.join(PRESETS)}")
    config = default_config(ENHANCER)
    config.name = "enhance256" if preset == "f8c32" else f"enhance256_{preset}"
    config.data.crop = 128
    config.data.scales = (1, 1, 2)
    config.batch_size = 256
    config.model.filters = config.model.sharpening = True
    config.optimizer.name = "muon"
    # Errors are large in some examples and small in others: each counts by its own scale, or the
    # first alone would be seen, and good photographs made a little worse; and its details by
    # theirs, or those of dark and hazy ones would teach nothing.
    config.loss.likelihood = "own_details"
    # The decoder sees the image: at full price the latent would be left empty.
    config.loss.beta = 0.1
    if preset in ("tone", "sharpening", "detail"):
        config.loss.likelihood = "own_gaussian"
    if preset == "tone":
        config.train.views = 8
    if preset in ("sharpening", "detail"):
        config.optimizer.tone_multiplier = 0.0
    if preset == "sharpening":
        # The more of a photograph, the clearer is its spectrum; there is little to compute.
        config.data.crop = 224
        config.data.scales = (1,)
        config.degrade.alone = 0.8
        config.train.sharpening = True
        config.optimizer.name = "adam"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.weight_decay = 0.0  # the other stages stay as they are
    if preset == "detail":
        config.optimizer.sharpening_multiplier = 0.0
        config.degrade.alone = 0.7
        for name in TONES:
            config.degrade[name] = 0.0
    if preset == "smoke":
        _smoke(config)
    return config


def _smoke(config: ConfigDict) -> None:
    """As small as it can be with every part taking part."""
    make_brief(config)
    config.data.crop = 32
    config.data.scales = (1, 2)
    config.model.latent_channels = 8
    config.model.width = 16
    config.model.deep_width = 16
    config.model.tone_width = 8
    config.model.encoder_depth = (1, 1)
    config.model.decoder_depth = (1, 1)
