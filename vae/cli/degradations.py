"""`degradations`: a photograph under every degradation that enhancement learns to undo."""

import argparse
from pathlib import Path

from vae.cli.options import declare
from vae.data.errors import DataError, UsageError
from vae.data.outputs import claim_new


def add(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "degradations",
        help="draw a contact sheet of a photograph under every degradation",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Draws one photograph under each degradation that enhancement is trained to "
        "undo, at five severities.",
        epilog="examples:\n  fundus-vae degradations eye.jpg --out sheet.png",
    )
    add = parser.add_argument
    add("photograph", metavar="PHOTOGRAPH", help="an image file")
    add("--out", required=True, metavar="FILE", help="the sheet, a new .png or .jpg")
    add("--seed", type=int, default=0, help="seed of all random draws (0)")
    declare(parser, {"out": claim_new}, reads=("photograph",))
    parser.set_defaults(run=_degradations)


def _degradations(photograph: str, out: str, seed: int) -> int:
    if Path(out).suffix.lower() not in (".png", ".jpg"):
        raise UsageError(f"--out {out}: expected a name that ends in .png or .jpg")
    if seed < 0:
        raise UsageError(f"--seed {seed}: expected a number from 0 on")
    from vae.data.images import read_image, write_image

    image = read_image(photograph)

    from vae.inference.contact_sheet import contact_sheet

    try:
        sheet = contact_sheet(image, seed)
    except DataError as error:
        raise DataError(f"{photograph}: {error}") from error
    write_image(out, sheet)
    print(f"{out}: {sheet.shape[1]} x {sheet.shape[0]}")
    return 0
