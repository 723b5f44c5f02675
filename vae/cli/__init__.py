"""The command `fundus-vae`: photographs to a dataset, and a trained model put to use."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from data.errors import FundusError, UsageError, show

# Each registers its subcommands by `add(commands)`; what they need is imported when they run.
MODULES = (
    "dataset",
    "reconstruct",
    "latents",
    "embed",
    "models",
    "enhance",
    "degradations",
    "sample",
)


class Parser(argparse.ArgumentParser):
    """Raises a wrong command as an error of one line instead of printing all of its options."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows what there is")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 0, 1 for bad data, 2 for wrong usage."""
    parser = Parser(
        prog="fundus-vae",
        description="Fundus photographs to tiles, tiles to a dataset for run_experiment.py, and "
        "what a trained model is good for.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in MODULES:
        importlib.import_module(f"vae.cli.{name}").add(commands)
    try:
        arguments = vars(parser.parse_args(argv))
        run = arguments.pop("run")
        del arguments["command"]
        return run(**arguments)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FundusError, OSError) as error:
        return show(error)
    except KeyboardInterrupt:
        print("interrupted; no half file is left, and the same command can be run again",
              file=sys.stderr)  # fmt: skip
        return 130
