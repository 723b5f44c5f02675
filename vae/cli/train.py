"""`train`: trains or evaluates one experiment; `run_experiment.py` of a checkout is the same.

    fundus-vae train --config=FILE.py[:preset] --workdir=DIR [--mode=evaluate] [--config.x=y ...]

A bundled config can be given by its name: `--config=fundus256:demo`.
"""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vae import configs
from vae.data.errors import (
    DataError,
    FundusError,
    UsageError,
    escape_output,
    is_out_of_memory,
    show,
)
from vae.data.outputs import claim_folder

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment, FILE.py[:preset].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds", 100, "Seconds without a sign of a process after which the others end."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train, or evaluate a run.")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command and exits.

    Args:
      argv: Name and options of the command; None for those of this process.
    """
    try:
        _start(argv)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr, flush=True)
        # Threads of XLA may still compute, and would crash when the interpreter ends under them.
        os._exit(130)


def _start(argv: Sequence[str] | None) -> NoReturn:
    escape_output()
    logging.set_verbosity(logging.WARNING)
    # Tensorflow only writes files here; without these settings it prints many lines at its start.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    argv = [_with_path(option) for option in (sys.argv if argv is None else argv)]
    app.run(_main, argv=argv, flags_parser=_parse_flags)


def _with_path(option: str) -> str:
    """Replaces the name of a bundled config, `--config=fundus256:demo`, by its file."""
    if not (match := re.fullmatch(r"(--?config=)(\w+)((?::.*)?)", option)):
        return option
    file = Path(configs.__path__[0], f"{match[2]}.py")
    return f"{match[1]}{file}{match[3]}" if file.is_file() else option


def _main(argv: list[str]) -> None:
    """Runs the command of the flags; a user's mistake is one line, not a traceback."""
    try:
        _run(argv)
    except (FundusError, OSError, MemoryError, RuntimeError) as error:
        sys.stdout.flush()
        if not isinstance(error, FundusError | OSError):
            if not is_out_of_memory(error):
                raise
            error = _out_of_memory(_CONFIG.value)
        # Exits at once: after a failed write, Orbax's threads would print further tracebacks.
        os._exit(show(error))


def _run(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; settings are given as --config.x=y")
    for name, value in (("config", _CONFIG.value), ("workdir", _WORKDIR.value)):
        if not value:
            raise UsageError(
                f"--{name} is missing; expected --config=FILE.py[:preset] --workdir=DIR"
            )
    config = _CONFIG.value
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config: get_config() gave a {type(config).__name__}, not a ConfigDict")
    from vae.training.validation import validate_schema

    validate_schema(config)
    if config.train.deterministic:
        flag = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    # Imported late: the flags above must be set before JAX initializes a device.
    from vae.training import distributed, train

    distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _HEARTBEAT.value)

    with _claim(config, _WORKDIR.value):
        if _MODE.value == "train":
            train.train(config, _WORKDIR.value)
        else:
            train.evaluate_workdir(config, _WORKDIR.value)


def _out_of_memory(config: ConfigDict) -> DataError:
    """Returns the error of a run whose batch does not fit, with settings that need less."""
    batch, parts = config.batch_size, config.train.accumulate
    fewer = [n for n in range(1, batch // parts // 2 + 1) if batch % n == 0]
    if not fewer:
        return DataError(
            f"out of memory with one tile at a time: lower --config.data.crop={config.data.crop}"
        )
    return DataError(
        f"out of memory with {batch // parts} tiles at a time (batch_size={batch}): with "
        f"--config.train.accumulate={batch // fewer[-1]} they are {fewer[-1]}, and the result is "
        f"that of the same batch; --config.batch_size={fewer[-1]} is a smaller batch"
    )


def _claim(config: ConfigDict, workdir: str) -> contextlib.AbstractContextManager:
    """Claims the workdir for the run; process 0 claims it for all processes."""
    import jax

    from vae.checkpoints.loading import CONFIG
    from vae.tasks import task_of

    if jax.process_index() > 0:
        return contextlib.nullcontext()
    reads = task_of(config).reads()
    return claim_folder(workdir, "train", reads=reads, option="--workdir", known=[CONFIG])


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.keys  # A file that failed to load raises only when it is used.
        return rest
    except Exception as error:  # A config file may raise anything.
        sys.exit(show(UsageError(_reason(error, argv))))


def _reason(error: Exception, argv: list[str]) -> str:
    """Describes an error in the flags or the config file in terms of the command line."""
    text = str(error).replace("\\n", " ").rpartition("earlier failure to load: ")[2]
    if isinstance(error, (FundusError, flags.Error)):
        return text
    if isinstance(error, (AttributeError, KeyError)) and (name := re.search(r"'(\w+)", text)):
        for flag in argv:
            if re.match(rf"--config\.([\w.]+\.)?{name[1]}\b", flag):
                close = re.search(r'Did you mean "(\w+)"', text)
                return f"{flag}: there is no setting {name[1]}" + (
                    f"; did you mean {close[1]}?" if close else " there"
                )
    return f"--config: {type(error).__name__}: {text}; expected FILE.py[:preset]"
