"""Sampling: a prior over the latents of a trained autoencoder, by flow matching.

    --config=configs/prior256.py[:preset] --config.data.dir=DIR [--config.prior.autoencoder=MODEL]

Presets: `f8c4` (the default) is a prior for the bundled autoencoder of that name, small enough to
be trained on a CPU; `large` the same for an accelerator and many tiles; `smoke` runs every part
once within seconds on synthetic data.
"""

from ml_collections import ConfigDict

from vae.data.errors import UsageError

PRESETS = ("f8c4", "large", "smoke")


def get_config(preset: str = "f8c4") -> ConfigDict:
    """Returns the configuration of a preset; `--config.x.y=...` changes any setting of it."""
    if preset not in PRESETS:
        raise UsageError(f"prior256.py:{preset} is no preset; there are {', '.join(PRESETS)}")
    config = ConfigDict()
    config.name = "prior256" if preset == "f8c4" else f"prior256_{preset}"  # in tables and logs
    config.task = "vae.tasks.prior"  # the module that trains and evaluates
    config.seed = 0  # with the step, it determines every batch and every random number
    config.init_from = ""  # a prior to start from; empty: the best Gaussian of the latents
    config.batch_size = 64  # tiles, over all devices and processes

    config.model = ConfigDict()
    config.model.architecture = "prior"  # names the module (vae/checkpoints/modules.py)
    config.model.latent_channels = 4  # the autoencoder's; the run fills this in
    config.model.latent_side = 32  # data.crop / the autoencoder's downsample; filled in too
    config.model.widths = (32, 96, 160, 160)  # channels from the latent's resolution down
    config.model.depths = (1, 1, 2, 1)  # blocks at each resolution
    config.model.heads = 4  # of attention, at the two lowest resolutions
    config.model.labels = ()  # that samples can be conditioned on; empty: the dataset's

    config.prior = ConfigDict()
    config.prior.autoencoder = "f8c4"  # the model whose latents are learned
    config.prior.conditional = True  # on the label, where the dataset has labels
    config.prior.label_dropout = 0.2  # share of examples whose label is hidden
    config.prior.always_labelled = ()  # labels that are never hidden: drawn only if requested
    # A training time is sigmoid(time_mean + time_spread n), n standard normal (Esser et al., 2024).
    # Most times decide medium frequencies; some decide the lowest and the highest.
    config.prior.time_mean = -0.3
    config.prior.time_spread = 1.4
    config.prior.draws = 4  # noises and times for each tile: encoding it costs more
    config.prior.sample_steps = 16  # of Heun's method, unless --steps is given
    # Above 1, steps are shorter at the start; 3 has half the error of 1 (docs/sampling.md).
    config.prior.time_shift = 3.0

    config.data = ConfigDict()
    config.data.dir = ""  # the dataset that `fundus-vae build` wrote; also gs://bucket/folder
    config.data.cache_dir = ""  # local folder: copy the dataset there and read the copy
    config.data.source = ""  # "retina" or "synthetic": make a dataset in the workdir instead
    config.data.size = 256  # tiles are cropped to this, pixels
    config.data.crop = 256  # training examples are random crops of this, pixels
    config.data.scales = (1,)  # factors that examples are reduced by
    config.data.augment = True  # flips and quarter turns
    config.data.threads = 0  # decoding threads; 0: one per core
    config.data.fit_tiles = 1024  # training tiles for the fit of the best Gaussian

    config.optimizer = ConfigDict()
    config.optimizer.name = "muon"  # for kernels, with adam for the rest; or "adam" for all
    config.optimizer.learning_rate = 3e-3  # after the warm-up
    config.optimizer.init_from_factor = 1.0  # of the learning rate, with init_from
    config.optimizer.schedule = "cosine"  # to 0 at train.steps; or "constant"
    config.optimizer.warmup_steps = 100  # steps in which the rate rises linearly
    config.optimizer.b1 = 0.9  # decay of adam's mean of the gradients
    config.optimizer.b2 = 0.99  # decay of adam's mean of their squares
    config.optimizer.muon_beta = 0.95  # momentum of muon
    config.optimizer.weight_decay = 1e-4  # of kernels of convolutions and dense layers
    config.optimizer.clip_norm = 1.0  # of the gradient; 0: no clipping

    config.train = ConfigDict()
    config.train.steps = 100_000  # optimizer steps
    config.train.max_minutes = 0.0  # from the start to the last step; 0: no limit
    config.train.accumulate = 1  # parts of a batch whose gradients are computed one by one
    config.train.compute_dtype = "float32"  # of the convolutions; or "bfloat16"
    config.train.ema_decay = 0.999  # of the averaged parameters; 0: no average
    config.train.deterministic = False  # repeatable bit for bit on GPUs too, and slower
    config.train.log_every = 50  # steps
    config.train.checkpoint_every = 1000  # steps
    config.train.keep_checkpoints = 3  # the newest ones
    config.train.tensorboard = True  # where tensorflow is installed
    config.train.profile = False  # trace steps 10 to 15 into the workdir

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1: all that fsdp leaves
    config.mesh.fsdp = 1  # devices that share the parameters and the optimizer's state
    config.mesh.fsdp_min_size = 2**16  # arrays of fewer values are on every device

    config.eval = ConfigDict()
    config.eval.split = "val"  # part of the dataset that is evaluated
    config.eval.every = 5000  # steps; 0: only at the end
    config.eval.limit = 512  # tiles and samples of the closing table; 0: 1024

    if preset == "large":
        config.model.widths = (96, 192, 384, 512)
        config.model.depths = (2, 2, 3, 3)
        config.model.heads = 8
        config.batch_size = 256
        config.prior.draws = 1
        config.optimizer.learning_rate = 1e-3
        config.train.ema_decay = 0.9999
    if preset == "smoke":
        config.data.source = "synthetic"
        config.data.size = 64
        config.data.crop = 64
        config.batch_size = 8
        config.model.widths = (8, 16)
        config.model.depths = (1, 1)
        config.model.heads = 2
        config.prior.sample_steps = 4
        config.train.steps = 8
        config.train.log_every = 2
        config.train.checkpoint_every = 4
        config.optimizer.warmup_steps = 2
        config.eval.every = 4
        config.eval.limit = 8
    return config
