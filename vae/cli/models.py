"""`evaluate`, `info` and `export`: metrics, a description, and other formats of a model."""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vae.cli.options import MODELS, add_model, declare, results
from vae.data.errors import UsageError
from vae.data.extras import require_extra
from vae.data.outputs import claim_new
from vae.weights import presets

if TYPE_CHECKING:
    from vae.checkpoints.safetensors_io import SavedModel

# Reasons why a model is no pair of programs, by architecture.
_NO_PROGRAM = {
    "enhancer": "it finds light and blur of the whole photograph, and then works in windows",
    "prior": "its solver needs the autoencoder, and draws with JAX's random numbers",
}


def add(commands) -> None:
    """Registers the commands."""
    _add_evaluate(commands)
    _add_info(commands)
    _add_export(commands)


def _add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure a model on a dataset and compare it with baselines",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures a model on every tile of a split and on whole photographs, next to "
        "mean colour, bicubic,\nPCA of its latent size and JPEG of its bytes; prints the table.",
        epilog="examples:\n"
        "  fundus-vae evaluate --model runs/mine --data dataset --report report\n"
        "  fundus-vae evaluate --model model.safetensors --data dataset --split val --limit 200",
    )
    add = parser.add_argument
    add_model(parser)
    add("--data", required=True, metavar="DIR", help="the dataset, as `fundus-vae build` wrote it")
    add("--split", default="test", help="split: train, val or test (test)")
    add("--limit", type=int, default=0, metavar="N",
        help="use a random sample of N tiles (all); of an enhancer N photographs (12)")  # fmt: skip
    add("--out", metavar="DIR", help="folder for results.json, tiles.csv and a figure")
    add("--report", metavar="DIR", help="folder for index.html, a page that opens offline")
    add("--beside", nargs="+", default=(), metavar="M", help="more models for the page's curves")
    add("--vessel_weights", metavar="FILE",
        help="of an enhancer: also compare vessel maps by this network")  # fmt: skip
    reads = ("model", "data", "beside", "vessel_weights")
    declare(parser, results("out", "report"), reads=reads)
    parser.set_defaults(run=_evaluate)


def _add_info(commands) -> None:
    parser = commands.add_parser(
        "info",
        help="describe a model, or list the bundled ones",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Prints architecture, size, latent statistics, training data and metrics; "
        "without M, the bundled models.",
        epilog="examples:\n  fundus-vae info\n  fundus-vae info runs/mine\n"
        "  fundus-vae info model.safetensors --json",
    )
    parser.add_argument("model", metavar="M", nargs="?", help=MODELS)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="export a model as one file, for onnxruntime, or as programs that need only JAX",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a model as one .safetensors file, which every command takes as a "
        "model and which names no folders of this machine;\nas ONNX files for onnxruntime in "
        "Python, JavaScript and others (extra [onnx]); or as StableHLO programs with the "
        "weights\ninside, which run without this package.",
        epilog="examples:\n"
        "  fundus-vae export runs/mine --out model.safetensors --dtype float16\n"
        "  fundus-vae export runs/first --average runs/second --out mean.safetensors\n"
        "  fundus-vae export runs/mine --hub hub --license cc-by-4.0\n"
        "  fundus-vae export runs/mine --onnx onnx\n"
        "  fundus-vae export runs/mine --stablehlo programs",
    )
    add = parser.add_argument
    add("model", metavar="M", help=MODELS)
    add("--out", metavar="FILE", help="a new .safetensors file")
    add("--dtype", choices=("float32", "float16"), default="float32",
        help="dtype of the large kernels (float32)")  # fmt: skip
    add("--average", metavar="M", nargs="+", default=(),
        help="average its weights with those of M, runs with the same initialization")  # fmt: skip
    add("--hub", metavar="DIR",
        help="a new folder for the Hugging Face Hub: config.json, model.safetensors, a card",
    )  # fmt: skip
    add("--license", metavar="ID",
        help="licence in the card of --hub (other; for bundled weights apache-2.0)")  # fmt: skip
    add("--onnx", metavar="DIR", help="a new folder for encoder.onnx, decoder.onnx")
    add("--stablehlo", metavar="DIR", help="a new folder for encode.stablehlo, decode.stablehlo")
    folder = functools.partial(claim_new, folder=True, parents=True)
    writes = {"out": claim_new, "hub": folder, "onnx": folder, "stablehlo": folder}
    declare(parser, writes, reads=("model", "average"))
    parser.set_defaults(run=_export)


