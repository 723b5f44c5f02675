"""Every setting of a run with its default, and the refusal of settings that cannot work."""

from ml_collections import ConfigDict

from data.errors import UsageError
from vae.metrics import SSIM_WINDOW

LIKELIHOODS = ("gaussian", "laplace")
COMPUTE_DTYPES = ("float32", "bfloat16")
SCHEDULES = ("cosine", "constant")
SOURCES = ("", "retina", "synthetic")


def default_config() -> ConfigDict:
    """The defaults; a config file changes what it is about and leaves the rest."""
    config = ConfigDict()
    config.name = "fundus256"
    config.seed = 0
    # A model (workdir, checkpoint) to start from instead of probabilistic PCA.
    config.init_from = ""

    config.model = ConfigDict()
    config.model.latent_channels = 32
    config.model.downsample = 8
    config.model.width = 64
    config.model.deep_width = 128
    config.model.encoder_depth = (1, 2)
    config.model.decoder_depth = (3, 2)

    config.data = ConfigDict()
    config.data.dir = ""  # what `fundus-vae build --data_dir` wrote
    config.data.source = ""  # "retina" or "synthetic": make the data in the workdir instead
    config.data.size = 256  # tiles are cropped to this, pixels
    config.data.crop = 256  # a training example is a random crop of this size, pixels
    config.data.augment = True  # flips and quarter turns
    config.data.threads = 0  # 0: one a core
    config.data.pca_tiles = 1024

    config.batch_size = 64  # global, over all devices and hosts

    config.loss = ConfigDict()
    config.loss.likelihood = "gaussian"
    config.loss.beta = 1.0
    config.loss.ssim_weight = 4.0

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-3
    config.optimizer.linear_multiplier = 0.01  # of the linear path; 0 freezes it
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0  # of the gradient in nats per value; 0: no clipping

    config.train = ConfigDict()
    config.train.steps = 100_000
    config.train.max_minutes = 0.0  # stop early when the training took this long; 0: no limit
    config.train.accumulate = 1  # gradient of a batch in this many parts
    config.train.compute_dtype = "float32"  # of the convolutions
    config.train.ema_decay = 0.999
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


def validate(config: ConfigDict, device_count: int) -> None:
    """Refuses what cannot work, before anything is allocated.

    Args:
      config: A whole configuration.
      device_count: Devices of all hosts.

    Raises:
      UsageError: Every problem, each with the values that clash.
    """
    validate_schema(config)
    if problems := _value_problems(config, device_count):
        raise UsageError("config: " + "; ".join(problems))


def validate_schema(config: ConfigDict) -> None:
    """Refuses unknown, missing and mistyped settings.

    Raises:
      UsageError: Every problem.
    """
    if problems := _schema_problems(default_config(), config):
        raise UsageError("config: " + "; ".join(problems))


def _schema_problems(default: ConfigDict, config: ConfigDict, prefix: str = "") -> list[str]:
    problems = []
    for key in config:
        if key not in default:
            problems.append(f"unknown key {prefix}{key}; known there: {', '.join(default)}")
    for key, value in default.items():
        path = f"{prefix}{key}"
        if key not in config:
            problems.append(f"{path} is missing")
        elif isinstance(value, ConfigDict):
            if isinstance(config[key], ConfigDict):
                problems += _schema_problems(value, config[key], f"{path}.")
            else:
                problems.append(f"{path} is a group of settings, got {config[key]!r}")
        else:
            allowed = (int, float) if type(value) is float else (type(value),)
            if type(config[key]) not in allowed:
                problems.append(
                    f"{path}={config[key]!r} is {type(config[key]).__name__}, "
                    f"expected {type(value).__name__}"
                )
    return problems


