"""Validation of configs, before anything is allocated."""

from ml_collections import ConfigDict

from vae.checkpoints.config import setting_problems
from vae.data.errors import UsageError
from vae.tasks import task_class, task_of

COMPUTE_DTYPES = ("float32", "bfloat16")
SCHEDULES = ("cosine", "constant")
OPTIMIZERS = ("adam", "muon")
SOURCES = ("", "retina", "synthetic")


def validate(config: ConfigDict, device_count: int) -> None:
    """Validates a config.

    Args:
      config: A complete config.
      device_count: Number of devices of all processes.

    Raises:
      UsageError: Lists every problem with the conflicting values.
    """
    validate_schema(config)
    problems = Problems(device_count)
    _check_values(config, problems)
    if not problems:
        task_of(config).check(problems)
        _check_combinations(config, problems)
    if problems:
        raise UsageError("config: " + "; ".join(problems))


def validate_schema(config: ConfigDict) -> None:
    """Checks for unknown and missing settings and for settings of the wrong type.

    Raises:
      UsageError: Lists every problem.
    """
    try:
        reference = task_class(config).reference(config)
    except (AttributeError, ValueError) as error:
        raise UsageError(f"config: {error}") from error
    if problems := setting_problems(reference, config):
        raise UsageError("config: " + "; ".join(problems))


class Problems(list):
    """A list of lines, each of which describes a problem of a setting.

    Attributes:
      device_count: Number of devices of all processes.
    """

    def __init__(self, device_count: int):
        super().__init__()
        self.device_count = device_count

    def require(self, condition: bool, text: str) -> None:
        """Adds the text if the condition is false."""
        if not condition:
            self.append(text)

    def choice(self, path: str, value: str, options: tuple[str, ...]) -> None:
        """Requires that a value is one of the options."""
        known = ", ".join(map(repr, options))
        self.require(value in options, f"{path}={value!r} is none of {known}")

    def positive(self, config: ConfigDict, *paths: str) -> None:
        """Requires numbers above 0."""
        for path in paths:
            self.require(_at(config, path) > 0, f"{path}={_at(config, path)} must be positive")

    def not_negative(self, config: ConfigDict, *paths: str) -> None:
        """Requires numbers of at least 0."""
        for path in paths:
            value = _at(config, path)
            self.require(value >= 0, f"{path}={value} must not be negative")

    def whole_numbers(self, config: ConfigDict, path: str) -> None:
        """Requires a non-empty tuple of positive integers."""
        value = _at(config, path)
        self.require(
            bool(value) and all(type(number) is int and number > 0 for number in value),
            f"{path}={value} must be positive whole numbers",
        )

    def share(self, config: ConfigDict, *paths: str) -> None:
        """Requires numbers in [0, 1)."""
        for path in paths:
            value = _at(config, path)
            self.require(0 <= value < 1, f"{path}={value} must lie in [0, 1)")

    def divisible_by_devices(self, name: str, value: int) -> None:
        """Requires a number of rows that the number of devices divides."""
        self.require(
            value % self.device_count == 0,
            f"{name} = {value} is not divisible by the {self.device_count} devices",
        )


def _at(config: ConfigDict, path: str):
    for key in path.split("."):
        config = config[key]
    return config


def _check_values(config: ConfigDict, problems: Problems) -> None:
    """Checks each setting separately."""
    problems.positive(
        config,
        "batch_size",
        "data.size",
        "train.steps",
        "train.accumulate",
        "train.log_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "mesh.fsdp",
        "optimizer.learning_rate",
        "optimizer.init_from_factor",
    )
    problems.not_negative(
        config,
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "optimizer.warmup_steps",
        "train.max_minutes",
        "eval.every",
        "eval.limit",
        "data.threads",
    )
    problems.share(config, "train.ema_decay", "optimizer.b1", "optimizer.b2", "optimizer.muon_beta")
    problems.choice("train.compute_dtype", config.train.compute_dtype, COMPUTE_DTYPES)
    problems.choice("optimizer.name", config.optimizer.name, OPTIMIZERS)
    problems.choice("optimizer.schedule", config.optimizer.schedule, SCHEDULES)
    problems.choice("data.source", config.data.source, SOURCES)
    problems.require(0 <= config.seed < 2**32, f"seed={config.seed} must lie in [0, 2^32)")
    reference = task_class(config).reference(config)
    for key, value in reference.model.items():
        if type(value) is int:
            problems.positive(config, f"model.{key}")
        elif isinstance(value, tuple) and value and type(value[0]) is int:
            problems.whole_numbers(config, f"model.{key}")


def _check_combinations(config: ConfigDict, problems: Problems) -> None:
    """Checks combinations of individually valid settings."""
    data, train, mesh = config.data, config.train, config.mesh
    problems.require(
        not (data.dir and data.source),
        f"data.dir={data.dir!r} and data.source={data.source!r} exclude each other",
    )
    problems.require(
        not data.cache_dir or bool(data.dir),
        f"data.cache_dir={data.cache_dir!r} is where data.dir is copied to, but data.dir is empty",
    )
    problems.require(
        "://" not in data.cache_dir, f"data.cache_dir={data.cache_dir!r} must be a local folder"
    )
    problems.require(
        config.batch_size % train.accumulate == 0,
        f"batch_size={config.batch_size} is not divisible by train.accumulate={train.accumulate}",
    )
    device_count = problems.device_count
    if device_count % mesh.fsdp:
        problems.append(f"mesh.fsdp={mesh.fsdp} does not divide the {device_count} devices")
    elif mesh.data != -1 and mesh.data * mesh.fsdp != device_count:
        problems.append(
            f"mesh.data={mesh.data} x mesh.fsdp={mesh.fsdp} is not the {device_count} devices"
        )
    problems.divisible_by_devices(
        "batch_size / train.accumulate", config.batch_size // train.accumulate
    )
