"""Refuses settings that cannot work before anything is allocated."""

from ml_collections import ConfigDict

from vae.checkpoints.config import (
    ARCHITECTURES,
    AUTOENCODER_KL,
    ENHANCER,
    LINEAR_START,
    PRIOR,
    default_config,
)
from vae.data.errors import UsageError
from vae.metrics import SSIM_WINDOW

LIKELIHOODS = ("gaussian", "laplace", "own_gaussian", "own_details")
LOSS_UNITS = ("value", "tile")
COMPUTE_DTYPES = ("float32", "bfloat16")
SCHEDULES = ("cosine", "constant")
MAX_FIT_VALUES = 5000  # 200 MB for their covariance
OPTIMIZERS = ("adam", "muon")
SOURCES = ("", "retina", "synthetic")
MASKS = ("", "squares", "tiles")


def validate(config: ConfigDict, device_count: int) -> None:
    """Refuses what cannot work.

    Args:
      config: A whole configuration.
      device_count: Devices of all hosts.

    Raises:
      UsageError: Every problem, each with the values that clash.
    """
    validate_schema(config)
    problems = _Problems()
    _check_values(config, problems)
    if not problems:
        _check_combinations(config, device_count, problems)
    if problems:
        raise UsageError("config: " + "; ".join(problems))


def validate_schema(config: ConfigDict) -> None:
    """Refuses unknown, missing and mistyped settings.

    Raises:
      UsageError: Every problem.
    """
    architecture = AUTOENCODER_KL
    if isinstance(config.get("model"), ConfigDict):
        architecture = config.model.get("architecture", architecture)
    if architecture not in ARCHITECTURES:
        known = ", ".join(map(repr, ARCHITECTURES))
        raise UsageError(f"config: model.architecture={architecture!r} is none of {known}")
    if problems := _schema_problems(default_config(architecture), config):
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


class _Problems(list):
    """What is wrong, as text."""

    def require(self, condition: bool, text: str) -> None:
        if not condition:
            self.append(text)

    def choice(self, path: str, value: str, options: tuple[str, ...]) -> None:
        known = ", ".join(map(repr, options))
        self.require(value in options, f"{path}={value!r} is none of {known}")

    def positive(self, config: ConfigDict, *paths: str) -> None:
        for path in paths:
            self.require(_at(config, path) > 0, f"{path}={_at(config, path)} must be positive")

    def not_negative(self, config: ConfigDict, *paths: str) -> None:
        for path in paths:
            value = _at(config, path)
            self.require(value >= 0, f"{path}={value} must not be negative")

    def whole_numbers(self, config: ConfigDict, path: str) -> None:
        value = _at(config, path)
        self.require(
            bool(value) and all(type(number) is int and number > 0 for number in value),
            f"{path}={value} must be positive whole numbers",
        )

    def share(self, config: ConfigDict, *paths: str) -> None:
        for path in paths:
            value = _at(config, path)
            self.require(0 <= value < 1, f"{path}={value} must lie in [0, 1)")


def _at(config: ConfigDict, path: str):
    for key in path.split("."):
        config = config[key]
    return config


def _check_values(config: ConfigDict, problems: _Problems) -> None:
    """Each setting by itself."""
    problems.positive(
        config,
        "batch_size",
        "data.size",
        "data.crop",
        "data.pca_tiles",
        "train.steps",
        "train.accumulate",
        "train.log_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "eval.batch_size",
        "mesh.fsdp",
        "optimizer.learning_rate",
    )
    problems.not_negative(
        config,
        "loss.beta",
        "loss.ssim_weight",
        "optimizer.linear_multiplier",
        "optimizer.tone_multiplier",
        "optimizer.sharpening_multiplier",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "optimizer.warmup_steps",
        "train.max_minutes",
        "eval.every",
        "eval.limit",
        "eval.photographs",
        "data.threads",
        "train.views",
    )
    problems.share(config, "train.ema_decay", "optimizer.b1", "optimizer.b2", "optimizer.muon_beta")
    problems.choice("loss.likelihood", config.loss.likelihood, LIKELIHOODS)
    problems.choice("loss.per", config.loss.per, LOSS_UNITS)
    problems.choice("train.compute_dtype", config.train.compute_dtype, COMPUTE_DTYPES)
    problems.choice("train.mask", config.train.mask, MASKS)
    problems.choice("optimizer.name", config.optimizer.name, OPTIMIZERS)
    problems.choice("optimizer.schedule", config.optimizer.schedule, SCHEDULES)
    problems.choice("data.source", config.data.source, SOURCES)
    problems.require(0 <= config.seed < 2**32, f"seed={config.seed} must lie in [0, 2^32)")
    for key, value in config.model.items():
        if isinstance(value, int) and not isinstance(value, bool):
            problems.positive(config, f"model.{key}")
        elif key == "labels":
            problems.require(
                all(type(name) is str and name for name in value),
                f"model.labels={value!r} must be names",
            )
        elif isinstance(value, tuple):
            problems.whole_numbers(config, f"model.{key}")
    problems.whole_numbers(config, "data.scales")
    if "prior" in config:
        problems.share(config, "prior.label_dropout")
        problems.positive(config, "prior.draws", "prior.sample_steps")
        problems.require(
            bool(config.prior.autoencoder), "prior.autoencoder is empty: whose latents?"
        )
    for key, value in config.get("degrade", {}).items():
        problems.require(0 <= value <= 1, f"degrade.{key}={value} must lie in [0, 1]")


