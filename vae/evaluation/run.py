"""Evaluation of a model: from config and dataset to results.json, tiles.csv, table and report."""

import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vae.checkpoints.loading import variables_hash
from vae.checkpoints.modules import make_model
from vae.checkpoints.provenance import dated_provenance
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError, UsageError
from vae.data.files import make_folder, require_writable
from vae.data.pipeline import Dataset, eval_batches, open_dataset
from vae.data.progress import watched
from vae.data.thumbnails import THUMBNAILS
from vae.evaluation import table, tile_pictures
from vae.evaluation.curves import rate_curves
from vae.evaluation.evaluate import Evaluation, evaluate
from vae.evaluation.pca_baseline import pca_of_equal_size, wider_pca
from vae.evaluation.photographs import PhotographEvaluation, whole_photographs
from vae.evaluation.scoring import latent_size
from vae.evaluation.split import Split
from vae.inference.reconstruct import write_picture
from vae.sharding import local_rows, make_mesh, replicate, replicated

RESULTS = "results.json"
TILES = "tiles.csv"
FIGURE = "figures/reconstructions.png"
EXAMPLES = 5


def evaluate_and_draw(
    config: ConfigDict,
    variables: Any,
    dataset: Dataset,
    mesh: Mesh,
    *,
    limit: int = 0,
    baselines: bool = False,
) -> tuple[Evaluation, np.ndarray]:
    """Evaluates `config.eval.split` and draws some of its tiles.

    Args:
      config: The run's config.
      variables: Variables of the run's model, on the mesh.
      dataset: The dataset with the split.
      mesh: The run's mesh.
      limit: Size of a seeded sample of tiles; 0 for every tile once.
      baselines: If true, also computes the rows of baselines and JPEG.

    Returns:
      The metrics, and a picture uint8 [H, W, 3] of originals, reconstructions and differences.
    """
    module = make_model(config)
    split = _split(config, dataset, mesh, limit)
    evaluation = evaluate(
        module,
        variables,
        split,
        mesh=mesh,
        pca=pca_of_equal_size(module, config, variables, dataset) if baselines else None,
        seed=config.seed,
        baselines=baselines,
        jpeg=baselines,
        scale=_scale(dataset, config.eval.split),
        patients_known=dataset.patients_known,
    )
    examples = tile_pictures.pick_examples(evaluation, EXAMPLES)
    originals, reconstructions = tile_pictures.reconstruct_examples(
        module, variables, split, examples, mesh=mesh
    )
    captions = [example.caption for example in examples]
    return evaluation, tile_pictures.reconstruction_figure(originals, reconstructions, captions)


def evaluate_and_write(
    config: ConfigDict,
    variables: Any,
    dataset: Dataset,
    mesh: Mesh,
    out: epath.Path | None,
    *,
    step: int,
    limit: int = 0,
    report: epath.Path | None = None,
    other_models: Mapping[str, SavedModel] | None = None,
) -> Evaluation:
    """Evaluates every tile of the split and every photograph that can be found.

    Prints the table. Writes `results.json`, `tiles.csv` and the figure into `out`, and the report
    page and `results.json` into `report`; the curves of the page include the models `other_models`.
    Reports need a single process.
    """
    evaluation, figure = evaluate_and_draw(
        config, variables, dataset, mesh, limit=limit, baselines=True
    )
    photographs = _photographs(config, variables, dataset, mesh, evaluation, report is not None)
    # All processes call this: a leaf may be sharded over several.
    gathered = replicate(mesh, variables)
    if jax.process_index() != 0:
        return evaluation
    made = {"model": variables_hash(gathered), **dated_provenance()}
    content = table.results(evaluation, photographs) | {
        "config": config.name,
        "split": config.eval.split,
        "step": step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "dataset": dataset.fingerprint,
        "limit": limit,
        **made,
    }
    written = []
    if out is not None:
        write_picture(
            out / FIGURE, figure, {key: made[key] for key in ("model", "version", "command")}
        )
        table.write_tiles(out / TILES, evaluation, {key: made[key] for key in ("model", "version")})
        table.write_results(out / RESULTS, content)
        written += [out / RESULTS, out / TILES, out / FIGURE]
    if report is not None:
        written += _write_report(
            report,
            config,
            variables,
            dataset,
            mesh,
            content,
            evaluation,
            photographs,
            limit,
            other_models or {},
        )
    print(f"\n{config.name} after {step} steps, split {config.eval.split}:")
    print(table.format_table(evaluation, photographs))
    print("\nwritten: " + ", ".join(map(str, written)) if written else "", flush=True)
    return evaluation


