"""The command `fundus-vae`: makes datasets from photographs, trains models and applies them."""

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import vae
from vae.cli.options import claim_outputs
from vae.data.errors import FundusError, UsageError, escape_output, show

# Each module registers its subcommands by `add(commands)` and imports what they need when they run.
# A command declares what it writes and reads by `vae.cli.options.declare`.
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
    """A parser that raises a wrong command as a one-line error, without printing all options."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` lists the options")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
      The exit code: 0, 1 for bad data, 2 for wrong usage, 130 after Ctrl-C, 143 after SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:  # Its flags are absl's, and it handles signals itself.
        from vae.cli import train

        train.main(["fundus-vae train", *argv[1:]])
    escape_output()
    parser = Parser(
        prog="fundus-vae",
        description="Cuts photographs into tiles, builds datasets, trains models and applies them. "
        "The help of an option ends with its default in parentheses.",
    )
    parser.add_argument("--version", action="version", version=f"fundus-vae {vae.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "train", add_help=False, help="train or evaluate an experiment, as run_experiment.py does"
    )
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
    except BrokenPipeError:  # The reader, for example `head`, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FundusError, OSError) as error:
        return show(error)
    except KeyboardInterrupt:
        print("interrupted; no incomplete file is left, and the same command can be run again",
              file=sys.stderr)  # fmt: skip
        return 130


@contextlib.contextmanager
def _terminable() -> Iterator[list[int]]:
    """Makes SIGTERM end a command as Ctrl-C does; yields a list of the signals received."""
    signals: list[int] = []

    def interrupt(number: int, frame: Any) -> NoReturn:
        signals.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # Not the main thread, which alone can set signal handlers.
        yield signals
        return
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
