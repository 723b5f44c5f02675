"""What several commands share: options, and the list of what failed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError
from data.failures import Failure, write_rejected
from vae.weights import DEFAULT, NAMES

_SHOWN = 20  # failures on the console; the table holds all

MODELS = (
    "a run's workdir, checkpoints/STEP in it, an exported .safetensors file, what "
    f"convert_torch_checkpoint wrote, or weights that ship: {', '.join(NAMES)}"
)


def add_model(parser: argparse.ArgumentParser, which: str = "") -> None:
    """Registers `--model`, which may be left out; `which` is said before what it can be."""
    parser.add_argument(
        "--model", default=DEFAULT, metavar="M", help=f"{which}{MODELS} ({DEFAULT.stem})"
    )


def report_failures(failures: Sequence[Failure], total: int, table: Path) -> int:
    """Lists the images that failed in a table and on the console; 0 where none did.

    Args:
      failures: Of one run.
      total: Number of images of the run.
      table: CSV file of the failures, removed where there are none.

    Raises:
      DataError: Some failed.
    """
    write_rejected(table, failures)
    if not failures:
        return 0
    for failure in failures[:_SHOWN]:
        print(failure.reason, file=sys.stderr)
    if len(failures) > _SHOWN:
        print(f"... and {len(failures) - _SHOWN:,} more", file=sys.stderr)
    raise DataError(f"{len(failures):,} of {total:,} images failed; all are listed in {table}")
