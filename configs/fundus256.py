"""Reconstruction: an f8 autoencoder of 256-pixel fundus tiles. The main experiment.

    --config=configs/fundus256.py[:preset] --config.data.dir=DIR

Presets by latent size (input values / latent values of a tile): f8c4 48:1, f8c8 24:1, f8c16 12:1,
f8c32 6:1 (the default), f8c48 4:1; `demo` trains on the bundled photograph within minutes on a
CPU; `smoke` runs every part once within seconds on synthetic data.
"""

from ml_collections import ConfigDict

from vae.data.errors import UsageError

LATENT_CHANNELS = {"f8c4": 4, "f8c8": 8, "f8c16": 16, "f8c32": 32, "f8c48": 48}
PRESETS = (*LATENT_CHANNELS, "demo", "smoke")


def get_config(preset: str = "f8c32") -> ConfigDict:
    """Returns the configuration of a preset; `--config.x.y=...` changes any setting of it."""
    if preset not in PRESETS:
        raise UsageError(f"fundus256.py:{preset} is no preset; there are {', '.join(PRESETS)}")
    config = ConfigDict()
    config.name = f"fundus256_{preset}"  # in tables and logs
    config.task = "vae.tasks.autoencoding"  # the module that trains and evaluates
    config.seed = 0  # with the step, it determines every batch and every random number
    config.init_from = ""  # a model to start from; empty: the best linear codec of the tiles
    config.batch_size = 256  # tiles, over all devices and processes

    config.model = ConfigDict()
    config.model.architecture = "autoencoder_kl"  # names the module (vae/checkpoints/modules.py)
    config.model.latent_channels = LATENT_CHANNELS.get(preset, 32)  # values per latent position
    config.model.downsample = 8  # pixels of a latent position, each way
    config.model.linear_kernel = 3  # latent positions, each way, that the linear path sees; 1: PCA
    config.model.width = 64  # channels at 1/4 resolution
    config.model.deep_width = 128  # channels at 1/8 resolution
    config.model.encoder_depth = (1, 2)  # residual blocks at 1/4 and 1/8 resolution
    config.model.decoder_depth = (3, 2)  # the same for the decoder

    config.data = ConfigDict()
    config.data.dir = ""  # the dataset that `fundus-vae build` wrote; also gs://bucket/folder
    config.data.masked_dir = ""  # the same tiles masked, with train.mask="tiles"
    config.data.cache_dir = ""  # local folder: copy the datasets there and read the copies
    config.data.on_device = False  # send all training tiles to the devices once
    config.data.source = ""  # "retina" or "synthetic": make a dataset in the workdir instead
    config.data.size = 256  # tiles are cropped to this, pixels
    config.data.crop = 128  # training examples are random crops of this, pixels
    # Factors that examples are reduced by, as cameras of fewer pixels see. Each is drawn equally
    # often: with (1, 1, 2) every third example is reduced by 2.
    config.data.scales = (1, 1, 2)
    config.data.augment = True  # flips and quarter turns
    # From 0, where every tile is drawn equally often, to 1, where every label is.
    config.data.balance = 0.0
    config.data.threads = 0  # decoding threads; 0: one per core
    # Training tiles that the linear path and the wider PCA of the report are fitted to.
    config.data.fit_tiles = 1024

    # Training examples as other cameras would have taken them: strengths in [0, 1]; 0 is none.
    # Half of the examples keep each property (vae/models/cameras.py).
    config.cameras = ConfigDict()
    config.cameras.colour = 0.0  # gain and colour balance
    config.cameras.grain = 0.0  # noise of the sensor
    config.cameras.sharpness = 0.0  # mild blur, or unsharp masking
    config.cameras.jpeg = 0.0  # JPEG at a random quality and phase of the grid

    config.loss = ConfigDict()
    config.loss.likelihood = "gaussian"  # or "laplace"; one learned scale
    config.loss.beta = 1.0  # weight of the KL divergence
    config.loss.ssim_weight = 16.0  # weight of 1 - SSIM, in nats per value
    config.loss.per = "value"  # nats per input "value", or summed over a "tile"

    config.optimizer = ConfigDict()
    config.optimizer.name = "muon"  # for kernels, with adam for the rest; or "adam" for all
    config.optimizer.learning_rate = 3e-3  # after the warm-up
    config.optimizer.init_from_factor = 0.1  # of the learning rate, with init_from
    config.optimizer.linear_multiplier = 0.01  # of the linear path's rate; 0 freezes it
    config.optimizer.schedule = "cosine"  # to 0 at train.steps; or "constant"
    config.optimizer.warmup_steps = 100  # steps in which the rate rises linearly
    config.optimizer.b1 = 0.9  # decay of adam's mean of the gradients
    config.optimizer.b2 = 0.99  # decay of adam's mean of their squares
    config.optimizer.muon_beta = 0.95  # momentum of muon
    config.optimizer.weight_decay = 1e-4  # of kernels of convolutions and dense layers
    config.optimizer.clip_norm = 1.0  # of the gradient in nats per value; 0: no clipping

    config.train = ConfigDict()
    config.train.steps = 100_000  # optimizer steps
    config.train.max_minutes = 0.0  # from the start to the last step; 0: no limit
    config.train.accumulate = 1  # parts of a batch whose gradients are computed one by one
    config.train.compute_dtype = "float32"  # of the convolutions; or "bfloat16"
    config.train.ema_decay = 0.999  # of the averaged parameters; 0: no average
    # Hidden from the encoder: "", "squares" (four, with sides of 1/8 to 1/4 of the crop) or "tiles"
    # (the tiles of data.masked_dir).
    config.train.mask = ""
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
    config.eval.limit = 512  # tiles of a scheduled evaluation; 0: all
    config.eval.batch_size = 32  # tiles, over all devices and processes
    config.eval.photographs = 16  # whole photographs of the closing evaluation

    if preset in ("f8c8", "f8c16", "f8c48"):
        config.loss.beta = 0.5
        config.model.decoder_depth = (3, 3)
    if preset in ("f8c8", "f8c16"):
        config.model.encoder_depth = (1, 4)
    if preset in ("f8c16", "f8c48"):
        config.loss.ssim_weight = 32.0
    if preset == "demo":
        # Two CPU cores, six minutes, one photograph. Small crops show more of it in a step.
        config.data.source = "retina"
        config.data.scales = (1,)
        config.data.crop = 64
        config.batch_size = 32
        config.train.steps = 400
        config.train.max_minutes = 4.0  # three of them for the steps
        config.train.ema_decay = 0.98
        config.train.log_every = 20
        config.train.checkpoint_every = 100
        config.optimizer.warmup_steps = 20
        config.eval.split = "test"  # nothing is chosen by it, and there is no third part
        config.eval.every = config.train.steps  # at step 0: what the linear codec gives
        config.eval.batch_size = 8
    if preset == "smoke":
        config.data.source = "synthetic"
        config.data.size = 64
        config.data.crop = 32
        config.data.scales = (1,)
        config.batch_size = 8
        config.model.latent_channels = 8
        config.model.width = 16
        config.model.deep_width = 16
        config.model.encoder_depth = (1, 1)
        config.model.decoder_depth = (1, 1)
        config.train.steps = 8
        config.train.log_every = 2
        config.train.checkpoint_every = 4
        config.optimizer.warmup_steps = 2
        config.eval.every = 4
        config.eval.limit = 8
        config.eval.batch_size = 8
    return config
