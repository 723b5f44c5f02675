"""Options, outputs and lists of failures that several commands share."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vae.data.errors import DataError
from vae.data.failures import Failure, write_rejected
from vae.data.outputs import claim_folder
from vae.weights import DEFAULT, NAMES

_SHOWN = 20  # failures on the console; the table lists all

MODELS = (
    "a run's workdir, checkpoints/STEP in it, an exported .safetensors file, the output of "
    f"convert_torch_checkpoint, hf://owner/name, or bundled weights: {', '.join(NAMES)}"
)


def add_model(parser: argparse.ArgumentParser, which: str = "") -> None:
    """Registers the optional `--model`; `which` precedes the possible values in its help."""
    parser.add_argument(
        "--model", default=DEFAULT, metavar="M", help=f"{which}{MODELS} ({DEFAULT.stem})"
    )


def declare(
    parser: argparse.ArgumentParser,
    writes: Mapping[str, Callable[..., contextlib.AbstractContextManager]],
    reads: Sequence[str],
) -> None:
    """Declares what a command writes and reads, so that its outputs are claimed before it runs.

    Args:
      parser: Parser of the command.
      writes: For each option that names an output, the function of `vae.data.outputs` that claims
        it.
      reads: Names of the options, with one path or several each, that are only read.
    """
    parser.set_defaults(writes=dict(writes), reads=tuple(reads))


@contextlib.contextmanager
def claim_outputs(command: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Claims the outputs that a command has declared, until it ends.

    Args:
      command: Name of the command.
      arguments: Its options; the entries that `declare` added are removed.

    Raises:
      UsageError, DataError: As `vae.data.outputs.claim_folder` and `claim_new` do.
    """
    writes, reads = arguments.pop("writes", {}), []
    for name in arguments.pop("reads", ()):
        value = arguments[name]
        reads += [value] if isinstance(value, str | os.PathLike) else value or []
    claimed = set()
    with contextlib.ExitStack() as stack:
        for name, claim in writes.items():
            out = arguments[name]
            if out is None or (real := os.path.realpath(out)) in claimed:
                continue
            stack.enter_context(claim(out, command, reads=reads, option=f"--{name}"))
            claimed.add(real)
        yield


def results(*names: str) -> dict[str, Callable[..., contextlib.AbstractContextManager]]:
    """Returns `writes` for `declare`: options that each name a folder of results."""
    return dict.fromkeys(names, claim_folder)


def report_failures(failures: Sequence[Failure], total: int, table: Path) -> int:
    """Lists failed images in a table and on the console; returns 0 if there are none.

    Args:
      failures: Failures of one run.
      total: Number of images of the run.
      table: CSV file of the failures, removed if there are none.

    Raises:
      DataError: Some images failed.
    """
    write_rejected(table, failures)
    if not failures:
        return 0
    print_reasons(failure.reason for failure in failures)
    raise DataError(f"{len(failures):,} of {total:,} images failed; all are listed in {table}")


def print_reasons(reasons: Iterable[str]) -> None:
    """Prints the first reasons to the standard error, and the number of the others."""
    reasons = list(reasons)
    for reason in reasons[:_SHOWN]:
        print(reason, file=sys.stderr)
    if len(reasons) > _SHOWN:
        print(f"... and {len(reasons) - _SHOWN:,} more", file=sys.stderr)
