"""A trained model on disk: a run's workdir, or one checkpoint of it."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from data.errors import DataError
from data.files import write_beside
from vae.training.checkpoint import Checkpoints
from vae.training.config import default_config
from vae.training.state import abstract_state

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """What a run left for its users.

    Attributes:
      path: Of the checkpoint.
      config: The run's.
      step: Steps taken.
      variables: For `module.apply`: averaged parameters and the fixed variables.
      latent_mean: float32 [C], mean of the latents over the training's last batches.
      latent_var: float32 [C], their variance.
    """

    path: epath.Path
    config: ConfigDict
    step: int
    variables: dict[str, Any]
    latent_mean: jax.Array
    latent_var: jax.Array


def write_config(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Writes the run's config into its workdir; finished or not at all."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_beside(epath.Path(workdir) / CONFIG, text.encode())


def read_config(workdir: epath.PathLike) -> ConfigDict:
    """The config of a run; settings that are newer than the run have their defaults.

    Raises:
      DataError: There is none, or it is damaged.
    """
    path = epath.Path(workdir) / CONFIG
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{workdir} is no workdir of a run: it has no {CONFIG}; expected what "
            "`run_experiment.py --workdir` wrote, or checkpoints/STEP inside it"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); restore it from a backup") from error
    config = default_config()
    try:
        config.update(_tuples(stored))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: of another version ({' '.join(str(error).split())})") from error
    return config


def read_model(path: str | os.PathLike) -> SavedModel:
    """Reads a workdir (its newest checkpoint) or a checkpoint directory `.../checkpoints/STEP`.

    Raises:
      DataError: It is neither, or it is damaged.
    """
    path = epath.Path(path).absolute()
    if not path.exists():
        raise DataError(f"{path}: no such model; expected a workdir or a checkpoint of a run")
    step = None
    workdir = path
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        workdir, step = path.parent.parent, int(path.name)
    config = read_config(workdir)
    if not (workdir / CHECKPOINTS).exists():
        raise DataError(f"{workdir} has no checkpoint yet; train it first")
    checkpoints = Checkpoints(workdir / CHECKPOINTS)
    try:
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise DataError(f"{workdir} has no complete checkpoint; train it first")
        fields = checkpoints.restore_model(step, _on_one_device(abstract_state(config)))
    finally:
        checkpoints.close()
    return SavedModel(
        path=workdir / CHECKPOINTS / str(step),
        config=config,
        step=int(fields["step"]),
        variables={"params": fields["ema_params"], **fields["fixed"]},
        latent_mean=fields["latent_mean"],
        latent_var=fields["latent_var"],
    )


def variables_hash(variables: dict[str, Any]) -> str:
    """Names a model in everything made with it: hex digest of every variable's path and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _on_one_device(abstract: Any) -> Any:
    """A checkpoint of a pod is read onto whatever is here."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )


def _tuples(value: Any) -> Any:
    """JSON has no tuples; configs have no lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
