"""The evaluation of a run: from its config and dataset to results.json, a table and a figure."""

import functools
import shlex
import sys
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

import vae
from data.pipeline import Dataset, eval_batches
from vae.evaluation import figures, table
from vae.evaluation.evaluate import Evaluation, evaluate
from vae.evaluation.photographs import PhotographEvaluation, whole_photographs
from vae.training.saved import variables_hash
from vae.training.sharding import local_rows, replicated
from vae.training.state import make_model

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
      config: The run's.
      variables: Of its model, on the mesh.
      dataset: Where the split is.
      mesh: Of the run.
      limit: A seeded sample of so many tiles; 0 for every tile once.
      baselines: Whether to compute the rows beside the model's.

    Returns:
      The figures, and a picture uint8 [H, W, 3] of originals, reconstructions and differences.
    """
    module = make_model(config)
    split = functools.partial(
        eval_batches,
        dataset,
        config.eval.split,
        size=config.data.size,
        seed=config.seed,
        batch_size=config.eval.batch_size,
        rows=local_rows(mesh, config.eval.batch_size),
        limit=limit or None,
    )
    evaluation = evaluate(
        module,
        variables,
        split,
        mesh=mesh,
        pca=variables["pca"]["fit"] if baselines else None,
        seed=config.seed,
        baselines=baselines,
        jpeg=baselines,
        scale=_scale(dataset, config.eval.split),
        patients_known=dataset.patients_known,
    )
    examples = figures.pick_examples(evaluation, EXAMPLES)
    originals, reconstructions = figures.reconstruct_examples(
        module, variables, split, examples, mesh=mesh
    )
    captions = [example.caption for example in examples]
    return evaluation, figures.reconstruction_figure(originals, reconstructions, captions)


def evaluate_and_write(
    config: ConfigDict,
    variables: Any,
    dataset: Dataset,
    mesh: Mesh,
    workdir: epath.Path,
    *,
    step: int,
) -> Evaluation:
    """The closing table: every tile of the split and every photograph that can be found.

    Prints the table and writes `results.json`, `tiles.csv` and the figure into the workdir.
    """
    evaluation, figure = evaluate_and_draw(config, variables, dataset, mesh, baselines=True)
    photographs = _photographs(config, variables, dataset, mesh, evaluation)
    # Every process takes part: a leaf may lie on devices of several.
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(variables)
    if jax.process_index() == 0:
        origin = {
            "model": variables_hash(whole),
            "version": vae.__version__,
            "command": shlex.join(sys.argv),
        }
        content = table.results(evaluation, photographs) | {
            "config": config.name,
            "split": config.eval.split,
            "step": step,
            "dataset": dataset.fingerprint,
            **origin,
        }
        figures.write_figure(workdir / FIGURE, figure, origin)
        table.write_tiles(workdir / TILES, evaluation)
        table.write_results(workdir / RESULTS, content)
        print(f"\n{config.name} after {step} steps, split {config.eval.split}:")
        print(table.format_table(evaluation, photographs))
        print(f"\nwritten to {workdir}: {RESULTS}, {TILES}, {FIGURE}", flush=True)
    return evaluation


def _photographs(
    config: ConfigDict, variables: Any, dataset: Dataset, mesh: Mesh, evaluation: Evaluation
) -> PhotographEvaluation | None:
    rows = [row for row in dataset.photographs() if row.split == config.eval.split]
    if not config.eval.photographs or not rows:
        return None
    rows = rows[:: -(-len(rows) // config.eval.photographs)]  # spread over the labels
    module = make_model(config)
    return whole_photographs(
        module,
        variables,
        rows,
        evaluation,
        mesh=mesh,
        factor=module.downsample,
        encoder_halo=module.encoder_halo,
        decoder_halo=module.decoder_halo,
    )


def _scale(dataset: Dataset, split: str) -> float | None:
    """The scale of the split's photographs where they all have the same."""
    scales = {row.scale for row in dataset.photographs() if row.split == split}
    return scales.pop() if len(scales) == 1 else None
