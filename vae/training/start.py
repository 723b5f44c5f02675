"""What a run starts from: its data, and the model of step 0."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vae.checkpoints.config import AUTOENCODER_KL, ENHANCER, PRIOR, default_config
from vae.checkpoints.modules import initial_variables, starts_linear
from vae.checkpoints.reading import SavedModel, read_model
from vae.data.errors import DataError, UsageError
from vae.data.pipeline import Dataset, first_tiles, open_dataset
from vae.models import with_autoencoder, with_quiet_blocks, with_spectrum
from vae.training.prior import fit_prior
from vae.training.state import TrainState, fit_linear, initial_state


def open_data(config: ConfigDict, workdir: epath.Path) -> Dataset:
    """The dataset of a config; the bundled sources are prepared in the workdir on first use."""
    if not config.data.source:
        if not config.data.dir:
            raise UsageError(
                "data.dir is empty; give --config.data.dir=DIR, made by `fundus-vae make-tiles` "
                "and `fundus-vae build`, or use a preset that brings its data: "
                "--config=configs/fundus256.py:demo"
            )
        return open_dataset(config.data.dir, cache_dir=config.data.cache_dir)
    from vae.data import demo

    # The first process alone: what it made, those that share its disk find finished.
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("data prepared")
    path = demo.prepare(config.data.source, workdir / "data", config.data.size)
    if jax.process_index() == 0 and jax.process_count() > 1:
        multihost_utils.sync_global_devices("data prepared")
    return open_dataset(path)


def check_splits(config: ConfigDict, dataset: Dataset) -> None:
    """Refuses a dataset without training tiles, or without those of `eval.split`."""
    for split, key in (("train", "the training"), (config.eval.split, "eval.split")):
        if not dataset.counts.get(split):
            raise DataError(
                f"{dataset.path} has no tiles for {key} split {split!r}, it has {dataset.counts}; "
                "build it with such a share of the patients, or set --config.eval.split"
            )


def check_same_model(saved: SavedModel, config: ConfigDict, name: str) -> None:
    """Refuses a config of another model than the saved one; `name` is what the user called it."""
    if plain(saved.config.model) != plain(config.model):
        raise DataError(
            f"{name} holds the model {plain(saved.config.model)}, the config asks for "
            f"{plain(config.model)}; give the config it was made with"
        )


def check_same_run(saved: dict, now: dict, workdir: epath.Path) -> None:
    """Refuses to continue with another model or other data than the checkpoint's."""
    if "architecture" in saved.get("model", {}):
        # A setting that is newer than the checkpoint has its default there.
        defaults = plain(default_config(saved["model"]["architecture"]).model)
        saved = {**saved, "model": {**defaults, **saved["model"]}}
    for key, what in (
        ("model", "model"),
        ("fingerprint", "dataset fingerprint"),
        ("masked_fingerprint", "fingerprint of masked tiles"),
        ("autoencoder", "autoencoder"),
    ):
        if saved.get(key) != now.get(key):
            raise DataError(
                f"the checkpoint in {workdir} belongs to the {what} {saved.get(key)}, this run has "
                f"{now.get(key)}; use another --workdir, or start from it with --config.init_from"
            )


def start_state(
    config: ConfigDict,
    dataset: Dataset,
    sharding: TrainState,
    autoencoder: SavedModel | None = None,
) -> TrainState:
    """Step 0: the model that `init_from` names, the fit to the training tiles, or chance.

    Args:
      config: The run's.
      dataset: To train on.
      sharding: Of every leaf.
      autoencoder: Of a prior: whose latents it is for.
    """
    where = sharding.variables
    tiles = functools.partial(
        first_tiles,
        dataset,
        size=config.data.size,
        seed=config.seed,
        count=config.data.pca_tiles,
    )
    if config.init_from:
        saved = read_model(config.init_from)
        variables = jax.device_put(_start_from(config, saved), where)
        del saved  # not twice in memory
    elif autoencoder is not None:
        spectrum = fit_prior(config, autoencoder, tiles)
        variables = jax.jit(
            lambda spectrum: with_spectrum(initial_variables(config), spectrum),
            out_shardings=where,
        )(spectrum)
    else:
        fit = fit_linear(config, tiles) if starts_linear(config) else None
        fresh = functools.partial(initial_variables, config)
        variables = jax.jit(fresh, out_shardings=where)(fit)
    return state_of(config, variables, sharding)


