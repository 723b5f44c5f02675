"""A writer of latents: any number of items in constant memory, resumable after an interruption.

The writer fills its arrays first. Then it renames the one small file that holds `progress` into
place. When the same command is run again, it cuts off everything written after that file and writes
it again with the same bytes. Every chunk has a checksum.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from vae.data.errors import DataError, UsageError
from vae.data.failures import Failure
from vae.data.files import replacing, require_writable
from vae.inference import quantise
from vae.inference.latent_store import (
    ATTRIBUTES,
    TEXTS,
    Row,
    attributes_crc,
    layout,
    piece_rows,
    read_attributes,
)

SUFFIXES = (".zarr", ".npz")
# A store can be resumed only with the same values of these keys.
IDENTITY = (
    "model",
    "inputs",
    "split",
    "count",
    "dtype",
    "log_var",
    "quantise",
    "keep_border",
    "fov",
    "fov_mask",
    "max_lost_share",
)

_TABLE_ROWS = 1024  # rows per chunk of the metadata
_PENDING_PIECES = 4  # pieces of one group that make a commit due
_PENDING_BYTES = 64 << 20  # bytes of all groups that make a commit due


class LatentWriter:
    """A store that is being written; made by `open_writer`.

    Attributes:
      read: Number of inputs that are done, successes and failures.
      failures: The inputs that failed: `vae.data.failures.Failure` as dicts.
      steps: Steps of the quantiser, float32 [C]; None before the first item or if not quantised.
      complete: True if nothing is left to do.
    """

    def __init__(self, path: Path, root: zarr.Group, about: dict[str, Any]):
        self._path = path
        self._root = root
        self._about = about
        self._pending: dict[str, list[tuple[Row, np.ndarray, np.ndarray]]] = {}
        progress = root.attrs["progress"]
        self.read: int = progress["read"]
        self.failures: list[dict[str, str]] = progress["failures"]
        self.complete: bool = progress["complete"]
        steps = progress["steps"]
        self.steps = None if steps is None else np.array(steps, np.float32)
        self._rows: dict[str, int] = progress["rows"]
        self._bytes: dict[str, int] = progress["bytes"]

    @property
    def items(self) -> int:
        """Returns the number of items in the store."""
        return sum(self._rows.values())

    def add(
        self, rows: Sequence[Row], size: tuple[int, int], mean: np.ndarray, log_var: np.ndarray
    ) -> None:
        """Takes items of one image size; `commit` writes them.

        Args:
          rows: Metadata of the items.
          size: Height and width of their images, pixels.
          mean: float32 [N, h, w, C] or [N, L].
          log_var: float32, same shape.

        Raises:
          DataError: A latent is not finite in the requested dtype, or too large to quantise.
        """
        if self._about["quantise"] is not None:
            if self.steps is None:
                self.steps = quantise.channel_steps(log_var, self._about["quantise"])
            mean = quantise.quantise(mean, self.steps)
        elif not np.isfinite(mean.astype(self._about["dtype"])).all():
            raise DataError(
                f"{rows[0].item_id}: a latent is not finite in {self._about['dtype']}; is the model"
                " trained? --dtype float32 holds larger values"
            )
        pending = self._pending.setdefault("{}x{}".format(*size), [])
        pending.extend(zip(rows, mean, log_var, strict=True))

    @property
    def due(self) -> bool:
        """Returns True if enough is pending for `commit`: whole chunks, or much memory."""
        total = 0
        for entries in self._pending.values():
            size = entries[0][1].nbytes
            if len(entries) >= _PENDING_PIECES * piece_rows(size):
                return True
            total += len(entries) * size
        return total >= _PENDING_BYTES

    def commit(self, read: int, failures: Sequence[Failure], complete: bool = False) -> None:
        """Writes all pending items, then records them in one atomic step.

        Args:
          read: Number of inputs that are done after this commit.
          failures: Inputs that failed since the last commit.
          complete: True if this is the last commit.
        """
        for name, entries in self._pending.items():
            # Chunks of zeros are written too: a reader takes a missing chunk for lost.
            with zarr.config.set({"array.write_empty_chunks": True}):
                self._write(name, *zip(*entries, strict=True))
            self._rows[name] = self._rows.get(name, 0) + len(entries)
        self._pending = {}
        self.read, self.complete = read, complete
        self.failures += [dataclasses.asdict(failure) for failure in failures]
        progress = {
            "read": read, "complete": complete, "items": self.items, "rows": self._rows,
            "bytes": self._bytes, "failures": self.failures,
            "steps": None if self.steps is None else [float(step) for step in self.steps],
        }  # fmt: skip
        attributes = {"about": self._about, "progress": progress}
        groups = {name: dict(self._root[name].attrs) for name in self._rows}
        attributes["crc"] = attributes_crc({**attributes, "groups": groups})
        self._root.attrs.update(attributes)
        if complete and self._path.suffix == ".npz":
            _write_npz(self._path, self._root)

    def _write(
        self, name: str, rows: tuple[Row], mean: tuple[np.ndarray], log_var: tuple[np.ndarray]
    ) -> None:
        if name not in self._rows:
            self._create(name, mean[0].shape)
        group = self._root[name]
        if self._about["quantise"] is None:
            group["mean"].append(np.stack(mean).astype(self._about["dtype"]))
        else:
            packed = [quantise.pack(levels) for levels in mean]
            ends = self._bytes.get(name, 0) + np.cumsum([len(item) for item in packed])
            group["packed"].append(np.frombuffer(b"".join(packed), np.uint8))
            group["end"].append(ends.astype(np.int64))
            self._bytes[name] = int(ends[-1])
        if self._about["log_var"]:
            group["log_var"].append(np.stack(log_var).astype(self._about["dtype"]))
        group["number"].append(np.array([row.number for row in rows], np.int64))
        group["origin"].append(np.array([row.origin for row in rows], np.int32))
        fov = [dataclasses.astuple(row.fov) for row in rows]
        group["fov"].append(np.array(fov, np.float32))
        if self._about["fov_mask"]:
            group["region"].append(np.packbits([row.mask() for row in rows], axis=2))
        for text in TEXTS:
            group[text].append(np.array([getattr(row, text) for row in rows], object))

    def _create(self, name: str, shape: tuple[int, ...]) -> None:
        height, width = map(int, name.split("x"))
        attributes = {"height": height, "width": width, "latent": list(shape)}
        group = self._root.create_group(name, attributes=attributes)
        for key, (dtype, item) in layout(self._about, attributes).items():
            rows = 1 << 20 if key == "packed" else _TABLE_ROWS
            if key in ("mean", "log_var", "region"):
                rows = piece_rows(int(np.prod(item)) * np.dtype(dtype).itemsize)
            group.create_array(
                key, shape=(0, *item), chunks=(rows, *item), dtype=dtype, fill_value=None,
                # Latents look like noise to a general compressor: it is slow and saves a tenth.
                compressors=[Crc32cCodec()],
            )  # fmt: skip

    def cut(self) -> None:
        """Removes the data that an interrupted `commit` has left."""
        for unfinished in self._path.rglob("*.partial"):
            unfinished.unlink()
        for name in list(self._root.group_keys()):
            if name not in self._rows:
                del self._root[name]
                continue
            for key, array in self._root[name].arrays():
                length = self._bytes[name] if key == "packed" else self._rows[name]
                if array.shape[0] > length:
                    array.resize((length, *array.shape[1:]))


def open_writer(path: str | os.PathLike, about: dict[str, Any]) -> LatentWriter:
    """Begins a store, or resumes one that was interrupted.

    Args:
      path: Ends in .zarr or .npz. An .npz is collected in memory and written when it is complete.
      about: JSON values: "format", the keys of `IDENTITY`, and any further information.

    Raises:
      UsageError: Another suffix, or an existing store of another model, inputs or options.
      DataError: The path holds no store, or a damaged one.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--out {path}: expected a name ending in {' or '.join(SUFFIXES)}")
    if _is_begun(path):
        return _taken_up(path, about)
    progress = {
        "read": 0, "complete": False, "items": 0, "rows": {}, "bytes": {}, "failures": [],
        "steps": None,
    }  # fmt: skip
    attributes = {"about": about, "progress": progress}
    attributes["crc"] = attributes_crc({**attributes, "groups": {}})
    if path.suffix == ".npz":
        # The file is written last; this check fails early if its folder is not writable.
        require_writable(path)
        root = zarr.create_group(zarr.storage.MemoryStore(), zarr_format=3, attributes=attributes)
    else:
        path.mkdir(parents=True, exist_ok=True)
        root = zarr.create_group(path, zarr_format=3, attributes=attributes, overwrite=True)
    return LatentWriter(path, root, about)


