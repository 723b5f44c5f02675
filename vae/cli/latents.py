"""`encode` and `decode`: images to latents on disk, and back."""

import argparse
import dataclasses
import functools
import os
from pathlib import Path

from vae.cli.options import add_model, declare, print_reasons, report_failures, results
from vae.data.errors import DataError, UsageError
from vae.data.outputs import MARKER, claim_new, refuse_overlap
from vae.data.region import add_options as add_fov_options

# This step adds noise of 3 / sqrt(12) standard deviations, less than a posterior sample does.
DEFAULT_STEP = 3.0


def add(commands) -> None:
    """Registers the commands."""
    _add_encode(commands)
    _add_decode(commands)


def _add_encode(commands) -> None:
    parser = commands.add_parser(
        "encode",
        help="encode images to latents on disk",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Encodes tiles and whole photographs: posterior means with ids, patients and\n"
        "positions, in a zarr store of any size or an .npz file (for small sets: it is\n"
        "collected in memory and written at the end). An interrupted encode into .zarr\n"
        "is continued by the same command. Pixels outside a known field of view are\n"
        "encoded as black.",
        epilog="float32 latents decode to exactly what `reconstruct` gives. With float16 a pixel\n"
        "may differ by one grey level (1 in 100 do at f8c32). --quantise stores integers of\n"
        "a few bits and prints size and quality next to those of JPEG.\n\n"
        "examples:\n"
        "  fundus-vae encode dataset --split test --model runs/fundus256 --out test.zarr\n"
        "  fundus-vae encode eyes/ --model model.safetensors --out eyes.zarr --quantise\n"
        "  fundus-vae encode eye.jpg --model runs/fundus256 --out eye.npz --log_var",
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="image files, folders, or a built dataset")
    add_model(parser)
    add("--out", required=True, metavar="PATH", help="*.zarr or *.npz, new or begun by the same "
        "command")  # fmt: skip
    add("--split", choices=("train", "val", "test"), help="split of a dataset (all)")
    add("--log_var", action="store_true", help="also store log-variances")
    add("--dtype", choices=("float32", "float16"), help="dtype of the latents (float32)")
    add("--quantise", type=float, nargs="?", const=DEFAULT_STEP, metavar="STEP",
        help="store entropy-coded multiples of STEP posterior standard deviations "
        f"({DEFAULT_STEP:g})")  # fmt: skip
    add("--keep_border", action="store_true", help="also encode pixels outside the field of view")
    add_fov_options(parser)
    # An existing store is resumed, or refused because of what it records.
    claim = functools.partial(claim_new, replaces=True, parents=True)
    declare(parser, {"out": claim}, reads=("inputs", "model", "fov_mask"))
    parser.set_defaults(run=_encode)


def _add_decode(commands) -> None:
    parser = commands.add_parser(
        "decode",
        help="decode latents on disk to images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Decodes what `encode` wrote: OUT/<item id>.png in the original size, black\n"
        "outside a known field of view. Only the model that encoded the images can\n"
        "decode them.",
        epilog="examples:\n  fundus-vae decode test.zarr --model runs/fundus256 --out decoded",
    )
    add = parser.add_argument
    add("latents", metavar="LATENTS", help="*.zarr or *.npz written by `fundus-vae encode`")
    add_model(parser, "the model that encoded: ")
    add("--out", required=True, metavar="DIR", help="folder for the images")
    add("--keep_border", action="store_true", help="keep decoded pixels outside the field of view")
    declare(parser, results("out"), reads=("latents", "model"))
    parser.set_defaults(run=_decode)


def _encode(
    inputs: list[str],
    model: str,
    out: str,
    split: str | None,
    log_var: bool,
    dtype: str | None,
    quantise: float | None,
    keep_border: bool,
    fov: str,
    fov_mask: str | None,
    max_lost_share: float,
) -> int:
    _check_options(log_var, dtype, quantise)

    import vae
    from vae.checkpoints.provenance import provenance
    from vae.data.inputs import open_inputs
    from vae.data.region import FovChoice
    from vae.inference.latent_store import FORMAT, open_latents
    from vae.inference.latent_writer import open_writer
    from vae.inference.latents import describe_model, encode_inputs
    from vae.inference.quantise import check_step

    if quantise is not None:
        check_step(quantise)
    choice = FovChoice(fov, fov_mask and str(Path(fov_mask).resolve()), max_lost_share)
    images = open_inputs(inputs, split=split, choice=choice)
    loaded = vae.load_model(model)
    about = {
        "format": FORMAT,
        **describe_model(loaded),
        "inputs": [str(Path(path).resolve()) for path in inputs],
        "split": split,
        "count": len(images),
        "dtype": dtype or "float32",
        "log_var": log_var,
        "quantise": quantise,
        "keep_border": keep_border,
        **dataclasses.asdict(choice),
        **provenance(),
    }
    writer = open_writer(out, about)
    if writer.complete:
        print(f"{out} is there already, complete")
    else:
        if writer.read:
            print(f"{out}: continuing after {writer.read} of {len(images)} images")
        encode_inputs(loaded, images, writer, keep_border=keep_border)
    if writer.items:
        store = open_latents(out)
        sizes = ", ".join(f"{len(g)} of {g.height}x{g.width}" for g in store.groups)
        print(f"{out}: latents of {writer.items} images ({sizes}), model {loaded.hash}")
        if quantise is not None:
            from vae.evaluation.compression import compare_with_jpeg

            print(compare_with_jpeg(loaded, store, images), flush=True)
    if writer.failures:
        print_reasons(failure["reason"] for failure in writer.failures)
        raise DataError(
            f"{len(writer.failures)} of {len(images)} images could not be encoded; all are listed"
            f" in {out}"
        )
    return 0


def _check_options(log_var: bool, dtype: str | None, quantise: float | None) -> None:
    if quantise is not None and dtype is not None:
        raise UsageError(f"--quantise stores integers, which have no --dtype {dtype}; drop one")
    if quantise is not None and log_var:
        raise UsageError("--log_var takes more space than the integers of --quantise; drop one")


def _decode(latents: str, model: str, out: str, keep_border: bool) -> int:
    import vae
    from vae.data.failures import REJECTED
    from vae.inference.latent_store import open_latents
    from vae.inference.latents import check_model, decode_to_folder

    store = open_latents(latents)
    if set(os.listdir(out)) != {MARKER}:  # Decoded copies must not replace the encoded images.
        refuse_overlap(out, store.about.get("inputs", ()))
    loaded = vae.load_model(model)
    check_model(store, loaded)
    failures = decode_to_folder(loaded, store, Path(out), keep_border=keep_border)
    print(f"{out}: {len(store) - len(failures)} images")
    return report_failures(failures, len(store), Path(out) / REJECTED)
