"""`enhance`: enhancement of degraded photographs."""

import argparse
import hashlib
import math
import sys
import time
from pathlib import Path

from vae.cli.options import declare, report_failures, results
from vae.data.errors import UsageError
from vae.data.region import add_options as add_fov_options
from vae.weights import ENHANCE

# The table is written this often, so that an interrupted run can continue.
SAVE_SECONDS = 20
NOT_FOR_DIAGNOSIS = (
    "Not for diagnosis: enhancement can hide lesions, and can show what is not there."
)


def add(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "enhance",
        help="enhance degraded photographs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Enhances photographs that are dark, hazy, blurred, noisy or badly lit and "
        "writes, each under its own\nname:\n"
        "  DIR/enhanced/      the enhanced photograph\n"
        "  DIR/comparisons/   before, after and difference side by side\n"
        "  DIR/changes/       a map of the change at each pixel\n"
        "  DIR/previews/      reduced pictures for the page\n"
        "  DIR/enhanced.csv   judgement, quality and metrics of the change\n"
        "  DIR/index.html     all photographs, before and after, with a slider\n\n"
        "The judgement names what was found: good, dim, bright, hazy, uneven, blurred, noisy, "
        "coded. Photographs of\none colour only (grey, red-free, angiograms) and those unlike a "
        "fundus photograph are left as they are.\nAfter an interruption the same command "
        "continues.\n" + NOT_FOR_DIAGNOSIS,
        epilog="examples:\n"
        "  fundus-vae enhance eye.jpg --out result\n"
        "  fundus-vae enhance photographs/ --out result --strength 0.5",
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="photographs, or folders of them")
    add("--model", default=ENHANCE, metavar="M",
        help="a run of configs/enhance256.py, a checkpoint in it, or an exported file (the "
        "bundled weights, enhance)")  # fmt: skip
    add("--out", required=True, metavar="DIR", help="output folder; existing files are replaced")
    add("--strength", type=float, default=1.0, metavar="S",
        help="strength of the change, from 0 to 1 (1)")  # fmt: skip
    add("--colour", choices=("keep", "correct"), default="keep",
        help="keep the hue, or move the mean colour to a typical one (keep)")  # fmt: skip
    add("--format", dest="file_format", choices=("png", "jpg"), default="png",
        help="format of the pictures; jpg has quality 95 (png)")  # fmt: skip
    add("--levels", type=float, default=50.0, metavar="N",
        help="grey levels at the top of the colour scale of changes (50)")  # fmt: skip
    add_fov_options(parser)
    declare(parser, results("out"), reads=("inputs", "model", "fov_mask"))
    parser.set_defaults(run=_enhance)


def _enhance(
    inputs: list[str],
    model: str | Path,
    out: str,
    strength: float,
    colour: str,
    file_format: str,
    levels: float,
    fov: str,
    fov_mask: str | None,
    max_lost_share: float,
) -> int:
    if not 0 <= strength <= 1:
        raise UsageError(f"--strength {strength:g}: expected a number from 0 to 1")
    if not (levels > 0 and math.isfinite(levels)):
        raise UsageError(f"--levels {levels:g}: expected grey levels above 0")
    from tqdm import tqdm

    from vae.data.failures import REJECTED, Failure
    from vae.data.inputs import open_inputs
    from vae.data.progress import watched
    from vae.data.region import FovChoice
    from vae.inference import enhanced_files
    from vae.inference.enhance import load_enhancer
    from vae.inference.enhanced_page import PAGE, write_page
    from vae.inference.reconstruct import origin_of, write_table

    photographs = open_inputs(inputs, choice=FovChoice(fov, fov_mask, max_lost_share))
    loaded = load_enhancer(model)
    print(f"model {loaded.saved.path}, step {loaded.saved.step}, {loaded.hash}")
    start, suffix = time.monotonic(), f".{file_format}"
    options = f"{fov}|{fov_mask}|{max_lost_share}|{levels}".encode()
    origin = origin_of(loaded) | {
        "strength": f"{strength:g}",
        "colour": colour,
        # Only results of the same options count as done; a digest names no path.
        "options": hashlib.blake2b(options, digest_size=4).hexdigest(),
    }
    rows: list[dict] = enhanced_files.finished(out, origin, suffix)
    if rows:
        print(f"{len(rows):,} of {len(photographs):,} photographs are done already")
    results = enhanced_files.enhance_inputs(
        loaded,
        photographs,
        strength=strength,
        colour=colour,
        without={row["id"] for row in rows},
    )
    written = enhanced_files.write_enhancements(
        results, out, origin=origin, suffix=suffix, levels=levels
    )
    failures: list[Failure] = []

    def finish() -> None:
        if rows:
            write_table(Path(out) / enhanced_files.TABLE, rows)
            folders = {name: name for name in (enhanced_files.ENHANCED, enhanced_files.CHANGES)}
            write_page(Path(out), rows, folders, suffix, origin)

    saved = start
    megapixels = 0.0
    try:
        for result in watched(written, "enhancing", len(photographs) - len(rows), "photograph"):
            if isinstance(result, Failure):
                failures.append(result)
                continue
            rows.append(result)
            megapixels += result["height"] * result["width"] / 1e6
            tqdm.write(
                f"{result['id']}  {result['width']} x {result['height']}  {result['judged']}; "
                f"changed by {result['mean_change']:.1f} grey levels on average, "
                f"{result['share_changed']:.0%} of pixels by more than {enhanced_files.CHANGED}"
            )
            if time.monotonic() > saved + SAVE_SECONDS:
                write_table(Path(out) / enhanced_files.TABLE, rows)
                saved = time.monotonic()
    except KeyboardInterrupt:
        finish()
        print(f"interrupted; {len(rows):,} of {len(photographs):,} photographs are written to "
              f"{out}; the same command continues", file=sys.stderr)  # fmt: skip
        return 130
    finish()
    if rows:
        print(f"{megapixels:,.1f} megapixels in {time.monotonic() - start:,.1f} s; open "
              f"{Path(out) / PAGE}; metrics in {Path(out) / enhanced_files.TABLE}")  # fmt: skip
        print(NOT_FOR_DIAGNOSIS)
    return report_failures(failures, len(photographs), Path(out) / REJECTED)
