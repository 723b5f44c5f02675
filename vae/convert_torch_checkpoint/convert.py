"""Conversion of the PyTorch state dict to Flax variables, and back."""

import warnings
from collections.abc import Iterator

import flax.traverse_util
import numpy as np
import torch

from vae.convert_torch_checkpoint.table import PREFIX, Entry, Layout, leaves, table, to_image_source
from vae.data.errors import DataError
from vae.models import FundusVAE

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
# Values checked at a time, to save memory: the largest tensor has 400 million.
BLOCK = 1 << 22


def published_model(state: dict[str, torch.Tensor]) -> FundusVAE:
    """Returns the published architecture with the latent and image size given by the shapes.

    If the shapes do not give a size, it is the published one, and `check` reports the shapes.
    """
    model = FundusVAE()
    first, last = state.get("decoder.0.weight"), state.get(f"{to_image_source(model)}.weight")
    sizes = {}
    if first is not None and first.ndim == 2:
        sizes["latent_size"] = first.shape[1]
    if last is not None and last.ndim == 2:
        side = round((last.shape[0] / 3) ** 0.5)
        if side and 3 * side**2 == last.shape[0]:
            sizes["image_size"] = side
    return FundusVAE(**sizes)


def check(name: str, state: dict[str, torch.Tensor], model: FundusVAE) -> None:
    """Checks keys, shapes and dtypes of a state dict, but no values.

    Args:
      name: Name of the file, for the message.
      state: Tensors by key without prefix.
      model: Model with the expected sizes.

    Raises:
      DataError: Lists every missing and unknown key, wrong shape and unsupported dtype.
    """
    rows, wanted = {entry.source: entry for entry in table(model)}, leaves(model)
    problems = [f"missing {source}" for source in rows if source not in state]
    problems += [f"unknown {source}" for source in state if source not in rows]
    for source, entry in rows.items():
        if source not in state:
            continue
        tensor, leaf = state[source], wanted[entry.path]
        if entry.layout.shape(tuple(tensor.shape)) != leaf.shape:
            expected = Layout("", tuple(np.argsort(entry.layout.axes))).shape(leaf.shape)
            problems.append(f"{source} is {list(tensor.shape)}, expected {list(expected)}")
        allowed = FLOATS + (INTEGERS if leaf.dtype == np.int32 else ())
        if tensor.dtype not in allowed or tensor.layout != torch.strided:
            kind = f"{tensor.dtype} {tensor.layout}".replace("torch.", "")
            problems.append(f"{source} is {kind}, expected strided {_names(allowed)}")
    if problems:
        last = f"{to_image_source(model)}.weight"
        if last in state and len(state[last]) != 3 * model.image_size**2:
            problems.append(f"the rows of {last} are no 3 x S x S")
        raise DataError(
            f"{name} is not the published model with latent size {model.latent_size} and images "
            f"of {model.image_size} pixels, {len(problems)} problems: {'; '.join(problems)}"
        )


def converted(
    name: str, state: dict[str, torch.Tensor], model: FundusVAE
) -> Iterator[tuple[Entry, np.ndarray]]:
    """Yields the Flax leaves one by one, as views of the source if layout and dtype are equal.

    Args:
      name: Name of the file, for messages.
      state: Tensors that passed `check`.
      model: Model of the same sizes.

    Raises:
      DataError: A value is not finite in float32, or a number of batches is not valid.
    """
    wanted = leaves(model)
    for entry in table(model):
        tensor, dtype = state[entry.source], wanted[entry.path].dtype
        if dtype == np.int32:
            count = tensor.item()
            if not 0 <= count < 2**31 or count != int(count):
                raise DataError(f"{name}: {entry.source} = {count} is no number of batches")
            yield entry, np.array(count, np.int32)
            continue
        array = tensor.to(torch.float32).numpy()
        if not _finite(array):
            raise DataError(
                f"{name}: {entry.source} has values that are not finite in float32; the training "
                "run had failed: take an earlier checkpoint"
            )
        yield entry, np.asarray(entry.layout.to_flax(array), order="C")


def nested(arrays: dict[str, np.ndarray]) -> dict:
    """Nests leaves by path to variables for `module.apply`."""
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def to_torch(variables: dict, model: FundusVAE) -> dict[str, torch.Tensor]:
    """Converts Flax variables to the published state dict, with its prefix."""
    arrays = flax.traverse_util.flatten_dict(variables, sep="/")
    state = {}
    for entry in table(model):
        array = np.asarray(entry.layout.to_torch(np.asarray(arrays[entry.path])), order="C")
        dtype = torch.int64 if array.dtype == np.int32 else torch.float32
        state[PREFIX + entry.source] = _tensor(array).to(dtype)
    return state


def rounded(state: dict[str, torch.Tensor]) -> list[str]:
    """Returns the keys of float64 tensors with values that float32 cannot represent."""
    return [
        key
        for key, tensor in state.items()
        if tensor.dtype == torch.float64 and not torch.equal(tensor.float().double(), tensor)
    ]


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Shares the array's memory; ignores PyTorch's warning about read-only arrays."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return torch.from_numpy(array)


def _finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    return all(np.isfinite(flat[i : i + BLOCK]).all() for i in range(0, flat.size, BLOCK))
