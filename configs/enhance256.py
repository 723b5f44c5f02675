"""Enhancement: restores degraded photographs. Clean tiles are degraded on the device for training.

    --config=configs/enhance256.py[:preset] --config.data.dir=DIR

The dataset needs the photographs' thumbnails, which `fundus-vae make-tiles` and `build` store. The
model has three stages (vae/models/enhancer.py), which are trained one after the other: preset
`tone` first, then `sharpening` and `detail`, each with `--config.init_from` of the run before, and
at last `f8c32` (the default), which trains all stages together. `smoke` runs every part once
within seconds on synthetic data.
"""

from ml_collections import ConfigDict

from vae.data.errors import UsageError

PRESETS = ("f8c32", "tone", "sharpening", "detail", "smoke")


def get_config(preset: str = "f8c32") -> ConfigDict:
    """Returns the configuration of a preset; `--config.x.y=...` changes any setting of it."""
    if preset not in PRESETS:
        raise UsageError(f"enhance256.py:{preset} is no preset; there are {', '.join(PRESETS)}")
    config = ConfigDict()
    # In tables and logs.
    config.name = "enhance256" if preset == "f8c32" else f"enhance256_{preset}"
    config.task = "vae.tasks.enhancement"  # the module that trains and evaluates
    config.seed = 0  # with the step, it determines every batch and every random number
    config.init_from = ""  # a model to start from; empty: the identity
    config.batch_size = 256  # tiles, over all devices and processes

    config.model = ConfigDict()
    config.model.architecture = "enhancer"  # names the module (vae/checkpoints/modules.py)
    config.model.latent_channels = 32  # values per latent position
    config.model.downsample = 8  # pixels of a latent position, each way
    config.model.linear_kernel = 3  # latent positions, each way, that the linear path sees
    config.model.width = 64  # channels at 1/4 resolution
    config.model.deep_width = 128  # channels at 1/8 resolution
    config.model.encoder_depth = (1, 2)  # residual blocks at 1/4 and 1/8 resolution
    config.model.decoder_depth = (3, 2)  # the same for the decoder
    config.model.tone_width = 32  # channels of the tone stage
    # Root mean square of a photograph's change of tone, grey levels: up to the first value the
    # change is not applied, from the second on in full. Chosen on val's mixed degradations.
    config.model.tone_evidence = (10.0, 15.0)
    # Mean R, G and B of the training photographs: to these colours `--colour correct` moves others.
    config.model.typical_colour = (145.0, 75.0, 28.0)
    # Power spectrum of the training photographs, rounded: dB (of squared grey levels) at one cycle
    # per window, dB by which it falls per decade, and standard deviation from this line, dB.
    config.model.typical_spectrum = (35.0, 26.0, 6.0)

    # Clean examples as other cameras would have taken them: strengths in [0, 1]; 0 is none. Half of
    # the examples keep each property (vae/models/cameras.py).
    config.cameras = ConfigDict()
    config.cameras.colour = 1.0  # gain, colour balance, saturation and contrast curve
    config.cameras.grain = 0.0  # noise of the sensor
    config.cameras.sharpness = 0.0  # mild blur, or unsharp masking
    config.cameras.jpeg = 0.0  # JPEG at a random quality and phase of the grid

    config.degrade = ConfigDict()
    config.degrade.clean = 0.15  # probability that a tile stays clean
    config.degrade.probability = 0.3  # probability of each degradation in a degraded tile
    # Probability that a degraded tile has only one: blur cannot be learned under noise.
    config.degrade.alone = 0.5
    # Severities are drawn from 0 to these, at most 1 (vae/models/degradations.py). At 0 there is no
    # such degradation.
    config.degrade.haze = 1.0
    config.degrade.illumination = 1.0
    config.degrade.colour_cast = 0.0  # the colours of the camera are kept
    config.degrade.defocus = 1.0
    config.degrade.motion = 1.0
    config.degrade.spots = 1.0
    config.degrade.low_contrast = 1.0
    config.degrade.noise = 1.0
    config.degrade.downsampling = 1.0
    config.degrade.jpeg = 1.0

    config.data = ConfigDict()
    config.data.dir = ""  # the dataset that `fundus-vae build` wrote; also gs://bucket/folder
    config.data.cache_dir = ""  # local folder: copy the dataset there and read the copy
    config.data.source = ""  # "retina" or "synthetic": make a dataset in the workdir instead
    config.data.size = 256  # tiles are cropped to this, pixels
    config.data.crop = 128  # training examples are random crops of this, pixels
    # Factors that examples are reduced by, as cameras of fewer pixels see. Each is drawn equally
    # often: with (1, 1, 2) every third example is reduced by 2.
    config.data.scales = (1, 1, 2)
    config.data.augment = True  # flips and quarter turns
    # From 0, where every tile is drawn equally often, to 1, where every label is.
    config.data.balance = 0.8
    config.data.threads = 0  # decoding threads; 0: one per core
    config.data.fit_tiles = 1024  # training tiles that the linear path is fitted to

    config.loss = ConfigDict()
    # Each example's errors, and those of its details alone, have their own optimal scales. With one
    # scale for all, hard examples outweigh the others and good photographs become slightly worse.
    config.loss.likelihood = "per_example_details"
    config.loss.beta = 0.1  # weight of the KL divergence; at 1 the latent would stay empty
    config.loss.ssim_weight = 4.0  # weight of 1 - SSIM, in nats per value
    config.loss.per = "value"  # nats per input "value", or summed over a "tile"

    config.optimizer = ConfigDict()
    config.optimizer.name = "muon"  # for kernels, with adam for the rest; or "adam" for all
    config.optimizer.learning_rate = 3e-3  # after the warm-up
    config.optimizer.init_from_factor = 1.0  # of the learning rate, with init_from
    config.optimizer.linear_multiplier = 0.01  # of the linear path's rate; 0 freezes it
    config.optimizer.schedule = "cosine"  # to 0 at train.steps; or "constant"
    config.optimizer.warmup_steps = 100  # steps in which the rate rises linearly
    config.optimizer.b1 = 0.9  # decay of adam's mean of the gradients
    config.optimizer.b2 = 0.99  # decay of adam's mean of their squares
    config.optimizer.muon_beta = 0.95  # momentum of muon
    config.optimizer.weight_decay = 1e-4  # of kernels of convolutions and dense layers
    config.optimizer.clip_norm = 1.0  # of the gradient in nats per value; 0: no clipping

    config.train = ConfigDict()
    config.train.stage = "all"  # or the one stage that learns: "tone", "sharpening", "detail"
    config.train.thumbnail_draws = 8  # degradation draws per thumbnail in the stage "tone"
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
    config.eval.limit = 8  # photographs of a scheduled evaluation

    if preset in ("tone", "sharpening", "detail"):
        config.train.stage = preset
        config.loss.likelihood = "per_example_gaussian"
    if preset == "tone":
        # Orthogonal updates of all kernels would take longer than this small network.
        config.optimizer.name = "adam"
        config.optimizer.learning_rate = 2e-3
        config.train.thumbnail_draws = 4
        # Bounded influence of hard examples, and no change where nothing is certain.
        config.loss.likelihood = "spherical_laplace"
        config.loss.ssim_weight = 0.0
        # A thumbnail does not show the other degradations.
        for name in ("defocus", "motion", "noise", "downsampling", "jpeg"):
            config.degrade[name] = 0.0
    if preset == "sharpening":
        # The larger the crop, the clearer its spectrum; there is little to compute.
        config.data.crop = 224
        config.data.scales = (1,)
        config.degrade.alone = 0.8
        config.optimizer.name = "adam"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.weight_decay = 0.0
    if preset == "detail":
        config.degrade.alone = 0.7
        # The tone stage undoes these.
        config.degrade.haze = 0.0
        config.degrade.illumination = 0.0
        config.degrade.low_contrast = 0.0
    if preset == "smoke":
        config.data.source = "synthetic"
        config.data.size = 64
        config.data.crop = 32
        config.data.scales = (1, 2)
        config.batch_size = 8
        config.model.latent_channels = 8
        config.model.width = 16
        config.model.deep_width = 16
        config.model.tone_width = 8
        config.model.encoder_depth = (1, 1)
        config.model.decoder_depth = (1, 1)
        config.train.steps = 8
        config.train.log_every = 2
        config.train.checkpoint_every = 4
        config.optimizer.warmup_steps = 2
        config.eval.every = 4
        config.eval.limit = 8
    return config
