"""Errors a person can act on: one line, shown without a traceback."""

import contextlib
import sys


class FundusError(Exception):
    """A mistake in the input or the command line, told in one line with the way out.

    Attributes:
      exit_code: What a command that meets it exits with.
    """

    exit_code = 1


def escape_output() -> None:
    """Has the standard streams write characters that their encoding lacks as escapes.

    Names of files may hold any character; to print one must not end a run.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # No text stream, or a closed one.
            stream.reconfigure(errors="backslashreplace")


def show(error: FundusError | OSError) -> int:
    """Prints an error as one line, "error: ...", to the standard error.

    Returns:
      What the command exits with.
    """
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return getattr(error, "exit_code", 1)


class UsageError(FundusError):
    """The command, an option or a config value is wrong."""

    exit_code = 2


class DataError(FundusError):
    """A file is missing, unreadable or not what it should be."""

    exit_code = 1
