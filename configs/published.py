"""The published architecture with the published recipe, from scratch or from the imported weights.

    --config=configs/published.py --config.data.dir=DIR [--config.init_from=CONVERTED]

ResNet-50 encoder, linear decoder, a vector of 350 latents: 432 million parameters. Presets: `full`
(the default); `tiny`, the same in small, to try it out.
"""

from ml_collections import ConfigDict

from vae.data.errors import UsageError

PRESETS = ("full", "tiny")


def get_config(preset: str = "full") -> ConfigDict:
    """Returns the configuration of a preset; `--config.x.y=...` changes any setting of it."""
    if preset not in PRESETS:
        raise UsageError(f"published.py:{preset} is no preset; there are {', '.join(PRESETS)}")
    config = ConfigDict()
    config.name = "published" if preset == "full" else f"published_{preset}"  # in tables and logs
    config.task = "vae.tasks.autoencoding"  # the module that trains and evaluates
    config.seed = 0  # with the step, it determines every batch and every random number
    config.init_from = ""  # a model to start from, as convert_torch_checkpoint writes it
    config.batch_size = 128  # tiles, over all devices and processes

    config.model = ConfigDict()
    config.model.architecture = "fundus_vae"  # names the module (vae/checkpoints/modules.py)
    config.model.latent_size = 350  # values of the latent vector
    config.model.image_size = 256  # side of its tiles, pixels
    config.model.width = 64  # channels of the ResNet's first stage
    config.model.stages = (3, 4, 6, 3)  # residual blocks: ResNet-50
    config.model.head = (1024, 512)  # hidden layers of the encoder's head, mirrored in the decoder
    config.model.decoder_width = 2048  # values before the last layer

    config.data = ConfigDict()
    config.data.dir = ""  # the dataset that `fundus-vae build` wrote; also gs://bucket/folder
    config.data.masked_dir = ""  # the same tiles masked, with train.mask="tiles"
    config.data.cache_dir = ""  # local folder: copy the datasets there and read the copies
    config.data.on_device = False  # send all training tiles to the devices once
    config.data.source = ""  # "retina" or "synthetic": make a dataset in the workdir instead
    config.data.size = 256  # tiles are cropped to this, pixels
    config.data.crop = 256  # training examples have the model's size
    config.data.scales = (1,)  # factors that examples are reduced by
    config.data.augment = True  # flips and quarter turns
    # From 0, where every tile is drawn equally often, to 1, where every label is.
    config.data.balance = 0.0
    config.data.threads = 0  # decoding threads; 0: one per core
    config.data.fit_tiles = 1024  # training tiles that the PCA baseline is fitted to

    # Training examples as other cameras would have taken them: strengths in [0, 1]; 0 is none.
    # Half of the examples keep each property (vae/models/cameras.py).
    config.cameras = ConfigDict()
    config.cameras.colour = 0.0  # gain and colour balance
    config.cameras.grain = 0.0  # noise of the sensor
    config.cameras.sharpness = 0.0  # mild blur, or unsharp masking
    config.cameras.jpeg = 0.0  # JPEG at a random quality and phase of the grid

    # Sum of squares in [0, 1] + KL + (1 - SSIM), of each tile. The first is the likelihood of a
    # Gaussian of fixed scale, which this architecture has, up to a constant.
    config.loss = ConfigDict()
    config.loss.likelihood = "gaussian"  # or "laplace"
    config.loss.beta = 1.0  # weight of the KL divergence
    config.loss.ssim_weight = 1.0  # weight of 1 - SSIM, in nats per tile
    config.loss.per = "tile"  # nats summed over a "tile", or per input "value"

    # Adam as PyTorch has it.
    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # for all parameters; or "muon" for kernels
    config.optimizer.learning_rate = 1e-4  # after the warm-up
    config.optimizer.init_from_factor = 1.0  # of the learning rate, with init_from
    config.optimizer.schedule = "constant"  # or "cosine", to 0 at train.steps
    config.optimizer.warmup_steps = 0  # steps in which the rate rises linearly
    config.optimizer.b1 = 0.9  # decay of adam's mean of the gradients
    config.optimizer.b2 = 0.999  # decay of adam's mean of their squares
    config.optimizer.muon_beta = 0.95  # momentum of muon
    config.optimizer.weight_decay = 0.0  # of kernels of convolutions and dense layers
    config.optimizer.clip_norm = 1.0  # of the gradient in nats per tile; 0: no clipping

    config.train = ConfigDict()
    config.train.steps = 100_000  # optimizer steps
    config.train.max_minutes = 0.0  # from the start to the last step; 0: no limit
    config.train.accumulate = 1  # parts of a batch whose gradients are computed one by one
    config.train.compute_dtype = "float32"  # of the convolutions; or "bfloat16"
    config.train.ema_decay = 0.0  # the published weights are no average, and one takes 1.7 GB
    # Hidden from the encoder: "", "squares" (four, with sides of 1/8 to 1/4 of the crop) or "tiles"
    # (the tiles of data.masked_dir).
    config.train.mask = ""
    config.train.deterministic = False  # repeatable bit for bit on GPUs too, and slower
    config.train.log_every = 50  # steps
    config.train.checkpoint_every = 1000  # steps
    config.train.keep_checkpoints = 1  # 5.2 GB each
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

    if preset == "tiny":
        config.model.latent_size = 16
        config.model.image_size = 32
        config.model.width = 8
        config.model.stages = (1, 1, 1, 1)
        config.model.head = (32, 16)
        config.model.decoder_width = 64
        config.data.size = config.data.crop = 32
        config.batch_size = 16
        config.train.steps = 8
        config.eval.batch_size = 16
    return config
