"""The steps of the command: read, check, convert, verify, write."""

from pathlib import Path

import numpy as np
import torch
import tqdm
from etils import epath

from vae.checkpoints.config import FUNDUS_VAE
from vae.checkpoints.loading import load_saved
from vae.checkpoints.modules import make_model
from vae.checkpoints.provenance import provenance
from vae.checkpoints.safetensors_io import (
    MODEL_FILE,
    SavedModel,
    read_safetensors,
    write_safetensors,
)
from vae.configs.published import get_config
from vae.convert_torch_checkpoint import convert
from vae.convert_torch_checkpoint.source import read_state, verify_checksums
from vae.convert_torch_checkpoint.table import leaves, table
from vae.convert_torch_checkpoint.verify import IMAGE_TOLERANCE, POSTERIOR_TOLERANCE, compare
from vae.data.errors import DataError, UsageError
from vae.data.files import replacing
from vae.data.outputs import claim_folder, claim_new
from vae.models import FundusVAE

COMMAND = "convert_torch_checkpoint"


def dry_run(source: Path) -> int:
    """Checks the source and prints the table of its conversion."""
    state = read_state(source)
    model = convert.published_model(state)
    convert.check(str(source), state, model)
    wanted = leaves(model)
    for entry in table(model):
        tensor, leaf = state[entry.source], wanted[entry.path]
        dtype = str(tensor.dtype).removeprefix("torch.")
        print(
            f"{entry.source:44} {dtype:8} {list(tensor.shape)!s:20} -> {entry.path:50} "
            f"{leaf.dtype!s:8} {list(leaf.shape)!s:20} {entry.layout.name}"
        )
    size = sum(np.dtype(leaf.dtype).itemsize * leaf.size for leaf in wanted.values())
    print(f"{_summary(model)}: {len(wanted)} tensors, {size / 1e6:,.1f} MB to write")
    return 0


def from_torch(source: Path, out: Path, *, overwrite: bool = False, verify: bool = False) -> int:
    """Converts `source` to a model in the folder `out`; see the command's help."""
    _refuse_folder(out, overwrite)
    with claim_folder(out, COMMAND, reads=[source], known=[MODEL_FILE]):
        return _from_torch(source, out, verify)


def _from_torch(source: Path, out: Path, verify: bool) -> int:
    state = read_state(source)
    model = convert.published_model(state)
    convert.check(str(source), state, model)
    if lossy := convert.rounded(state):
        print(f"{len(lossy)} float64 tensors are rounded to float32, the first is {lossy[0]}")
    with _bar("checking", 2 * source.stat().st_size) as bar:
        sha256 = verify_checksums(source, bar.update)
    arrays = {}
    with _bar("converting", sum(t.nbytes for t in state.values())) as bar:
        for entry, array in convert.converted(str(source), state, model):
            arrays[entry.path] = array
            bar.update(state[entry.source].nbytes)
    made = {
        # The command in a form that can be typed again.
        **provenance([COMMAND, str(source), "--out", str(out)]),
        "source": source.name,
        "sha256": sha256,
        "latent_statistics": "of the prior N(0, I): the source has none",
    }
    saved = _saved(model, convert.nested(arrays), made)
    with replacing(out / MODEL_FILE) as unfinished:
        print(f"writing {out / MODEL_FILE}", flush=True)
        write_safetensors(unfinished, saved)
        if verify:
            _verify(state, unfinished, model)
    print(f"{_summary(model)}: {out}")
    return 0


def to_torch(path: Path, out: Path, *, overwrite: bool = False) -> int:
    """Writes the model at `path` as a state dict for the published PyTorch module."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; expected the name of a file, model.pth")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; --overwrite replaces it")
    with claim_new(out, COMMAND, reads=[path], replaces=overwrite, parents=True):
        return _to_torch(path, out)


def _to_torch(path: Path, out: Path) -> int:
    saved = load_saved(path)
    if saved.config.model.architecture != FUNDUS_VAE:
        raise DataError(
            f"{path} is a model of architecture {saved.config.model.architecture!r}, for which "
            f"there is no PyTorch module; expected {FUNDUS_VAE!r}"
        )
    model = make_model(saved.config)
    state = convert.to_torch(saved.variables, model)
    try:
        with replacing(out) as unfinished:
            torch.save(state, unfinished)
    except RuntimeError as error:  # PyTorch's error for a full disk
        raise DataError(f"{out}: cannot be written ({error}); free some disk space") from error
    print(f"{_summary(model)}: {out}")
    return 0


def _saved(model: FundusVAE, variables: dict, made: dict[str, str]) -> SavedModel:
    config = get_config()
    config.model.update(latent_size=model.latent_size, image_size=model.image_size)
    config.data.update(size=model.image_size, crop=model.image_size)
    return SavedModel(
        path=epath.Path(MODEL_FILE),
        config=config,
        step=0,
        variables=variables,
        latent_mean=np.zeros(model.latent_size, np.float32),
        latent_var=np.ones(model.latent_size, np.float32),
        provenance=made,
    )


def _verify(state: dict[str, torch.Tensor], path: Path, model: FundusVAE) -> None:
    """Compares the outputs of PyTorch with those of the written file.

    Raises:
      DataError: They differ by more than float32 rounding explains.
    """
    difference = compare(state, read_safetensors(path).variables, model)
    for name in ("mean", "log_var", "image"):
        largest, value = getattr(difference, name)
        print(f"{name:8} largest absolute difference {largest:.2e}, values up to {value:.3g}")
    if not difference.agrees:
        raise DataError(
            f"the conversion disagrees with PyTorch by more than {POSTERIOR_TOLERANCE:g} of the "
            f"largest value for mean and log_var, or {IMAGE_TOLERANCE:g} for the image; nothing "
            "was written"
        )


def _refuse_folder(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file; expected a folder to make")
    if (out / MODEL_FILE).exists():
        if not overwrite:
            raise UsageError(f"{out} holds a model already; --overwrite replaces it")
    elif any(out.iterdir()):
        raise UsageError(f"--out {out} is a folder of something else; name a new one")


def _bar(what: str, size: int) -> tqdm.tqdm:
    return tqdm.tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=None)


def _summary(model: FundusVAE) -> str:
    return f"latent size {model.latent_size}, images of {model.image_size} pixels"
