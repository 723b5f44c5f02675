"""`reconstruct`: reconstruction of tiles and photographs by an autoencoder."""

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path

from vae.cli.options import add_model, declare, report_failures, results
from vae.data.errors import UsageError
from vae.data.region import add_options as add_fov_options


def add(commands) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "reconstruct",
        help="reconstruct tiles and photographs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Encodes and decodes tiles or whole photographs of any size (jpg, png, tif, "
        "ppm, bmp, DICOM) and\nwrites, each under the image's own name:\n"
        "  DIR/reconstructions/   the reconstruction\n"
        "  DIR/comparisons/       original, reconstruction and difference side by side\n"
        "  DIR/differences/       a map of the difference at each pixel\n"
        "  DIR/reconstructions.csv  SSIM and PSNR inside the field of view\n\n"
        "Photographs are processed in windows with no seam. The published architecture has no "
        "bounded receptive field: it takes\nthem as tiles that overlap by half and are blended.",
        epilog="examples:\n"
        "  fundus-vae reconstruct eye.jpg --out result\n"
        "  fundus-vae reconstruct photographs/ --model runs/mine --out result --format jpg\n"
        "  fundus-vae reconstruct dataset --split test --model model.safetensors --out result",
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT",
        help="image files, folders, or a dataset that `build` wrote")  # fmt: skip
    add_model(parser)
    add("--out", required=True, metavar="DIR", help="output folder; existing files are replaced")
    add("--split", metavar="SPLIT", help="use only train, val or test of a dataset or manifest")
    add("--keep_border", action="store_true",
        help="also reconstruct pixels outside the field of view, with any names burned in there; "
        "by default they are black")  # fmt: skip
    add("--format", dest="file_format", choices=("png", "jpg"), default="png",
        help="format of the pictures; jpg has quality 95 (png)")  # fmt: skip
    add("--no_pictures", action="store_true", help="write only the reconstructions and the table")
    add("--levels", type=float, default=5.0, metavar="N",
        help="grey levels at the top of the colour scale of differences (5)")  # fmt: skip
    add_fov_options(parser)
    declare(parser, results("out"), reads=("inputs", "model", "fov_mask"))
    parser.set_defaults(run=_reconstruct)


def _reconstruct(
    inputs: list[str],
    model: str,
    out: str,
    split: str | None,
    keep_border: bool,
    file_format: str,
    no_pictures: bool,
    levels: float,
    fov: str,
    fov_mask: str | None,
    max_lost_share: float,
) -> int:
    if not (levels > 0 and math.isfinite(levels)):
        raise UsageError(f"--levels {levels:g}: expected grey levels above 0")
    from vae.data.failures import REJECTED, Failure
    from vae.data.inputs import open_inputs
    from vae.data.region import FovChoice
    from vae.inference import reconstruct
    from vae.inference.model import load_model

    choice = FovChoice(fov, fov_mask, max_lost_share)
    images = open_inputs(inputs, split=split, choice=choice)
    loaded = load_model(model)
    origin = reconstruct.origin_of(loaded)
    print(f"model {loaded.saved.path}, step {loaded.saved.step}, {loaded.hash}")
    if loaded.tile_size is not None:
        side = loaded.tile_size
        print(f"this model takes tiles of {side} x {side} pixels: other photographs are cut into "
              "tiles that overlap by half and are blended")  # fmt: skip
    start = time.monotonic()
    results = reconstruct.reconstruct_inputs(loaded, images, keep_border=keep_border)
    written = reconstruct.write_reconstructions(
        results,
        out,
        origin=origin,
        suffix=f".{file_format}",
        with_pictures=not no_pictures,
        levels=levels,
    )
    rows: list[dict] = []
    failures: list[Failure] = []
    try:
        for result in _with_progress(written, len(images)):
            (failures if isinstance(result, Failure) else rows).append(result)
    except KeyboardInterrupt:
        print(f"interrupted; {len(rows):,} of {len(images):,} images are written to {out}; the "
              "same command starts over", file=sys.stderr)  # fmt: skip
        return 130
    if rows:
        reconstruct.write_table(Path(out) / reconstruct.TABLE, rows)
        _print_means(rows, Path(out) / reconstruct.TABLE, time.monotonic() - start)
    return report_failures(failures, len(images), Path(out) / REJECTED)


def _with_progress(written, total: int):
    """Prints a line for each image, and progress and rate to the standard error."""
    from tqdm import tqdm

    from vae.data.failures import Failure
    from vae.inference.reconstruct import format_metrics

    with contextlib.closing(written), tqdm(total=total, unit="image", disable=None) as bar:
        for result in written:
            if not isinstance(result, Failure):
                text = format_metrics(result["ssim"], result["psnr"])
                region = "" if result["fov"] == "disc" else f"  (field of view: {result['fov']})"
                size = f"{result['width']} x {result['height']}"
                bar.write(f"{result['id']}  {size}  {text}{region}")
            bar.update()
            yield result


def _print_means(rows: list[dict], table: Path, seconds: float) -> None:
    from vae.inference.reconstruct import format_metrics

    means = []
    for name in ("ssim", "psnr"):
        values = [row[name] for row in rows if not math.isnan(row[name])]
        means.append(sum(values) / len(values) if values else math.nan)
    megapixels = sum(row["height"] * row["width"] for row in rows) / 1e6
    print(f"mean of {len(rows):,} images: {format_metrics(*means)}, inside the field of view")
    print(f"{megapixels:,.1f} megapixels in {seconds:,.1f} s; written to {table.parent}, "
          f"metrics in {table}")  # fmt: skip
