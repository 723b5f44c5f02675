"""Reading of the state dict of a PyTorch file. Nothing in the file is ever executed."""

import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vae.data.errors import DataError, one_line
from vae.data.files import require_regular

# Keys under which training scripts save the state dict together with other data.
NESTED = ("state_dict", "model_state_dict", "model")
# Prefixes of the published model, DataParallel and torch.compile, in any order.
PREFIXES = re.compile(r"^(?:(?:autoencoder|module|_orig_mod)\.)+")
CHUNK = 1 << 22

EXPECTED = "expected the state dict that `torch.save(model.state_dict(), FILE)` writes"


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a file by key without prefixes, memory-mapped if the format allows.

    Args:
      path: A .pth file, or a .safetensors file with the same names.

    Raises:
      DataError: The file is missing, damaged, holds no state dict, or needs its code executed.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; {EXPECTED}")
    require_regular(path, EXPECTED.removeprefix("expected "))
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; copy it again; {EXPECTED}")
    loaded = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    state = _unwrapped(path, loaded)
    problems = [
        f"{key!r} is {type(value).__name__}, no tensor"
        for key, value in state.items()
        if not (isinstance(key, str) and isinstance(value, torch.Tensor))
    ]
    if problems:
        raise DataError(f"{path}: {'; '.join(problems)}; {EXPECTED}")
    problems = [f"{key!r} {reason}" for key, value in state.items() if (reason := _odd(value))]
    if problems:
        raise DataError(f"{path}: {'; '.join(problems)}; {EXPECTED}")
    renamed: dict[str, list[str]] = {}
    for key in state:
        renamed.setdefault(PREFIXES.sub("", key), []).append(key)
    if double := [" and ".join(keys) for keys in renamed.values() if len(keys) > 1]:
        raise DataError(f"{path}: without prefixes these keys are the same: {'; '.join(double)}")
    return {name: state[key] for name, (key,) in renamed.items()}


def _odd(tensor: torch.Tensor) -> str:
    """Returns the reason why a tensor does not hold all values of its shape, or ""."""
    if tensor.layout != torch.strided:
        return ""  # `convert.check` rejects this layout.
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device}, without values"
    needs, has = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needs <= has:
        return ""
    return f"of shape {list(tensor.shape)} takes {needs:,} bytes, and the file holds only {has:,}"


def verify_checksums(path: Path, report: Callable[[int], None]) -> str:
    """Computes the SHA-256 of a file, hex, and verifies the checksums inside a zip.

    Args:
      path: A file that `read_state` has read.
      report: Called with the number of bytes of each read, about twice the file's size in total.

    Raises:
      DataError: A checksum does not match; loading does not detect such damage.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            report(len(chunk))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                try:
                    with archive.open(member) as file:
                        while chunk := file.read(CHUNK):
                            report(len(chunk))
                except zipfile.BadZipFile:
                    raise DataError(
                        f"{path}: the checksum of {member.filename} in it does not match: damaged; "
                        "copy it again, or save it again with torch.save if it was saved without "
                        "checksums"
                    ) from None
    return digest.hexdigest()


def _torch(path: Path) -> Any:
    # PyTorch saves zips since 1.6. The older format is equally safe, but cannot be memory-mapped.
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except Exception as error:  # a damaged file raises errors of undocumented types
        message = one_line(error)
        if "weights_only" in message and (code := re.search(r"GLOBAL ([\w.]+)", message)):
            raise DataError(
                f"{path} needs the code {code[1]} to be loaded, which is never executed here; load "
                "it where you trust it and save the tensors alone: torch.save(model.state_dict(), "
                "FILE)"
            ) from None
        if "TorchScript" in message:
            raise DataError(
                f"{path} is a TorchScript program; {EXPECTED}, of torch.jit.load(FILE)"
            ) from None
        raise DataError(
            f"{path} is no PyTorch file, or damaged ({message[:120] or type(error).__name__}); "
            f"{EXPECTED}; copy it again"
        ) from None


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if "fundus-vae" in (file.metadata() or {}).get("format", ""):
                raise DataError(f"{path} is converted already; every command here takes it")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); copy it again") from error


def _unwrapped(path: Path, loaded: Any) -> Mapping:
    """Returns the state dict, which may be nested in a checkpoint with other data."""
    inside: list[str] = []
    seen: set[int] = set()
    while isinstance(loaded, Mapping):
        if id(loaded) in seen:
            raise DataError(f"{path}: {'/'.join(inside)} in it holds itself; {EXPECTED}")
        seen.add(id(loaded))
        wrapped = [key for key in NESTED if isinstance(loaded.get(key), Mapping)]
        if not wrapped:
            break
        if len(wrapped) > 1:
            raise DataError(f"{path} holds several state dicts, {', '.join(wrapped)}; {EXPECTED}")
        inside += wrapped
        loaded = loaded[wrapped[0]]
    place = f"{path}{''.join(f'[{key!r}]' for key in inside)}"
    if not isinstance(loaded, Mapping):
        raise DataError(f"{place} is a {type(loaded).__name__}; {EXPECTED}")
    if not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        found = ", ".join(map(str, loaded)) or "nothing"
        raise DataError(f"{place} holds {found[:200]}, no tensors; {EXPECTED}")
    return loaded
