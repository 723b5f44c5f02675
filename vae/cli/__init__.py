"""The command `fundus-vae`: makes datasets from photographs, trains models and applies them."""

import argparse
import contextlib
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import vae
from vae.cli.options import claim_outputs
from vae.data.errors import (
    DataError,
    FundusError,
    UsageError,
    escape_output,
    is_out_of_memory,
    show,
)

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
    """A parser that raises a wrong command as a one-line error, without printing all options.

    The error suggests the command or option with the most similar name.
    """

    _given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{self._meant()}; `{self.prog} --help` lists the options")

    def _meant(self) -> str:
        """Returns "; did you mean X?" for the first unknown command or option with such an X."""
        given, parser = list(self._given), self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and given:
                if given[0] not in action.choices:
                    return _suggestion(given[0], action.choices)
                parser = action.choices[given.pop(0)]
        options = [name for name in parser._option_string_actions if name.startswith("--")]
        for word in (word.partition("=")[0] for word in given):
            if word.startswith("--") and word not in options:
                return _suggestion(word, options)
        return ""


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def entry() -> NoReturn:
    """Runs the command of this process and ends the process."""
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The command has ended; so does the process.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code >= 128:
        # Threads of XLA may still compute, and would crash when the interpreter ends under them.
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
      The exit code: 0, 1 for bad data, 2 for wrong usage, 130 after Ctrl-C, 143 after SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:  # Its flags are absl's, and it handles signals itself.
        try:
            from vae.cli import train
        except KeyboardInterrupt:
            return _interrupted()
        train.main(["fundus-vae train", *argv[1:]])
    escape_output()
    with terminable() as signals:
        code = _run(argv)
    return 128 + signals[0] if signals else code


def make_parser() -> Parser:
    """Returns the parser of all subcommands."""
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
    return parser


def _run(argv: Sequence[str]) -> int:
    try:
        arguments: dict[str, Any] = vars(make_parser().parse_args(argv))
        run, command = arguments.pop("run"), arguments.pop("command")
        with claim_outputs(command, arguments):
            return run(**arguments)
    except BrokenPipeError:  # The reader, for example `head`, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FundusError, OSError) as error:
        return show(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return show(DataError("out of memory; close other programs, or set JAX_PLATFORMS=cpu"))
    except KeyboardInterrupt:
        return _interrupted()


def _interrupted() -> int:
    print(
        "interrupted; no incomplete file is left, and the same command can be run again",
        file=sys.stderr,
    )
    return 130


@contextlib.contextmanager
def terminable() -> Iterator[list[int]]:
    """Makes SIGTERM end a command as Ctrl-C does; yields a list of the signals received."""
    signals: list[int] = []

    def interrupt(number: int, frame: Any) -> NoReturn:
        if number != signal.SIGALRM:
            signals.append(number)
        raise KeyboardInterrupt

    def unraisable(lost: Any) -> None:
        # A callback of JAX, for example of its garbage collection, has swallowed the interrupt.
        if isinstance(lost.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            hook(lost)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    hook = sys.unraisablehook
    try:
        # A shell's background commands ignore SIGINT.
        before = {
            number: signal.signal(number, interrupt)
            for number in numbers
            if signal.getsignal(number) != signal.SIG_IGN
        }
    except ValueError:  # Not the main thread, which alone can set signal handlers.
        yield signals
        return
    sys.unraisablehook = unraisable
    try:
        yield signals
    finally:
        sys.unraisablehook = hook
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
