"""`enhance`: enhancement of degraded photographs."""

import argparse
import math
import sys
import time
from pathlib import Path

from vae.cli.options import declare, report_failures, results
from vae.data.errors import UsageError
from vae.data.region import add_options as add_fov_options
from vae.weights import ENHANCE

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
        "  DIR/uncertainty/   with --uncertainty: a map of the estimated error\n"
        "  DIR/enhanced.csv   metrics of the change\n\n"
        "Photographs of one colour only (grey, red-free, angiograms) are left as they are.\n"
        + NOT_FOR_DIAGNOSIS,
        epilog="examples:\n"
        "  fundus-vae enhance eye.jpg --out result\n"
        "  fundus-vae enhance photographs/ --out result --strength 0.5 --uncertainty",
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="photographs, or folders of them")
    add("--model", default=ENHANCE, metavar="M",
        help="a run of configs/enhance256.py, a checkpoint in it, or an exported file (the "
        "bundled weights, enhance)")  # fmt: skip
    add("--out", required=True, metavar="DIR", help="output folder; existing files are replaced")
    add("--strength", type=float, default=1.0, metavar="S",
        help="strength of the change, from 0 to 1 (1)")  # fmt: skip
    add("--uncertainty", action="store_true",
        help="estimate the error at strength 1 from 8 samples: 9 times the work")  # fmt: skip
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
    uncertainty: bool,
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
    from vae.inference.reconstruct import origin_of, write_table

    photographs = open_inputs(inputs, choice=FovChoice(fov, fov_mask, max_lost_share))
    loaded = load_enhancer(model)
    print(f"model {loaded.saved.path}, step {loaded.saved.step}, {loaded.hash}")
    start = time.monotonic()
    results = enhanced_files.enhance_inputs(
        loaded, photographs, strength=strength, samples=8 if uncertainty else 0
    )
    written = enhanced_files.write_enhancements(
        results,
        out,
        strength=strength,
        origin=origin_of(loaded),
        suffix=f".{file_format}",
        levels=levels,
    )
    rows: list[dict] = []
    failures: list[Failure] = []
    try:
        for result in watched(written, "enhancing", len(photographs), "photograph"):
            (failures if isinstance(result, Failure) else rows).append(result)
            if not isinstance(result, Failure):
                done = result["note"] or (
                    f"changed by {result['mean_change']:.1f} grey levels on average, "
                    f"{result['share_changed']:.0%} of pixels by more than {enhanced_files.CHANGED}"
                )
                tqdm.write(f"{result['id']}  {result['width']} x {result['height']}  {done}")
    except KeyboardInterrupt:
        print(f"interrupted; {len(rows):,} of {len(photographs):,} photographs are written to "
              f"{out}; the same command starts over", file=sys.stderr)  # fmt: skip
        return 130
    if rows:
        table = Path(out) / enhanced_files.TABLE
        write_table(table, rows)
        megapixels = sum(row["height"] * row["width"] for row in rows) / 1e6
        print(f"{megapixels:,.1f} megapixels in {time.monotonic() - start:,.1f} s; written to "
              f"{out}, metrics in {table}")  # fmt: skip
        print(NOT_FOR_DIAGNOSIS)
    return report_failures(failures, len(photographs), Path(out) / REJECTED)
