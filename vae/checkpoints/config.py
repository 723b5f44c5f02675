"""Every setting of a run with its default."""

from typing import Any

from ml_collections import ConfigDict

AUTOENCODER_KL = "autoencoder_kl"
FUNDUS_VAE = "fundus_vae"
ENHANCER = "enhancer"
PRIOR = "prior"

# Limits on the sizes that a saved model may claim; far above any that is trained here.
LARGEST_SIZE = 1 << 14
LARGEST = {
    "downsample": 64,
    "linear_kernel": 64,
    "encoder_depth": 256,
    "decoder_depth": 256,
    "stages": 256,
    "depths": 256,
}
LONGEST = 16


def default_config(architecture: str = AUTOENCODER_KL) -> ConfigDict:
    """The defaults; a config file changes what it is about and leaves the rest.

    Args:
      architecture: Whose `config.model`: "autoencoder_kl", "fundus_vae", "enhancer", which has
        `config.degrade` besides, or "prior", which has `config.prior` besides and no use for
        `config.loss`.
    """
    config = ConfigDict()
    config.name = "fundus256"
    config.task = _TASKS[architecture]  # the module of what is trained
    config.seed = 0
    # A model (workdir, checkpoint) to start from instead of the best linear codec.
    config.init_from = ""

    config.model = _MODELS[architecture]()
    if architecture == ENHANCER:
        config.degrade = _degrade()
    if architecture == PRIOR:
        config.prior = _prior_settings()

    config.data = ConfigDict()
    config.data.dir = ""  # what `fundus-vae build --data_dir` wrote; may be gs://bucket/folder
    config.data.masked_dir = ""  # the same tiles masked, for train.mask="tiles"
    config.data.cache_dir = ""  # a local folder: copy the datasets there and read the copies
    # Send all training tiles to the devices once, where an autoencoder's fit into their memory.
    config.data.on_device = False
    config.data.source = ""  # "retina" or "synthetic": make the data in the workdir instead
    config.data.size = 256  # tiles are cropped to this, pixels
    config.data.crop = 256  # a training example is a random crop of this size, pixels
    # What examples are shrunk by, as cameras of fewer pixels see; (1, 1, 2): every third by 2.
    config.data.scales = (1,)
    config.data.augment = True  # flips and quarter turns
    config.data.threads = 0  # 0: one a core
    config.data.pca_tiles = 1024

    config.batch_size = 64  # global, over all devices and hosts

    config.loss = ConfigDict()
    config.loss.likelihood = "gaussian"
    config.loss.beta = 1.0
    config.loss.ssim_weight = 4.0
    # What the optimizer sees: nats per input "value", or per "tile" as most trainers sum them.
    config.loss.per = "value"

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # or "muon", for the kernels; adam for the rest
    config.optimizer.learning_rate = 3e-3
    config.optimizer.linear_multiplier = 0.01  # of the linear path; 0 freezes it
    config.optimizer.tone_multiplier = 1.0  # of an enhancer's tone stage; 0 freezes it
    config.optimizer.sharpening_multiplier = 1.0  # of its sharpening, likewise
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.muon_beta = 0.95  # muon's momentum
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0  # of the gradient in nats per value; 0: no clipping

    config.train = ConfigDict()
    config.train.steps = 100_000
    config.train.max_minutes = 0.0  # stop early when the training took this long; 0: no limit
    config.train.accumulate = 1  # gradient of a batch in this many parts
    config.train.compute_dtype = "float32"  # of the convolutions
    config.train.ema_decay = 0.999  # 0: no average, and no memory for one
    # So many draws of each photograph's view, and an enhancer's tone stage alone learns; 0: tiles.
    config.train.views = 0
    # An enhancer's sharpening alone learns, to undo what blurs and to leave all else.
    config.train.sharpening = False
    config.train.mask = ""  # what the encoder does not see: "" nothing, "squares", "tiles"
    # Bitwise repeatable on GPUs too, slower; run_experiment.py passes it to XLA at the start.
    config.train.deterministic = False
    config.train.log_every = 50
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 3
    config.train.tensorboard = True  # where tensorflow is installed
    config.train.profile = False  # trace steps 10 to 15 into the workdir

    config.mesh = ConfigDict()
    config.mesh.data = -1  # -1: all devices that fsdp leaves
    config.mesh.fsdp = 1
    config.mesh.fsdp_min_size = 2**16  # leaves of fewer values are replicated

    config.eval = ConfigDict()
    config.eval.split = "val"
    config.eval.every = 5000  # steps; 0: only at the end
    config.eval.limit = 512  # tiles of a scheduled evaluation; 0: all
    config.eval.batch_size = 32
    config.eval.photographs = 16  # so many whole ones at the end, where they can be found
    return config


def make_brief(config: ConfigDict) -> None:
    """A run of seconds, on tiles of its own making, in which all that a run does happens once."""
    config.data.source = "synthetic"
    config.data.size = 64
    config.batch_size = 8
    config.train.steps = 8
    config.train.log_every = 2
    config.train.checkpoint_every = 4
    config.optimizer.warmup_steps = 2
    config.eval.every = 4
    config.eval.limit = 8
    config.eval.batch_size = 8