def state_of(config: ConfigDict, variables: dict[str, Any], sharding: TrainState) -> TrainState:
    """Step 0 from placed variables, whose buffers it takes: they are not twice in memory.

    Each goes on in the buffer that it came in. XLA gives what is donated to the first output of its
    shape: where that was another leaf's copy, on a GPU (jaxlib 0.11.2) the copy was written before
    the leaf was saved, and PCA's scale was the likelihood's.

    Args:
      config: The run's.
      variables: On the devices, as `sharding` has them; donated.
      sharding: Of every leaf.
    """
    inside = dict.fromkeys(("params", "fixed", "batch_stats"))

    def begin(variables):
        return variables, initial_state(config, variables).replace(**inside)

    where = sharding.variables, sharding.replace(**inside)
    variables, rest = jax.jit(begin, out_shardings=where, donate_argnums=0)(variables)
    whole = dict(variables)
    return rest.replace(
        params=whole.pop("params"), batch_stats=whole.pop("batch_stats", {}), fixed=whole
    )


def _start_from(config: ConfigDict, saved: SavedModel) -> dict[str, Any]:
    """The saved variables, with fresh ones around them where the config's model has more than the
    saved one: an autoencoder is to enhance or to be deeper, an enhancer to have filters, a prior to
    know labels."""
    name = f"init_from={config.init_from}"
    architecture, its = config.model.architecture, saved.config.model.architecture
    if (architecture, its) == (ENHANCER, AUTOENCODER_KL):
        extra = ("tone_width", *_PARTS)
        shared = {key: value for key, value in plain(config.model).items() if key not in extra}
        if plain(saved.config.model) != shared | {"architecture": AUTOENCODER_KL}:
            raise DataError(
                f"{name} holds the autoencoder {plain(saved.config.model)}, which an enhancer of "
                f"{shared} cannot start from; give one of its sizes, or set --config.model to the "
                "saved"
            )
        return with_autoencoder(jax.jit(lambda: initial_variables(config))(), saved.variables)
    if (architecture, its) == (AUTOENCODER_KL, AUTOENCODER_KL):
        saved = _with_blocks(saved, config)
    elif (architecture, its) == (ENHANCER, ENHANCER):
        saved = _with_parts(saved, config)
    elif (architecture, its) == (PRIOR, PRIOR):
        saved = _with_labels(saved, config)
    check_same_model(saved, config, name)
    return saved.variables


# Of an autoencoder: residual blocks at each resolution.
_DEPTHS = ("encoder_depth", "decoder_depth")


def _with_blocks(saved: SavedModel, config: ConfigDict) -> SavedModel:
    """An autoencoder with those residual blocks that it had not, where the config asks for a
    deeper one; they come last at their resolution, and change nothing yet."""
    its, wanted = ({key: tuple(c.model[key]) for key in _DEPTHS} for c in (saved.config, config))
    if its == wanted or any(
        len(wanted[key]) != len(its[key]) or any(np.less(wanted[key], its[key])) for key in _DEPTHS
    ):
        return saved
    larger = saved.config.copy_and_resolve_references()
    larger.model.update(wanted)
    larger.seed = config.seed
    fresh = jax.jit(lambda: initial_variables(larger))()
    params = with_quiet_blocks(fresh["params"], saved.variables["params"])
    variables = {**saved.variables, "params": params}
    return dataclasses.replace(saved, config=larger, variables=variables)


# What an enhancer may have or lack.
_PARTS = ("filters", "sharpening")


def _with_parts(saved: SavedModel, config: ConfigDict) -> SavedModel:
    """An enhancer with those parts that it had not, where the config asks for them; they change
    nothing yet."""
    wanted = {part: True for part in _PARTS if config.model[part] and not saved.config.model[part]}
    if not wanted:
        return saved
    fresh = jax.jit(lambda: initial_variables(config))()
    params = {**fresh["params"], **saved.variables["params"]}
    return _changed(saved, wanted, {**saved.variables, "params": params})


def _with_labels(saved: SavedModel, config: ConfigDict) -> SavedModel:
    """A prior with the labels of the config; a new one is to it as none, at first."""
    known, wanted = saved.config.model.labels, config.model.labels
    rows = [0, *(1 + known.index(label) if label in known else 0 for label in wanted)]
    params = dict(saved.variables["params"])
    params["label"] = {"embedding": params["label"]["embedding"][np.array(rows)]}
    return _changed(saved, {"labels": wanted}, {**saved.variables, "params": params})


def _changed(saved: SavedModel, settings: dict[str, Any], variables: dict) -> SavedModel:
    config = saved.config.copy_and_resolve_references()
    config.model.update(settings)
    return dataclasses.replace(saved, config=config, variables=variables)


def plain(config: ConfigDict) -> dict[str, Any]:
    """As JSON would give it back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
