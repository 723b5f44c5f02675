"""The command `fundus-vae`: photographs to a dataset, and a trained model put to use."""

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from vae.cli.options import claim_outputs
from vae.data.errors import FundusError, UsageError, escape_output, show

# Each registers its subcommands by `add(commands)`; what they need is imported when they run.
# What a command writes and reads it declares by `vae.cli.options.declare`.
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
    """Runs a subcommand.

    Returns:
      The exit code: 0, 1 for bad data, 2 for wrong usage, 130 after Ctrl-C, 143 after SIGTERM.
    """
    escape_output()
    parser = Parser(
        prog="fundus-vae",
        description="Fundus photographs to tiles, tiles to a dataset for run_experiment.py, and "
        "what a trained model is good for.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in MODULES:
        importlib.import_module(f"vae.cli.{name}").add(commands)
    with _terminable() as signals:
        code = _run(parser, argv)
    return 128 + signals[0] if signals else code


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    try:
        arguments: dict[str, Any] = vars(parser.parse_args(argv))
        run, command = arguments.pop("run"), arguments.pop("command")
        with claim_outputs(command, arguments):
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


@contextlib.contextmanager
def _terminable() -> Iterator[list[int]]:
    """Has SIGTERM end a command as Ctrl-C does; yields a list of the signals that came."""
    signals: list[int] = []

    def interrupt(number: int, frame: Any) -> NoReturn:
        signals.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # Not the main thread: signals are somebody else's.
        yield signals
        return
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
