"""A model in one `.safetensors` file, with config, provenance and hash in its metadata."""

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
from vae.checkpoints.leaves import by_path, differences, from_paths, non_finite, tensors_hash
from vae.checkpoints.modules import abstract_model
from vae.data import schema
from vae.data.errors import DataError, one_line
from vae.data.files import replacing, require_regular
from vae.data.schema import parse_json
from vae.models.autoencoder import LINEAR

MODEL_FILE = "model.safetensors"
FORMAT = "fundus-vae 2"
_REMEDY = "export it again"
_STEP = schema.Kind("a number of steps", lambda v: v.isdecimal() and len(v) < 10)
_METADATA = {"config": schema.TEXT, "step": _STEP, "provenance": schema.TEXT, "sha256": schema.TEXT}
# Tensors that are stored in addition to the variables.
STATISTICS = ("latent_mean", "latent_var")


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A trained model, from a run or a conversion.

    Attributes:
      path: Path of the checkpoint or file.
      config: Config of the run.
      step: Optimizer steps taken.
      variables: Variables for `module.apply`: averaged parameters and the other collections.
      latent_mean: float32 [C], mean of the latents over the last training batches.
      latent_var: float32 [C], variance of the latents over the same batches.
      provenance: Version, command and fingerprint of the dataset, as far as known.
    """

    path: epath.Path
    config: ConfigDict = dataclasses.field(repr=False)
    step: int
    variables: dict[str, Any] = dataclasses.field(repr=False)
    latent_mean: jax.Array | np.ndarray = dataclasses.field(repr=False)
    latent_var: jax.Array | np.ndarray = dataclasses.field(repr=False)
    provenance: dict[str, Any] = dataclasses.field(repr=False)

    @property
    def about(self) -> str:
        """Returns name, step and path of the model in a few words."""
        return f"{self.config.name}, step {self.step:,d} ({self.path})"


def write_safetensors(path: epath.PathLike, saved: SavedModel, *, dtype: str = "float32") -> None:
    """Writes a model to one file, under a temporary name that is then renamed.

    Args:
      path: Path of the file, on a local disk.
      saved: The model.
      dtype: "float16" stores the kernels of convolutions and dense layers in half the bytes. The
        linear path, which needs the precision at 50 dB, norms, biases and statistics stay float32.

    Raises:
      DataError: The file cannot be written; no partial file remains.
    """
    # The library ignores strides and assumes contiguous memory.
    tensors = {
        name: np.asarray(jax.device_get(leaf), order="C")
        for name, leaf in by_path(saved.variables).items()
    }
    if dtype == "float16":
        tensors = {
            name: leaf.astype(np.float16) if _may_be_short(name, leaf) else leaf
            for name, leaf in tensors.items()
        }
    tensors |= {name: np.asarray(getattr(saved, name), np.float32) for name in STATISTICS}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(saved.config.to_dict()),
        "step": str(saved.step),
        "provenance": json.dumps(saved.provenance),
        "sha256": tensors_hash(tensors),
    }
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as unfinished:
            unfinished.touch()
            mode = unfinished.stat().st_mode
            save_file(tensors, unfinished, metadata)
            unfinished.chmod(mode)  # the library makes the file readable by its owner only
    except SafetensorError as error:
        raise DataError(f"{path}: cannot be written ({error}); free some disk space") from error


def read_safetensors(path: epath.PathLike) -> SavedModel:
    """Reads a model written by `write_safetensors`.

    Raises:
      DataError: The file is damaged, of another format or version, or its tensors do not match its
        config or hash or are not finite; all missing and unknown tensors and those of other shapes
        or dtypes are named.
    """
    path = epath.Path(path)
    require_regular(path, "an exported .safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(
                    f"{path}: its metadata has the format {metadata.get('format')!r}, expected "
                    f"{FORMAT!r}, as written by `fundus-vae export` and convert_torch_checkpoint"
                )
            schema.check(metadata, path, _METADATA, remedy=_REMEDY)
            config = from_dict(parse_json(metadata["config"], path, remedy=_REMEDY))
            names = file.keys()
            _check_depth(path, config, len(names))
            step = int(metadata["step"])
            provenance = parse_json(metadata["provenance"], path, remedy=_REMEDY)
            variables, abstract_statistics = abstract_model(config)
            wanted = by_path(variables) | abstract_statistics
            have = {name: _shape_and_dtype(file.get_slice(name)) for name in names}
            expected = {
                name: (list(leaf.shape), _stored_dtype(name, leaf, have))
                for name, leaf in wanted.items()
            }
            if problems := differences(have, expected):
                raise DataError(
                    f"{path}: {len(problems)} tensors do not match its config: "
                    + "; ".join(problems)
                )
            tensors = {name: file.get_tensor(name) for name in names}
            if tensors_hash(tensors) != metadata["sha256"]:
                raise DataError(f"{path}: damaged (its tensors have another hash); export it again")
            if bad := non_finite(tensors):
                raise DataError(f"{path}: infinite or NaN values in {', '.join(bad[:8])}")
            leaves = {
                name: tensors[name].astype(leaf.dtype, copy=False) for name, leaf in wanted.items()
            }
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({error}); {_REMEDY}") from error
    except DataError:
        raise
    except Exception as error:  # A config may describe no model, for which flax raises all kinds.
        raise DataError(f"{path}: of another version ({one_line(error)})") from error
    statistics = {name: leaves.pop(name) for name in STATISTICS}
    return SavedModel(
        path=path,
        config=config,
        step=step,
        variables=from_paths(leaves, variables),
        provenance=provenance,
        **statistics,
    )


def _shape_and_dtype(tensor: Any) -> tuple[list[int], str]:
    """Returns the shape and the format's name of the dtype of a slice, without reading it."""
    return tensor.get_shape(), tensor.get_dtype()


def _stored_dtype(name: str, leaf: Any, have: dict[str, tuple[list[int], str]]) -> str:
    """Returns the dtype that a leaf must have in a file."""
    if have.get(name, (None, None))[1] == "F16" and _may_be_short(name, leaf):
        return "F16"
    return f"{leaf.dtype.kind.upper()}{8 * leaf.dtype.itemsize}"


def _may_be_short(name: str, leaf: Any) -> bool:
    return name.endswith(("/kernel", "/weight")) and leaf.ndim > 1 and LINEAR not in name.split("/")


def _check_depth(path: epath.Path, config: ConfigDict, tensors: int) -> None:
    """Raises DataError for more blocks than tensors, whose shapes would take long to compute."""
    for name in ("encoder_depth", "decoder_depth", "stages", "depths"):
        if sum(blocks := config.model.get(name, ())) > tensors:
            raise DataError(
                f"{path}: its config says model.{name}={blocks}, and it holds {tensors} tensors;"
                " export it again"
            )
