"""Loads trained models from workdirs, checkpoints, exported files and bundled weights."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vae import weights
from vae.checkpoints import hub
from vae.checkpoints.config import from_dict
from vae.checkpoints.leaves import by_path, non_finite, tensors_hash
from vae.checkpoints.modules import abstract_model, join_variables, split_variables
from vae.checkpoints.safetensors_io import MODEL_FILE, SavedModel, read_safetensors
from vae.data.errors import DataError, one_line
from vae.data.files import require_regular, write_beside
from vae.data.images import IMAGE_SUFFIXES
from vae.data.schema import parse_json

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
KINDS = (
    "a run's workdir, checkpoints/STEP inside it, what convert_torch_checkpoint wrote, an exported "
    ".safetensors file, hf://owner/name, or the name of bundled weights: "
    + ", ".join(weights.NAMES)
)


def write_config(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Writes the run's config into its workdir, atomically."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_beside(epath.Path(workdir) / CONFIG, text.encode())


def read_config(workdir: epath.PathLike) -> ConfigDict:
    """Reads the config of a run.

    Raises:
      DataError: The config is missing, damaged or of another version.
    """
    path = epath.Path(workdir) / CONFIG
    if "://" not in os.fspath(path):
        require_regular(path, "the config of a run", missing_ok=True)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{workdir} is no workdir of a run: it has no {CONFIG}; expected what "
            "`run_experiment.py --workdir` wrote, or checkpoints/STEP inside it"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: damaged ({error}); restore it from a backup") from error
    stored = parse_json(content, path, remedy="restore it from a backup")
    try:
        return from_dict(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: of another version ({one_line(error)})") from error


def load_saved(path: str | os.PathLike) -> SavedModel:
    """Loads a model.

    Args:
      path: A workdir (its newest checkpoint), a checkpoint directory `.../checkpoints/STEP`, an
        exported `.safetensors` file, a directory with such a file, as written by the conversion, a
        repository of the Hugging Face Hub, hf://owner/name[@revision] (`vae.checkpoints.hub`), or
        the name of bundled weights, for example "f8c32".

    Raises:
      DataError: It is none of them or is damaged, or bundled weights and a file or folder here have
        this name.
    """
    if (name := os.fspath(path)).startswith(hub.PREFIX):
        return read_safetensors(hub.download(name))
    path = epath.Path(path).absolute()
    bundled = weights.bundled_file(name)
    if bundled is not None:
        if path.exists():
            raise DataError(
                f"{name} is the name of bundled weights and of {path}; write ./{name} for the "
                f"latter, {bundled} for the former"
            )
        return read_safetensors(bundled)
    if not path.exists():
        raise DataError(f"{path}: no such model; expected {KINDS}")
    if "://" not in os.fspath(path) and not path.is_dir():
        require_regular(path, f"a model: {KINDS}")
    if path.is_file():
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        raise DataError(f"{path} is {_what(path)}, no model; expected {KINDS}")
    if (path / MODEL_FILE).exists():
        return read_safetensors(path / MODEL_FILE)
    step = None
    workdir = path
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        workdir, step = path.parent.parent, int(path.name)
    if not (workdir / CONFIG).exists():
        raise DataError(f"{path} is {_what(path)}, no model; expected {KINDS}")
    config = read_config(workdir)
    if not (workdir / CHECKPOINTS).exists():
        raise DataError(f"{workdir} has no checkpoint yet; train it first")
    try:
        abstract = _on_one_device(_abstract_item(config))
    except Exception as error:  # flax raises all kinds for a config that describes no model.
        raise DataError(f"{workdir / CONFIG}: describes no model ({one_line(error)})") from error
    from vae.checkpoints.orbax_io import (
        OrbaxCheckpoints,  # Importing Orbax takes a second, and files do not need it.
    )

    checkpoints = OrbaxCheckpoints(workdir / CHECKPOINTS)
    try:
        step = checkpoints.require_step() if step is None else step
        fields = checkpoints.restore_model(step, abstract)
        provenance = checkpoints.provenance(step)
    finally:
        checkpoints.close()
    if bad := non_finite(by_path(fields)):
        raise DataError(
            f"{workdir / CHECKPOINTS / str(step)}: infinite or NaN values in {', '.join(bad[:8])}"
        )
    return SavedModel(
        path=workdir / CHECKPOINTS / str(step),
        config=config,
        step=int(fields["step"]),
        variables=join_variables(fields["ema_params"], fields["fixed"], fields["batch_stats"]),
        latent_mean=fields["latent_mean"],
        latent_var=fields["latent_var"],
        provenance=provenance,
    )


def averaged(saved: SavedModel, others: Sequence[SavedModel]) -> SavedModel:
    """Averages the variables of several models whose runs continued from the same model.

    The mean often has a lower loss than each of them: Wortsman et al., "Model soups" (2022).

    Args:
      saved: The first model. The result has its path, step, config and provenance.
      others: The other models; if empty, `saved` is returned.

    Raises:
      DataError: The models have different sizes.
    """
    model = saved.config.model.to_dict()
    for other in others:
        if other.config.model.to_dict() != model:
            raise DataError(
                f"{other.path} holds the model {other.config.model.to_dict()}, and {saved.path} "
                f"{model}; only models of one size have a mean"
            )

    def mean(*leaves):
        return np.mean(leaves, axis=0, dtype=np.float64).astype(np.asarray(leaves[0]).dtype)

    if not others:
        return saved
    return dataclasses.replace(
        saved,
        variables=jax.tree.map(mean, saved.variables, *(other.variables for other in others)),
        latent_mean=mean(saved.latent_mean, *(other.latent_mean for other in others)),
        latent_var=mean(saved.latent_var, *(other.latent_var for other in others)),
    )


def variables_hash(variables: dict[str, Any]) -> str:
    """Returns a hash that identifies a model: the first 16 hex digits of its variables' SHA-256."""
    return tensors_hash(by_path(variables))[:16]


def _abstract_item(config: ConfigDict) -> dict[str, Any]:
    """Returns the shapes and dtypes of the model in a checkpoint."""
    from vae.checkpoints.orbax_io import model_item

    variables, statistics = abstract_model(config)
    params, fixed, batch_stats = split_variables(variables)
    fields = {"ema_params": params, "fixed": fixed, "batch_stats": batch_stats, **statistics}
    return model_item({"step": jax.ShapeDtypeStruct((), np.int32), **fields})


def _on_one_device(abstract: Any) -> Any:
    """Adds the sharding on one local device: a checkpoint may come from a pod."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )


def _what(path: epath.Path) -> str:
    """Describes a path that is not a model, for an error message."""
    if path.is_dir():
        if (path / "manifest.csv").exists():
            return "a folder of tiles"
        if (path / "dataset_info.json").exists() or any(path.glob("*/*/dataset_info.json")):
            return "a dataset"
        names = [entry.name.lower() for entry in path.iterdir()]
        if not names:
            return "an empty folder"
        if any(name.endswith(IMAGE_SUFFIXES) for name in names):
            return "a folder of images"
        return "a folder of something else"
    if path.suffix in (".pth", ".pt", ".ckpt"):
        return f"a PyTorch file (`convert_torch_checkpoint {path.name} --out DIR` converts it)"
    return f"a {path.suffix.lstrip('.') or 'nameless kind of'} file"
