"""A model in one `.safetensors` file: tensors, and in the metadata config and provenance."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vae.checkpoints.config import from_dict
from vae.checkpoints.leaves import by_path, differences
from vae.checkpoints.modules import abstract_model
from vae.data.errors import DataError
from vae.data.files import replacing, require_regular
from vae.models.autoencoder import LINEAR

MODEL_FILE = "model.safetensors"
FORMAT = "fundus-vae 1"
# What stands beside the variables.
STATISTICS = ("latent_mean", "latent_var")


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """What a run or a conversion left for its users.

    Attributes:
      path: Of the checkpoint or file.
      config: The run's.
      step: Steps taken.
      variables: For `module.apply`: averaged parameters and whatever else the module has.
      latent_mean: float32 [C], mean of the latents over the training's last batches.
      latent_var: float32 [C], their variance.
      provenance: Version, command, fingerprint of the dataset, as far as known.
    """

    path: epath.Path
    config: ConfigDict
    step: int
    variables: dict[str, Any]
    latent_mean: jax.Array | np.ndarray
    latent_var: jax.Array | np.ndarray
    provenance: dict[str, Any]


def write_safetensors(path: epath.PathLike, saved: SavedModel, *, dtype: str = "float32") -> None:
    """Writes a model as one file, beside and then renamed.

    Args:
      path: Of the file, on a local disk.
      saved: The model.
      dtype: "float16" stores the kernels of convolutions and dense layers in half the bytes; the
        linear path, where 50 dB are made, norms, biases and statistics stay float32.

    Raises:
      DataError: It cannot be written; nothing is left behind.
    """
    # The library takes every array's memory as contiguous, whatever its strides.
    tensors = {
        name: np.asarray(jax.device_get(leaf), order="C")
        for name, leaf in by_path(saved.variables).items()
    }
    if dtype == "float16":
        tensors = {
            name: leaf.astype(np.float16) if _may_be_short(name, leaf) else leaf
            for name, leaf in tensors.items()
        }
    tensors |= {name: np.asarray(getattr(saved, name)) for name in STATISTICS}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(saved.config.to_dict()),
        "step": str(saved.step),
        "provenance": json.dumps(saved.provenance),
    }
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as unfinished:
            unfinished.touch()
            mode = unfinished.stat().st_mode
            save_file(tensors, unfinished, metadata)
            unfinished.chmod(mode)  # the library's own is for nobody else to read
    except SafetensorError as error:
        raise DataError(f"{path}: cannot be written ({error}); free some disk space") from error


def read_safetensors(path: epath.PathLike) -> SavedModel:
    """Reads what `write_safetensors` wrote.

    Raises:
      DataError: Damaged, of another kind, or its tensors are not those of its config: all missing,
        unknown and misshapen ones are named.
    """
    path = epath.Path(path)
    require_regular(path, "an exported .safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(
                    f"{path}: its metadata say format {metadata.get('format')!r}, expected "
                    f"{FORMAT!r}, as `fundus-vae export` and convert_torch_checkpoint write it"
                )
            config = from_dict(json.loads(metadata["config"]))
            names = file.keys()
            _check_depth(path, config, len(names))
            step, provenance = int(metadata["step"]), json.loads(metadata["provenance"])
            variables, abstract_statistics = abstract_model(config)
            wanted = by_path(variables) | abstract_statistics
            have = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            shapes = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
            if problems := differences(have, shapes):
                raise DataError(
                    f"{path}: {len(problems)} tensors are not those of its config: "
                    + "; ".join(problems)
                )
            leaves = {
                name: file.get_tensor(name).astype(leaf.dtype, copy=False)
                for name, leaf in wanted.items()
            }
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({error}); export it again") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: of another version ({' '.join(str(error).split())})") from error
    statistics = {name: leaves.pop(name) for name in STATISTICS}
    return SavedModel(
        path=path,
        config=config,
        step=step,
        variables=_nested(leaves, variables),
        provenance=provenance,
        **statistics,
    )


def _nested(leaves: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in by_path(like)])


def _may_be_short(name: str, leaf: np.ndarray) -> bool:
    return name.endswith(("/kernel", "/weight")) and leaf.ndim > 1 and LINEAR not in name.split("/")


def _check_depth(path: epath.Path, config: ConfigDict, tensors: int) -> None:
    """Refuses a config of more blocks than the file has tensors, before they are shaped."""
    for name in ("encoder_depth", "decoder_depth", "stages", "depths"):
        if sum(blocks := config.model.get(name, ())) > tensors:
            raise DataError(
                f"{path}: its config says model.{name}={blocks}, and it holds {tensors} tensors;"
                " export it again"
            )