def from_dict(stored: dict[str, Any]) -> ConfigDict:
    """A config from what `to_dict` gave; settings that are newer than it have their defaults.

    Raises:
      AttributeError, KeyError, TypeError, ValueError: It is no config of this version, or says that
        the model is larger than any.
    """
    architecture = stored["model"].get("architecture", AUTOENCODER_KL)
    config = default_config(architecture)
    config.update(_tuples(stored))
    _check_sizes(config)
    return config


def _check_sizes(config: ConfigDict) -> None:
    """Refuses numbers of a model that nobody trains: to shape it would take for ever.

    Raises:
      ValueError: Names the setting.
    """
    for group, names in (("model", config.model), ("data", ("size", "crop"))):
        for name in names:
            value, most = config[group][name], LARGEST.get(name, LARGEST_SIZE)
            numbers = value if isinstance(value, tuple) else (value,)
            if len(numbers) > LONGEST and name != "labels":
                raise ValueError(f"{group}.{name} has {len(numbers)} numbers, at most {LONGEST}")
            for number in numbers:
                if type(number) in (int, float) and not 1 <= number <= most:
                    raise ValueError(f"{group}.{name}={value}, expected numbers from 1 to {most}")


def _tuples(value: Any) -> Any:
    """JSON has no tuples; configs have no lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _autoencoder_kl() -> ConfigDict:
    model = ConfigDict()
    model.architecture = AUTOENCODER_KL
    model.latent_channels = 32
    model.downsample = 8
    model.linear_kernel = 3  # patches a side that the linear path reaches over; 1 is PCA
    model.width = 64
    model.deep_width = 128
    model.encoder_depth = (1, 2)
    model.decoder_depth = (3, 2)
    return model


def _fundus_vae() -> ConfigDict:
    model = ConfigDict()
    model.architecture = FUNDUS_VAE
    model.latent_size = 350
    model.image_size = 256
    model.width = 64
    model.stages = (3, 4, 6, 3)
    model.head = (1024, 512)
    model.decoder_width = 2048
    return model


def _enhancer() -> ConfigDict:
    model = _autoencoder_kl()
    model.architecture = ENHANCER
    model.tone_width = 48
    model.filters = False  # mixed at each patch from a few learned kernels
    model.sharpening = False  # one filter for the whole photograph, judged by its spectrum
    return model


def _degrade() -> ConfigDict:
    """What training does to clean tiles; formulas and units are `vae.models.degradations`'."""
    degrade = ConfigDict()
    degrade.clean = 0.15  # share of tiles that stay clean
    degrade.probability = 0.3  # of each degradation in the others
    # Share of the others that have one degradation alone, any that is not left out: blur cannot be
    # learned under noise.
    degrade.alone = 0.5
    # Severities are drawn from 0 to this, at most 1; 0 leaves a degradation out.
    degrade.haze = 1.0
    degrade.illumination = 1.0
    degrade.colour_cast = 1.0
    degrade.defocus = 1.0
    degrade.motion = 1.0
    degrade.spots = 1.0
    degrade.low_contrast = 1.0
    degrade.noise = 1.0
    degrade.downsampling = 1.0
    degrade.jpeg = 1.0
    return degrade


def _prior() -> ConfigDict:
    model = ConfigDict()
    model.architecture = PRIOR
    # Of the autoencoder, whose numbers a run fills in here.
    model.latent_channels = 4
    model.latent_side = 32
    model.widths = (32, 96, 160, 160)
    model.depths = (1, 1, 2, 1)
    model.heads = 4
    model.labels = ()  # what it can be told; a run fills in the dataset's (prior.conditional)
    return model


def _prior_settings() -> ConfigDict:
    prior = ConfigDict()
    prior.autoencoder = "f8c4"  # whose latents: what every --model can be
    prior.conditional = True  # on the label, where the dataset knows of labels
    prior.label_dropout = 0.2  # share of examples that are shown without theirs
    # Labels that always are shown: what is drawn without a label is not of them.
    prior.named_only = ()
    prior.draws = 4  # noises and times for each tile: encoding is the dearer part
    prior.sample_steps = 16  # of Heun's method, where --steps says nothing
    return prior


_MODELS = {
    AUTOENCODER_KL: _autoencoder_kl,
    FUNDUS_VAE: _fundus_vae,
    ENHANCER: _enhancer,
    PRIOR: _prior,
}
_TASKS = {
    AUTOENCODER_KL: "vae.tasks.autoencoding",
    FUNDUS_VAE: "vae.tasks.autoencoding",
    ENHANCER: "vae.tasks.enhancement",
    PRIOR: "vae.tasks.prior",
}
LINEAR_START = (AUTOENCODER_KL, ENHANCER)
ARCHITECTURES = tuple(_MODELS)