def _is_begun(path: Path) -> bool:
    """Returns True if the path holds anything but partial files."""
    if path.is_dir():
        return any(entry.suffix != ".partial" for entry in path.iterdir())
    return path.exists()


def _taken_up(path: Path, about: dict[str, Any]) -> LatentWriter:
    attributes = read_attributes(path)
    stored = attributes["about"]
    for key in IDENTITY:
        if stored.get(key) != about[key]:
            raise UsageError(
                f"{path} was begun with {key} {json.dumps(stored.get(key))}, and this command has"
                f" {json.dumps(about[key])}; choose another --out or remove it"
            )
    if path.is_file():  # An .npz file exists only when it is complete.
        root = zarr.create_group(zarr.storage.MemoryStore(), zarr_format=3, attributes=attributes)
        return LatentWriter(path, root, stored)
    writer = LatentWriter(path, zarr.open_group(path, mode="r+", zarr_format=3), stored)
    if not writer.complete:
        writer.cut()
    return writer


def _write_npz(path: Path, root: zarr.Group) -> None:
    groups = {name: dict(group.attrs) for name, group in root.groups()}
    attributes = {**dict(root.attrs), "groups": groups}
    arrays = {ATTRIBUTES: np.array(json.dumps(attributes))}
    for name, group in root.groups():
        for key, array in group.arrays():
            # Strings have a fixed width: object arrays in an .npz would have to be unpickled.
            values = np.asarray(array[:])
            arrays[f"{name}/{key}"] = np.array(values.tolist(), str) if key in TEXTS else values
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)