def _check_combinations(config: ConfigDict, device_count: int, problems: _Problems) -> None:
    """Settings that are right by themselves and not beside each other."""
    data, train, mesh = config.data, config.train, config.mesh
    if config.model.architecture in LINEAR_START:
        _check_autoencoder(config, problems)
    elif config.model.architecture == PRIOR:
        _check_prior(config, problems)
    else:
        side = config.model.image_size
        problems.require(
            data.crop == side,
            f"data.crop={data.crop} is not model.image_size={side}, the one size it takes",
        )
        problems.require(side >= SSIM_WINDOW, f"model.image_size={side} is below {SSIM_WINDOW}")
    problems.require(
        not (data.dir and data.source),
        f"data.dir={data.dir!r} and data.source={data.source!r} exclude each other",
    )
    problems.require(
        not data.cache_dir or bool(data.dir),
        f"data.cache_dir={data.cache_dir!r} is where data.dir is copied to, and that is empty",
    )
    problems.require(
        "://" not in data.cache_dir, f"data.cache_dir={data.cache_dir!r} must be a local folder"
    )
    problems.require(
        bool(data.masked_dir) == (train.mask == "tiles"),
        f"train.mask={train.mask!r} and data.masked_dir={data.masked_dir!r}: masked tiles need "
        "train.mask='tiles' and the dataset they are in",
    )
    problems.require(
        not data.on_device
        or (config.model.architecture not in (ENHANCER, PRIOR) and not data.masked_dir),
        "data.on_device=True is for autoencoders, without data.masked_dir",
    )
    problems.require(
        not train.mask or config.model.architecture not in (ENHANCER, PRIOR),
        f"train.mask={train.mask!r} is for learning to reconstruct",
    )
    problems.require(
        not train.sharpening or config.model.get("sharpening", False),
        "train.sharpening=True teaches a part that the model has not; set model.sharpening=True",
    )
    problems.require(
        not (train.sharpening and train.views),
        f"train.sharpening=True and train.views={train.views} each teach one part alone; drop one",
    )
    reach = data.crop * max(data.scales)
    problems.require(
        reach <= data.size,
        f"data.crop={data.crop} is larger than data.size={data.size}"
        if data.crop > data.size
        else f"data.crop={data.crop} at data.scales={data.scales} is cut from {reach} pixels, and "
        f"data.size={data.size}",
    )
    problems.require(
        config.batch_size % train.accumulate == 0,
        f"batch_size={config.batch_size} is not divisible by train.accumulate={train.accumulate}",
    )
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
        problems.require(
            value % device_count == 0,
            f"{path} = {value} is not divisible by the {device_count} devices",
        )


def _check_prior(config: ConfigDict, problems: _Problems) -> None:
    model = config.model
    problems.require(
        len(model.widths) == len(model.depths),
        f"model.widths={model.widths} and model.depths={model.depths} must be as many",
    )
    for width in model.widths[-2:]:
        problems.require(
            width % model.heads == 0,
            f"model.heads={model.heads} does not divide the {width} channels of a level that has "
            f"attention, the last two of model.widths={tuple(model.widths)}",
        )


def _check_autoencoder(config: ConfigDict, problems: _Problems) -> None:
    model, data_size = config.model, config.data.size
    levels = len(model.encoder_depth)
    problems.require(
        levels == len(model.decoder_depth) and model.downsample == 4 * 2 ** (levels - 1),
        f"model.downsample={model.downsample} needs one depth for each resolution from 1/4 to "
        f"1/{model.downsample}, got encoder_depth={model.encoder_depth} and "
        f"decoder_depth={model.decoder_depth}",
    )
    problems.require(
        model.latent_channels <= 3 * model.downsample**2,
        f"model.latent_channels={model.latent_channels} is more than the "
        f"{3 * model.downsample**2} values of a patch (model.downsample={model.downsample})",
    )
    smallest = data_size // max(config.data.scales)
    problems.require(
        model.linear_kernel % 2 == 1 and model.linear_kernel * model.downsample <= smallest,
        f"model.linear_kernel={model.linear_kernel} must be odd, and so many patches of "
        f"{model.downsample} pixels must fit into data.size={data_size} shrunk by "
        f"data.scales={config.data.scales}",
    )
    # The fit holds the covariance of all values that the kernel reaches, in float64.
    values = 3 * (model.downsample * model.linear_kernel) ** 2
    problems.require(
        values <= MAX_FIT_VALUES or bool(config.init_from),
        f"model.linear_kernel={model.linear_kernel} at model.downsample={model.downsample} reaches "
        f"over {values} values, and the fit takes at most {MAX_FIT_VALUES}; set "
        "model.linear_kernel=1",
    )
    for path in ("data.size", "data.crop"):
        problems.require(
            _at(config, path) % model.downsample == 0 and _at(config, path) >= SSIM_WINDOW,
            f"{path}={_at(config, path)} must be a multiple of model.downsample="
            f"{model.downsample} and at least {SSIM_WINDOW}, the SSIM window",
        )
