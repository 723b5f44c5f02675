"""Trains or evaluates one experiment.

    python run_experiment.py --config=configs/fundus256.py:demo --workdir=runs/demo
    python run_experiment.py --config=configs/fundus256.py --config.data.dir=DIR --workdir=DIR
    python run_experiment.py --config=... --workdir=DIR --mode=evaluate

The same command continues a run that was interrupted.
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from data.errors import FundusError, UsageError

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment, FILE.py[:preset].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")


def main(argv: list[str]) -> None:
    """Runs what the flags ask for; a user's mistake is one line, not a traceback."""
    try:
        _run(argv)
    except FundusError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # At once: after a failed write Orbax's threads would go on to complain with tracebacks.
        os._exit(error.exit_code)


def _run(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; settings are given as --config.x=y")
    for name, value in (("config", _CONFIG.value), ("workdir", _WORKDIR.value)):
        if not value:
            raise UsageError(f"--{name} is missing; see the head of run_experiment.py")
    config = _CONFIG.value
    if config.train.deterministic:
        flag = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    # Imported late: the flags above must be set before JAX meets a device.
    from vae.training import train

    if _MODE.value == "train":
        train.train(config, _WORKDIR.value)
    else:
        train.evaluate_workdir(config, _WORKDIR.value)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, FundusError, AttributeError, KeyError, TypeError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    # Tensorflow only writes files here; without these it greets at length.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    app.run(main, flags_parser=_parse_flags)
