"""Evaluation of a prior: real and sampled sets of tiles, from a dataset to a table."""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae.checkpoints.provenance import dated_provenance
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError, UsageError
from vae.data.pipeline import Dataset, eval_batches, open_dataset
from vae.evaluation.samples.measures import NEIGHBOURS
from vae.evaluation.samples.simple_priors import baselines
from vae.evaluation.samples.summary import SMALL, Summary, batched, shrunk, summarise
from vae.evaluation.samples.table import Reference, compare, floor, format_table
from vae.evaluation.table import write_results
from vae.inference.model import Model
from vae.inference.reconstruct import write_picture
from vae.inference.sample import Sampler
from vae.inference.sample_files import grid, origin_of

RESULTS, SHEETS = "samples.json", "sheets"
# Training tiles for comparison per tile of a set: each half of their patients needs at least as
# many tiles as a set.
POOL = 2.5
# Maximum number of training tiles for the search of copies.
MOST_TRAINING = 20_000
SHOWN = 32
PRIOR_ROW, HELD_OUT, RECONSTRUCTED = "prior", "held out", "reconstructed"


def evaluate_samples(
    sampler: Sampler,
    data_dir: str | os.PathLike | Dataset,
    *,
    count: int = 1024,
    split: str = "test",
    seed: int = 0,
    out: str | os.PathLike | None = None,
    tiles: Iterator[np.ndarray] | None = None,
    **sampler_options: Any,
) -> list[dict[str, Any]]:
    """Compares samples of a prior and of simple priors with real tiles.

    Args:
      sampler: The prior and its autoencoder.
      data_dir: Folder written by `fundus-vae build`; its training split is the reference.
      count: Number of tiles in each set; fewer if the dataset has fewer.
      split: Split of held-out tiles.
      seed: Seed of samples and of all draws.
      out: Folder for the metrics and contact sheets; None for none.
      tiles: Batches uint8 [b, S, S, 3] of tiles to evaluate instead of samples of the priors.
      sampler_options: Options of `Sampler.latents`.

    Returns:
      The table's rows; see `vae.evaluation.samples.table`.

    Raises:
      UsageError: The count is too small, or there is no such split.
      DataError: The dataset is too small.
    """
    dataset = data_dir if isinstance(data_dir, Dataset) else open_dataset(data_dir)
    _check(dataset, split, count)
    out = None if out is None else Path(out)
    say, side = functools.partial(print, flush=True), sampler.side

    def sets(
        name: str, parts: Iterator[tuple[np.ndarray, np.ndarray]], encode=sampler.model.encode
    ) -> Summary:
        say(f"{name} ...")
        kept: list[np.ndarray] = []

        def looked_at():
            for images, patients in parts:
                if sum(map(len, kept)) < SHOWN:
                    kept.append(images)
                yield images, patients

        summary = summarise(looked_at(), encode, seed)
        if out is not None:
            sheet_ = grid(np.concatenate(kept)[:SHOWN], side=side // 2)
            path = out / SHEETS / (re.sub(r"\W+", "_", name).strip("_") + ".png")
            write_picture(path, sheet_, {"tiles": name, **origin_of(sampler)})
        return summary

    latents: list[np.ndarray] = []

    def encode_and_keep(images: np.ndarray) -> np.ndarray:
        latents.append(sampler.model.encode(images))
        return latents[-1]

    read = functools.partial(_tiles, dataset, side=side, seed=seed)
    real = Reference.from_summary(
        sets("training tiles", read("train", limit=int(POOL * count)), encode_and_keep),
        np.concatenate([shrunk(part) for part, _ in read("train", limit=MOST_TRAINING)]),
        sets(f"{HELD_OUT} ({split})", read(split, limit=count)),
        count,
        seed,
    )
    rows = [floor(real), compare(HELD_OUT, real.held_out, real)]
    if tiles is not None:
        made = sets("samples", ((part, np.full(len(part), "")) for part in tiles))
        rows.append(compare("samples", made, real))
    else:
        known = np.concatenate(latents)
        draws = baselines(known, seed)
        if "mixture" not in draws:
            say("the row mixture is left out: it needs scikit-learn, `pip install -e '.[embed]'`")
        draws = {RECONSTRUCTED: lambda number: known[:number], **draws}
        if sampler.prior is not None:
            draws[PRIOR_ROW] = lambda number: sampler.latents(
                range(number), seed=seed, **sampler_options
            )
        for name, draw in draws.items():
            made = sampler.decode(draw(count))
            rows.append(compare(name, sets(name, batched(made)), real))
    say(format_table(rows))
    if out is not None:
        _write(out, rows, sampler, dataset, sampler_options, count=count, split=split, seed=seed)
        say(f"written: {out / RESULTS}, {out / SHEETS}")
    return rows


def evaluate_prior(
    saved: SavedModel,
    autoencoder: SavedModel,
    dataset: Dataset,
    *,
    split: str,
    count: int,
    out: str | os.PathLike,
) -> list[dict[str, Any]]:
    """Writes the final table and contact sheets of a training run.

    Args:
      saved: The run's newest checkpoint.
      autoencoder: The autoencoder of the prior's latents.
      dataset: The run's dataset.
      split: Split of held-out tiles.
      count: Number of tiles; 0 for 1024.
      out: The workdir.
    """
    return evaluate_samples(
        Sampler(Model(autoencoder), saved),
        dataset,
        count=max(count or 1024, NEIGHBOURS + 1),
        split=split,
        seed=saved.config.seed,
        out=out,
    )


def sheet(saved: SavedModel, autoencoder: SavedModel) -> np.ndarray:
    """Draws a contact sheet of 16 samples, uint8 [h, w, 3]."""
    return grid(Sampler(Model(autoencoder), saved).sample(range(16)), 4)


def _check(dataset: Dataset, split: str, count: int) -> None:
    if split not in dataset.counts:
        raise UsageError(f"--split {split}: {dataset.path} has {', '.join(dataset.counts)}")
    if count <= NEIGHBOURS:
        raise UsageError(f"--n {count}: expected more tiles than {NEIGHBOURS}")
    for name in ("train", split):
        if dataset.counts.get(name, 0) <= NEIGHBOURS:
            raise DataError(
                f"{dataset.path}: split {name} has {dataset.counts.get(name, 0)} tiles, expected "
                f"more than {NEIGHBOURS}; take another --split or build a larger dataset"
            )


def _tiles(
    dataset: Dataset, split: str, *, side: int, seed: int, limit: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in eval_batches(dataset, split, size=side, seed=seed, batch_size=64, limit=limit):
        valid = batch["valid"]
        yield batch["image"][valid], batch["patient"][valid]


def _write(
    out: Path,
    rows: Sequence[dict[str, Any]],
    sampler: Sampler,
    dataset: Dataset,
    sampler_options: dict[str, Any],
    **settings: Any,
) -> None:
    content = {
        "rows": rows,
        **settings,
        "sampler_options": {
            **sampler_options,
            "steps": sampler_options.get("steps") or sampler.steps,
        },
        "small": SMALL,
        "prior": sampler.hash,
        "autoencoder": sampler.model.hash,
        "dataset": dataset.fingerprint,
        **dated_provenance(),
    }
    write_results(out / RESULTS, content)