def _evaluate(
    model: str,
    data: str,
    split: str,
    limit: int,
    out: str | None,
    report: str | None,
    beside: Sequence[str],
    vessel_weights: str | None,
) -> int:
    if limit < 0:
        raise UsageError(f"--limit {limit}: expected a number of tiles, or 0 for all")
    if beside and not report:
        raise UsageError("--beside adds models to the curves of --report DIR, which is missing")
    if report:
        require_extra("report", "--report", "matplotlib.figure")
    from vae.checkpoints.config import ENHANCER, PRIOR
    from vae.checkpoints.loading import load_saved

    saved = load_saved(model)
    if saved.config.model.architecture == PRIOR:
        raise UsageError(
            f"{model} is a prior: `fundus-vae evaluate-samples --model {model}` measures it"
        )
    if saved.config.model.architecture == ENHANCER:
        if beside:
            raise UsageError(f"{model} is an enhancer; --beside adds curves of reconstruction")
        from vae.evaluation.enhancement import evaluate_enhancer

        vessels = None
        if vessel_weights:
            from vae.evaluation.vessels import load_segmentation

            vessels = load_segmentation(vessel_weights)
        evaluate_enhancer(
            saved, data, split=split, limit=limit, out=out, report=report, vessels=vessels
        )
        return 0
    if vessel_weights:
        raise UsageError("--vessel_weights is for enhancers; for reconstructions see benchmarks/")
    from vae.evaluation.run import evaluate_model

    evaluate_model(
        saved,
        data,
        split=split,
        limit=limit,
        out=out,
        report=report,
        other_models=_named(beside),
    )
    return 0


def _named(paths: Sequence[str]) -> "dict[str, SavedModel]":
    """Loads models by the shortest ends of their paths that tell them apart."""
    from vae.checkpoints.loading import load_saved

    paths = list(dict.fromkeys(paths))
    depth = 1
    while len(set(names := ["/".join(Path(path).parts[-depth:]) for path in paths])) < len(paths):
        depth += 1
    return dict(zip(names, map(load_saved, paths), strict=True))


def _info(model: str | None, as_json: bool) -> int:
    from vae.checkpoints.loading import load_saved
    from vae.evaluation.info import format_info, format_presets, model_info

    if model is None:
        names = presets()
        print(json.dumps(names, indent=2) if as_json else format_presets(names))
        return 0
    info = model_info(load_saved(model))
    print(json.dumps(info, indent=2, ensure_ascii=False) if as_json else format_info(info))
    return 0


def _export(
    model: str,
    out: str | None,
    dtype: str,
    average: Sequence[str],
    hub: str | None,
    license: str | None,
    onnx: str | None,
    stablehlo: str | None,
) -> int:
    programs = {"--onnx": onnx, "--stablehlo": stablehlo}
    if not (out or hub or any(programs.values())):
        raise UsageError(
            "nothing to write: give --out FILE.safetensors, --hub, --onnx or --stablehlo DIR"
        )
    if dtype != "float32" and not (out or hub):
        raise UsageError(f"--dtype {dtype} is for --out and --hub; programs are float32")
    if license and not hub:
        raise UsageError(f"--license {license} is for the card of --hub DIR, which is missing")
    if out and Path(out).suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected a name that ends in .safetensors")
    from vae.checkpoints.config import ENHANCER, PRIOR
    from vae.checkpoints.loading import averaged, load_saved

    saved = averaged(load_saved(model), [load_saved(other) for other in average])
    kind = saved.config.model.architecture
    for option, folder in programs.items():
        if folder and kind in (ENHANCER, PRIOR):
            raise UsageError(
                f"{option} exports autoencoders only, and {model} has the architecture {kind}: "
                f"{_NO_PROGRAM[kind]}; --out FILE.safetensors exports any model"
            )
    if out:
        from vae.checkpoints.provenance import portable
        from vae.checkpoints.safetensors_io import write_safetensors

        write_safetensors(out, portable(saved), dtype=dtype)
        print(f"{out}: {Path(out).stat().st_size:,d} bytes, {dtype}")
    if hub:
        from vae.evaluation.hub_folder import write_hub

        _print_sizes(hub, write_hub(hub, saved, license, dtype=dtype))
    if onnx:
        from vae.inference.onnx_files import write_onnx

        _print_sizes(onnx, write_onnx(onnx, saved))
    if stablehlo:
        from vae.inference.stablehlo import write_stablehlo

        _print_sizes(stablehlo, write_stablehlo(stablehlo, saved))
    return 0


def _print_sizes(folder: str, sizes: dict[str, int]) -> None:
    print(f"{folder}: " + ", ".join(f"{name} {size:,d} bytes" for name, size in sizes.items()))
