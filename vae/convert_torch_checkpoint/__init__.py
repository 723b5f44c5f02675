"""convert_torch_checkpoint: converts the published PyTorch weights to a model and back.

    convert_torch_checkpoint model.pth --out DIR [--verify]      writes DIR/model.safetensors
    convert_torch_checkpoint --to_torch DIR --out model.pth      writes model.pth

Only this package needs PyTorch: pip install 'fundus-vae[convert]'.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vae.cli import Parser
from vae.data.errors import FundusError, UsageError, escape_output, show
from vae.data.extras import require_extra

EPILOG = """\
examples:
  convert_torch_checkpoint model.pth --dry_run
  convert_torch_checkpoint model.pth --out published --verify
  fundus-vae info published
  convert_torch_checkpoint --to_torch published --out model.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 1 for bad data, 2 for wrong usage."""
    escape_output()
    parser = Parser(
        prog="convert_torch_checkpoint",
        description="Converts the published PyTorch weights to a model of this project. The latent "
        "and image size are read from the shapes; nothing in the file is ever executed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", nargs="?", type=Path, metavar="MODEL.pth", help="a state dict; .safetensors too"
    )
    parser.add_argument("--out", type=Path, help="folder to make; with --to_torch, the file")
    parser.add_argument("--dry_run", action="store_true", help="only print the list of tensors")
    parser.add_argument(
        "--verify", action="store_true", help="compare both frameworks on synthetic tiles"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    parser.add_argument(
        "--to_torch", type=Path, metavar="MODEL", help="write this model for PyTorch instead"
    )
    try:
        options = parser.parse_args(argv)
        if (options.source is None) == (options.to_torch is None):
            raise UsageError("give either MODEL.pth to convert or --to_torch MODEL to convert back")
        if options.out is None and not options.dry_run:
            raise UsageError("--out is missing: where to write")
        if options.to_torch and (options.dry_run or options.verify):
            raise UsageError("--dry_run and --verify do not apply to --to_torch")
        require_extra("convert", "convert_torch_checkpoint", "torch")
        # Imported late, so that wrong usage is reported at once.
        from vae.convert_torch_checkpoint import run

        if options.to_torch:
            return run.to_torch(options.to_torch, options.out, overwrite=options.overwrite)
        if options.dry_run:
            return run.dry_run(options.source)
        return run.from_torch(
            options.source, options.out, overwrite=options.overwrite, verify=options.verify
        )
    except (FundusError, OSError) as error:
        return show(error)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
