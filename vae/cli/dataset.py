"""`make-tiles` and `build`: from photographs to a dataset."""

import argparse

from vae.data.errors import DataError
from vae.data.layouts import LAYOUTS, with_layout
from vae.data.region import add_options as add_fov_options


def add(commands) -> None:
    """Registers the commands."""
    _add_make_tiles(commands)
    _add_build(commands)


def _add_make_tiles(commands) -> None:
    parser = commands.add_parser(
        "make-tiles",
        help="cut photographs into tiles inside the field of view",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Cuts every photograph of a tree into tiles inside its field of view, with a "
        "manifest and a split by patient.",
        epilog="examples:\n"
        "  fundus-vae make-tiles --photographs eyes --out tiles --patient_regex '(P\\d+)_'\n"
        "  fundus-vae make-tiles --photographs eyepacs --out tiles --layout eyepacs\n"
        "  fundus-vae make-tiles --photographs eyes --out tiles --patients patients.csv",
    )
    add = parser.add_argument
    add("--photographs", required=True, metavar="DIR",
        help="folder, searched with subfolders; a photograph's folder is its label")  # fmt: skip
    add("--out", required=True, metavar="DIR", help="new, or begun by the same command")
    add("--tile", type=int, default=256, metavar="PIXELS", help="side of a tile (256)")
    add("--stride", type=int, default=128, metavar="PIXELS", help="distance between tiles (128)")
    add("--min_fov", type=float, default=0.9, metavar="SHARE",
        help="smallest share of a tile inside the field of view (0.9)")  # fmt: skip
    add_fov_options(parser)
    add("--fov_width", type=int, metavar="PIXELS", help="scale every field of view to this width")
    add("--format", dest="file_format", choices=("png", "jpg"), default="png",
        help="format of training tiles; val and test are always png (png)")  # fmt: skip
    _add_split_options(parser)
    add("--limit", type=int, metavar="N", help="cut only N photographs")
    add("--overlays", action="store_true", help="draw the field of view and the tiles")
    add("--seed", type=int, default=0, help="seed of the tiles' jitter (0)")
    add("--workers", type=int, metavar="N", help="number of processes (one per core)")
    parser.set_defaults(run=_make_tiles)


def _add_build(commands) -> None:
    parser = commands.add_parser(
        "build",
        help="build a dataset of sharded TFRecords from tiles",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Validates every tile and writes sharded records with an index.",
        epilog="examples:\n"
        "  fundus-vae build --tiles tiles --data_dir dataset\n"
        "  fundus-vae build --tiles tree --data_dir dataset --patient_regex '(P\\d+)_'\n"
        "  fundus-vae build --tiles /nfs/tiles --data_dir /nfs/dataset --beam "
        "--beam_options=runner=SparkRunner,...",
    )
    add = parser.add_argument
    add(
        "--tiles",
        required=True,
        metavar="DIR",
        help="output of make-tiles, or [...]/LABEL/PHOTOGRAPH/*.png",
    )
    add("--data_dir", required=True, metavar="DIR", help="folder of the dataset")
    add("--file_format", choices=("tfrecord", "array_record"), default="tfrecord",
        help="format of the records (tfrecord)")  # fmt: skip
    add("--max_rejected", type=float, default=0.001, metavar="SHARE",
        help="refuse to build if a larger share of tiles is damaged (0.001)")  # fmt: skip
    _add_split_options(parser)
    add("--overwrite", action="store_true", help="replace an existing dataset")
    add("--workers", type=int, metavar="N",
        help="validation threads, or processes with --beam (one per core)")  # fmt: skip
    add("--beam", action="store_true", help="write the same shards with Apache Beam")
    add("--beam_options", default="", metavar="A=B,C=D",
        help="options of Beam: runner=DataflowRunner,... (processes of this machine)")  # fmt: skip
    parser.set_defaults(run=_build)


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--patients", metavar="CSV",
        help="a table: photograph (name or path below DIR), patient[, label, split]")  # fmt: skip
    add("--patient_regex", metavar="REGEX",
        help="a pattern whose first group is the patient, searched in the path below DIR without "
        "the suffix: (P\\d+)_ finds P07 in hrf/P07_L and in site/P07_1/OD")  # fmt: skip
    add("--layout", choices=tuple(LAYOUTS), metavar="NAME",
        help="the pattern for names of a public set; docs/datasets.md has them: "
        + ", ".join(LAYOUTS))  # fmt: skip
    add("--patients_unknown", action="store_true", help="accept unknown patients; tables say so")
    add("--val", type=float, default=0.1, metavar="SHARE", help="share of the patients (0.1)")
    add("--test", type=float, default=0.1, metavar="SHARE", help="share of the patients (0.1)")
    add("--stratify", choices=("label",), help="take these shares of the patients of each label")


def _make_tiles(**options) -> int:
    from vae.data.tiling import make_tiles

    summary = make_tiles(**with_layout(options))
    print(summary)
    print(f"next: fundus-vae build --tiles {options['out']} --data_dir DIR", flush=True)
    if summary.rejected:
        # The other tiles are complete, but the exit code must tell scripts of the failures.
        raise DataError(f"{len(summary.rejected)} photographs gave no tiles; they are listed above")
    return 0


def _build(**options) -> int:
    from vae.data.fundus_tiles.build import build

    print(build(**with_layout(options)))
    print("next: python run_experiment.py --config=configs/fundus256.py "
          f"--config.data.dir={options['data_dir']} --workdir=DIR")  # fmt: skip
    return 0