def _value_problems(config: ConfigDict, device_count: int) -> list[str]:
    problems = []

    def require(condition: bool, text: str) -> None:
        if not condition:
            problems.append(text)

    def choice(path: str, value: str, options: tuple[str, ...]) -> None:
        require(value in options, f"{path}={value!r} is none of {', '.join(map(repr, options))}")

    def positive(**values: float) -> None:
        for path, value in values.items():
            require(value > 0, f"{path.replace('__', '.')}={value} must be positive")

    model, data, train = config.model, config.data, config.train
    positive(
        batch_size=config.batch_size,
        model__latent_channels=model.latent_channels,
        model__width=model.width,
        model__deep_width=model.deep_width,
        data__size=data.size,
        data__crop=data.crop,
        data__pca_tiles=data.pca_tiles,
        train__steps=train.steps,
        train__accumulate=train.accumulate,
        train__log_every=train.log_every,
        train__checkpoint_every=train.checkpoint_every,
        train__keep_checkpoints=train.keep_checkpoints,
        eval__batch_size=config.eval.batch_size,
        mesh__fsdp=config.mesh.fsdp,
        optimizer__learning_rate=config.optimizer.learning_rate,
    )
    choice("loss.likelihood", config.loss.likelihood, LIKELIHOODS)
    choice("train.compute_dtype", train.compute_dtype, COMPUTE_DTYPES)
    choice("optimizer.schedule", config.optimizer.schedule, SCHEDULES)
    choice("data.source", data.source, SOURCES)
    require(
        not (data.dir and data.source),
        f"data.dir={data.dir!r} and data.source={data.source!r} exclude each other",
    )
    for path, value in (
        ("train.ema_decay", train.ema_decay),
        ("optimizer.b1", config.optimizer.b1),
        ("optimizer.b2", config.optimizer.b2),
    ):
        require(0 <= value < 1, f"{path}={value} must lie in [0, 1)")
    for path, value in (
        ("loss.beta", config.loss.beta),
        ("loss.ssim_weight", config.loss.ssim_weight),
        ("optimizer.linear_multiplier", config.optimizer.linear_multiplier),
        ("optimizer.weight_decay", config.optimizer.weight_decay),
        ("optimizer.clip_norm", config.optimizer.clip_norm),
        ("optimizer.warmup_steps", config.optimizer.warmup_steps),
        ("train.max_minutes", train.max_minutes),
        ("eval.every", config.eval.every),
        ("eval.limit", config.eval.limit),
        ("eval.photographs", config.eval.photographs),
        ("data.threads", data.threads),
    ):
        require(value >= 0, f"{path}={value} must not be negative")
    require(0 <= config.seed < 2**32, f"seed={config.seed} must lie in [0, 2^32)")
    for path, depths in (
        ("model.encoder_depth", model.encoder_depth),
        ("model.decoder_depth", model.decoder_depth),
    ):
        require(
            all(type(depth) is int and depth > 0 for depth in depths),
            f"{path}={depths} must be positive whole numbers",
        )
    if problems:
        return problems

    levels = len(model.encoder_depth)
    require(
        levels == len(model.decoder_depth) and model.downsample == 4 * 2 ** (levels - 1),
        f"model.downsample={model.downsample} needs one depth for each resolution from 1/4 to "
        f"1/{model.downsample}, got encoder_depth={model.encoder_depth} and "
        f"decoder_depth={model.decoder_depth}",
    )
    require(
        model.latent_channels <= 3 * model.downsample**2,
        f"model.latent_channels={model.latent_channels} is more than the "
        f"{3 * model.downsample**2} values of a patch (model.downsample={model.downsample})",
    )
    for path, value in (("data.size", data.size), ("data.crop", data.crop)):
        require(
            value % model.downsample == 0 and value >= SSIM_WINDOW,
            f"{path}={value} must be a multiple of model.downsample={model.downsample} and at "
            f"least {SSIM_WINDOW}, the SSIM window",
        )
    require(data.crop <= data.size, f"data.crop={data.crop} is larger than data.size={data.size}")
    require(
        train.accumulate == 1 or config.batch_size % train.accumulate == 0,
        f"batch_size={config.batch_size} is not divisible by train.accumulate={train.accumulate}",
    )
    mesh = config.mesh
    if device_count % mesh.fsdp:
        problems.append(f"mesh.fsdp={mesh.fsdp} does not divide the {device_count} devices")
    elif mesh.data != -1 and mesh.data * mesh.fsdp != device_count:
        problems.append(
            f"mesh.data={mesh.data} x mesh.fsdp={mesh.fsdp} is not the {device_count} devices"
        )
    for path, value in (
        ("batch_size / train.accumulate", config.batch_size // train.accumulate),
        ("eval.batch_size", config.eval.batch_size),
    ):
        require(
            value % device_count == 0,
            f"{path} = {value} is not divisible by the {device_count} devices",
        )
    return problems
