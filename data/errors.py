"""Errors that the user can act on: one line, shown without a traceback."""

import contextlib
import sys
from collections.abc import Callable


class FundusError(Exception):
    """An error in the input or the command line; its message is one line and suggests a remedy.

    Attributes:
      exit_code: Exit status of the command.
    """

    exit_code = 1


def escape_output() -> None:
    """Makes stdout and stderr escape control characters and those that their encoding lacks.

    File names may contain any character. Printing one must neither end a run nor control the
    terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # No text stream, or a closed one.
            stream.reconfigure(errors="backslashreplace")
            if not isinstance(stream.write, _Escaping):
                stream.write = _Escaping(stream.write)


class _Escaping:
    """A stream's `write` that escapes control characters other than tab, line end and \r."""

    def __init__(self, write: Callable[[str], int]):
        self._write = write

    def __call__(self, text: str) -> int:
        self._write(text.translate(_CONTROLS))
        return len(text)


_CONTROLS = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\t\n\r"}


def one_line(error: Exception | str) -> str:
    """Returns the text of an error with all white space as single blanks."""
    return " ".join(str(error).split())


def is_out_of_memory(error: Exception) -> bool:
    """Returns True if the memory of the machine or of a device was not enough."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def show(error: FundusError | OSError) -> int:
    """Prints an error as one line, "error: ...", to stderr.

    Returns:
      The exit status of the command.
    """
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    print(f"error: {one_line(text)}", file=sys.stderr, flush=True)
    return getattr(error, "exit_code", 1)


class UsageError(FundusError):
    """The command, an option or a config value is wrong."""

    exit_code = 2


class DataError(FundusError):
    """A file is missing, unreadable or has unexpected content."""

    exit_code = 1