def evaluate_model(
    saved: SavedModel,
    data_dir: str | os.PathLike,
    *,
    split: str = "test",
    limit: int = 0,
    out: epath.PathLike | None = None,
    report: epath.PathLike | None = None,
    other_models: Mapping[str, SavedModel] | None = None,
) -> Evaluation:
    """Evaluates a saved autoencoder on a dataset, as a run does at its end.

    Args:
      saved: The model.
      data_dir: Folder written by `fundus-vae build`.
      split: Name of the split.
      limit: Size of a seeded sample of tiles; 0 for every tile once.
      out: Folder for `results.json`, `tiles.csv` and the figure; None for none.
      report: Folder for the report page; None for none.
      other_models: Further models, by name, whose quality and size the page's curves show.

    Raises:
      UsageError: There is no such split, or a model of `other_models` takes tiles of another size.
      DataError: The split is empty, its tiles are too small, or a folder cannot be made.
      OSError: A folder cannot be written.
    """
    dataset = open_dataset(data_dir)
    module = make_model(saved.config)
    config = saved.config.copy_and_resolve_references()
    config.eval.split = split
    config.data.size = module.tile_size or config.data.size
    _check_tiles(dataset, config)
    for other in (other_models or {}).values():
        side = make_model(other.config).tile_size
        if side not in (None, config.data.size):
            raise UsageError(
                f"{other.path} takes tiles of {side} pixels and cannot be compared with a model "
                f"evaluated at {config.data.size}"
            )
    out, report = (None if path is None else epath.Path(path).absolute() for path in (out, report))
    # Checked before an evaluation of minutes.
    for option, folder in (("--out", out), ("--report", report)):
        if folder is not None:
            make_folder(folder, option)
            require_writable(folder / RESULTS)
    mesh = make_mesh()
    # The batch of a run on other devices may not divide over the devices here.
    config.eval.batch_size = math.ceil(config.eval.batch_size / mesh.size) * mesh.size
    variables = jax.device_put(saved.variables, replicated(mesh))
    return evaluate_and_write(
        config,
        variables,
        dataset,
        mesh,
        out,
        step=saved.step,
        limit=limit,
        report=report,
        other_models=other_models or {},
    )


def _write_report(
    folder: epath.Path,
    config: ConfigDict,
    variables: Any,
    dataset: Dataset,
    mesh: Mesh,
    content: dict[str, Any],
    evaluation: Evaluation,
    photographs: PhotographEvaluation | None,
    limit: int,
    other_models: Mapping[str, SavedModel],
) -> list[os.PathLike]:
    from vae.evaluation.report import pick, write_report

    module = make_model(config)
    split = _split(config, dataset, mesh, limit)
    curves = rate_curves(
        evaluation,
        split,
        mesh=mesh,
        latents=latent_size(module, variables, (*evaluation.size, 3)),
        pca=wider_pca(pca_of_equal_size(module, config, variables, dataset), config, dataset),
        other_models=[
            (
                name,
                make_model(other.config),
                jax.device_put(other.variables, replicated(mesh)),
            )
            for name, other in other_models.items()
        ],
        seed=config.seed,
    )
    examples = pick(evaluation)
    pairs = tile_pictures.reconstruct_examples(module, variables, split, examples, mesh=mesh)
    content = content | {"curves": curves.as_dict(), "data": "/".join(dataset.path.parts[-3:])}
    page = write_report(folder, content, evaluation, photographs, examples, *pairs)
    table.write_results(folder / RESULTS, content)
    return [page, folder / RESULTS]


def _split(config: ConfigDict, dataset: Dataset, mesh: Mesh, limit: int) -> Split:
    name, size = config.eval.split, config.eval.batch_size
    read = functools.partial(
        eval_batches,
        dataset,
        name,
        size=config.data.size,
        seed=config.seed,
        batch_size=size,
        rows=local_rows(mesh, size),
        limit=limit or None,
    )
    if jax.process_index() > 0:
        return read
    tiles = min(limit or dataset.counts[name], dataset.counts[name])
    return lambda: watched(read(), f"reading {name}", math.ceil(tiles / size), "batch")


def _photographs(
    config: ConfigDict,
    variables: Any,
    dataset: Dataset,
    mesh: Mesh,
    evaluation: Evaluation,
    pictures: bool,
) -> PhotographEvaluation | None:
    rows = [row for row in dataset.photographs() if row.split == config.eval.split]
    if not config.eval.photographs or not rows:
        return None
    rows = rows[:: -(-len(rows) // config.eval.photographs)]  # spread over the labels
    images, numbers = [], {}
    if THUMBNAILS in dataset.metadata["files"]:
        images, numbers = dataset.thumbnails()
    return whole_photographs(
        make_model(config),
        variables,
        rows,
        evaluation,
        mesh=mesh,
        thumbnails={name: images[number] for name, number in numbers.items()},
        pictures=pictures,
    )


def _scale(dataset: Dataset, split: str) -> float | None:
    """Returns the scale of the split's photographs if all have the same, else None."""
    scales = {row.scale for row in dataset.photographs() if row.split == split}
    return scales.pop() if len(scales) == 1 else None


def _check_tiles(dataset: Dataset, config: ConfigDict) -> None:
    """Checks split and tile size before anything is compiled."""
    split, side = config.eval.split, config.data.size
    if split not in dataset.counts:
        raise UsageError(
            f"--split {split}: {dataset.path} has no such split; it has {dataset.counts}"
        )
    if not dataset.counts[split]:
        raise DataError(
            f"--split {split}: {dataset.path} has no tiles in it ({dataset.counts}); take another "
            "split, or build the dataset with a share of the patients in this one"
        )
    smallest = dataset.metadata["smallest"]
    if min(smallest["height"], smallest["width"]) < side:
        raise DataError(
            f"{dataset.path}: the model was made for tiles of {side} x {side} pixels, and "
            f"{smallest['tile']} is {smallest['height']} x {smallest['width']}; cut the "
            f"photographs again with `fundus-vae make-tiles --tile {side}`"
        )
