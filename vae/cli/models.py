"""`evaluate`, `info` and `export`: metrics, a description, and other formats of a model."""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from vae.cli.options import MODELS, add_model, declare, results
from vae.data.errors import UsageError
from vae.data.outputs import claim_new
from vae.weights import DEFAULT


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
        help="use a random sample of N tiles (all); of an enhancer N photographs (16)")  # fmt: skip
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
        help="describe a model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Prints architecture, size, latent statistics, training data and metrics.",
        epilog="examples:\n  fundus-vae info runs/mine\n  fundus-vae info model.safetensors --json",
    )
    parser.add_argument("model", metavar="M", nargs="?", default=DEFAULT, help=MODELS)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="export a model as one file, or as programs that need only JAX",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a model as one .safetensors file, which every command takes as a "
        "model and which names no folders of this machine;\nor as StableHLO programs with the "
        "weights inside, which run without this package.",
        epilog="examples:\n"
        "  fundus-vae export runs/mine --out model.safetensors --dtype float16\n"
        "  fundus-vae export runs/first --average runs/second --out mean.safetensors\n"
        "  fundus-vae export runs/mine --stablehlo programs",
    )
    add = parser.add_argument
    add("model", metavar="M", help=MODELS)
    add("--out", metavar="FILE", help="a new .safetensors file")
    add("--dtype", choices=("float32", "float16"), default="float32",
        help="dtype of the large kernels (float32)")  # fmt: skip
    add("--average", metavar="M", nargs="+", default=(),
        help="average its weights with those of M, runs with the same initialization")  # fmt: skip
    add("--stablehlo", metavar="DIR", help="a new folder for encode.stablehlo, decode.stablehlo")
    folder = functools.partial(claim_new, folder=True, parents=True)
    writes = {"out": claim_new, "stablehlo": folder}
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
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            message = f"{error}: --report needs `pip install 'fundus-vae[report]'`"
            raise UsageError(message) from None
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
        other_models=[load_saved(path) for path in beside],
    )
    return 0


def _info(model: str, as_json: bool) -> int:
    from vae.checkpoints.loading import load_saved
    from vae.evaluation.info import format_info, model_info

    info = model_info(load_saved(model))
    print(json.dumps(info, indent=2, ensure_ascii=False) if as_json else format_info(info))
    return 0


def _export(
    model: str, out: str | None, dtype: str, average: Sequence[str], stablehlo: str | None
) -> int:
    if not (out or stablehlo):
        raise UsageError("nothing to write: give --out FILE.safetensors, --stablehlo DIR, or both")
    if dtype != "float32" and not out:
        raise UsageError(f"--dtype {dtype} is for --out; StableHLO programs are float32")
    if out and Path(out).suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected a name that ends in .safetensors")
    from vae.checkpoints.config import ENHANCER, PRIOR
    from vae.checkpoints.loading import averaged, load_saved

    saved = averaged(load_saved(model), [load_saved(other) for other in average])
    kind = saved.config.model.architecture
    if stablehlo and kind in (ENHANCER, PRIOR):
        raise UsageError(
            f"--stablehlo exports autoencoders only, and {model} has the architecture {kind}; "
            "--out FILE.safetensors exports any model"
        )
    if out:
        from vae.checkpoints.provenance import portable
        from vae.checkpoints.safetensors_io import write_safetensors

        write_safetensors(out, portable(saved), dtype=dtype)
        print(f"{out}: {Path(out).stat().st_size:,d} bytes, {dtype}")
    if stablehlo:
        from vae.inference.stablehlo import write_stablehlo

        sizes = write_stablehlo(stablehlo, saved)
        listed = ", ".join(f"{name} {size:,d} bytes" for name, size in sizes.items())
        print(f"{stablehlo}: {listed}")
    return 0
