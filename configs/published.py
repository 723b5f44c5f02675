"""The published architecture with the published recipe, from scratch or from the imported weights.

    --config=configs/published.py --config.data.dir=DIR [--config.init_from=CONVERTED]

ResNet-50 encoder, linear decoder, a vector of 350 latents: 432 million parameters. `tiny` is the
same in small, to try it out.
"""

from ml_collections import ConfigDict

from vae.checkpoints.config import FUNDUS_VAE, default_config
from vae.data.errors import UsageError

PRESETS = ("full", "tiny")


def get_config(preset: str = "full") -> ConfigDict:
    """The configuration of a preset; all of them can be changed by `--config.x.y=...`."""
    if preset not in PRESETS:
        raise UsageError(f"published.py:{preset} is no preset; there are {', '.join(PRESETS)}")
    config = default_config(FUNDUS_VAE)
    config.name = "published"
    config.batch_size = 128
    # Sum of squares in [0, 1] + KL + (1 - SSIM), of each tile. The first is the likelihood of a
    # Gaussian of fixed scale, which this architecture has, up to a constant.
    config.loss.per = "tile"
    config.loss.beta = 1.0
    config.loss.ssim_weight = 1.0
    # Adam as PyTorch has it.
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.train.ema_decay = 0.0  # the published weights are no average, and one takes 1.7 GB
    config.train.keep_checkpoints = 1  # 5.2 GB each
    if preset == "tiny":
        config.name = "published_tiny"
        config.model.update(
            latent_size=16, image_size=32, width=8, stages=(1, 1, 1, 1), head=(32, 16),
            decoder_width=64,
        )  # fmt: skip
        config.data.size = config.data.crop = 32
        config.batch_size = 16
        config.train.steps = 8
        config.eval.batch_size = 16
    return config
