"""Latents on disk: their layout, the model and images they come from, and how to read them.

A store is a zarr group (or one .npz file of the same arrays) with a subgroup for each image size,
for example "256x256". A subgroup holds these arrays, one row per item:

    mean                float32 or float16 [N, h, w, C] or [N, L]: posterior means
    log_var             same shape and dtype, if requested
    packed, end         instead of `mean`, if quantised: the bytes of all items (see
                        `vae.inference.quantise`), uint8 [bytes], and where each ends, int64 [N]
    number              int64: index of the item among the inputs
    item_id, path, photograph, patient, label, split
                        strings, "" where unknown
    origin              int32 [N, 2]: row and column in the photograph, -1 where unknown
    fov                 float32 [N, 7]: `vae.data.fov.FIELDS` of the photograph's field of view
    region              uint8 [N, H, W / 8], if masks were given: bits of the pixels inside

Attributes of the root: `about` (model, options, inputs, version, command) and `progress` (inputs
read, rows of each group, failures, steps of the quantiser, complete), and `crc`, a checksum of the
attributes of the root and the groups. In an .npz file the arrays are named "256x256/mean" and so
on, and "attributes" holds all attributes as JSON.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from vae.data import schema
from vae.data.errors import DataError, one_line
from vae.data.fov import FIELDS, UNKNOWN, FieldOfView
from vae.data.inputs import Item
from vae.inference import quantise
from vae.inference.latent_checks import check_array, check_files, check_npz

FORMAT = "fundus-vae latents 3"
TEXTS = ("item_id", "path", "photograph", "patient", "label", "split")
ATTRIBUTES = "attributes"

_PIECE_BYTES = 8 << 20
_REMEDY = "encode again"
_LONGEST = 1 << 20  # pixels of a side
_LATENT = schema.whole(1, 1 << 20)
_SCHEMA = {
    "about": {
        "format": schema.one_of(FORMAT),
        **dict.fromkeys(("model", "model_path", "fov"), schema.TEXT),
        **dict.fromkeys(("split", "fov_mask"), (None, schema.TEXT)),
        **dict.fromkeys(("log_var", "keep_border"), schema.FLAG),
        "inputs": [schema.TEXT],
        "count": schema.whole(),
        "dtype": schema.one_of("float32", "float16"),
        "quantise": (None, schema.number(0.01, 100)),
        "max_lost_share": schema.number(0, 1),
    },
    "progress": {
        "read": schema.whole(),
        "complete": schema.FLAG,
        "items": schema.whole(),
        "rows": {str: schema.whole(1)},
        "bytes": {str: schema.whole()},
        "failures": [dict.fromkeys(("item_id", "path", "reason", "traceback"), schema.TEXT)],
        "steps": (None, [schema.number(1e-30)]),
    },
    "groups": {
        str: {
            "height": schema.whole(1, _LONGEST),
            "width": schema.whole(1, _LONGEST),
            "latent": [_LATENT],
        }
    },
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Metadata of one item in the store; fields as in `vae.data.inputs.Item`.

    Attributes:
      number: Index of the item among the inputs.
      size: Height and width of the image, pixels.
      region: Mask as in `Item`, only while the store is written; `LatentGroup.masks` reads it.
    """

    number: int
    item_id: str
    path: str = ""
    photograph: str = ""
    patient: str = ""
    label: str = ""
    split: str = ""
    origin: tuple[int, int] = (-1, -1)
    fov: FieldOfView = UNKNOWN
    size: tuple[int, int] = (0, 0)
    region: np.ndarray | None = None

    @classmethod
    def from_item(cls, item: Item, number: int) -> "Row":
        """Returns the metadata that the store keeps of an item."""
        texts = {name: getattr(item, name) for name in TEXTS}
        return cls(
            number=number, origin=item.origin, fov=item.fov, size=item.image.shape[:2],
            region=item.region, **texts,
        )  # fmt: skip

    def mask(self) -> np.ndarray:
        """Returns the mask that was given, else the field of view, else all True: bool [H, W]."""
        if self.region is not None:
            return self.region
        if self.fov.known:
            return self.fov.mask(*self.size, *self.origin)
        return np.ones(self.size, bool)


class LatentGroup:
    """The items of one image size.

    Attributes:
      height: Height of the images, pixels.
      width: Width of the images, pixels.
      shape: Shape of the latents of one item, (h, w, C) or (L,).
    """

    def __init__(
        self, path: Path, attributes: dict, arrays: Mapping[str, Any], steps: np.ndarray | None
    ):
        self._path = path
        self._arrays = arrays
        self._steps = steps
        self.height: int = attributes["height"]
        self.width: int = attributes["width"]
        self.shape: tuple[int, ...] = tuple(attributes["latent"])

    def __len__(self) -> int:
        return self._arrays["number"].shape[0]

    def latents(self, start: int, stop: int) -> np.ndarray:
        """Returns the posterior means of a range of items, ready to decode: float32 [n, ...].

        Raises:
          DataError: The store is damaged.
        """
        if self._steps is None:
            return self._read("mean", start, stop).astype(np.float32, copy=False)
        packed = self.packed(start, stop)
        levels = [quantise.unpack(item, self.shape) for item in packed]
        return quantise.dequantise(np.stack(levels), self._steps)

    def packed(self, start: int, stop: int) -> list[bytes]:
        """Returns the packed bytes of each item of a range; only for quantised stores."""
        ends = self._read("end", max(start - 1, 0), stop)
        bounds = np.concatenate([[0], ends]) if start == 0 else ends
        if (np.diff(bounds) < 0).any() or bounds[0] < 0:
            raise DataError(
                f"{self._path}: end of {self.height}x{self.width} is damaged; {_REMEDY}"
            )
        stream = self._read("packed", int(bounds[0]), int(bounds[-1])).tobytes()
        bounds = bounds - bounds[0]
        return [stream[a:b] for a, b in itertools.pairwise(bounds)]

    def rows(self, start: int, stop: int) -> list[Row]:
        """Returns the metadata of a range of items."""
        columns = {name: self._read(name, start, stop) for name in ("number", *TEXTS)}
        origin = self._read("origin", start, stop).tolist()
        fov = self._read("fov", start, stop).tolist()
        return [
            Row(
                number=int(columns["number"][i]),
                **{name: str(columns[name][i]) for name in TEXTS},
                origin=tuple(origin[i]),
                fov=FieldOfView(*fov[i]),
                size=(self.height, self.width),
            )
            for i in range(len(origin))
        ]

    def masks(self, start: int, stop: int) -> list[np.ndarray]:
        """Returns the mask of each item of a range, bool [H, W]; see `Row.mask`."""
        if "region" not in self._arrays:
            return [row.mask() for row in self.rows(start, stop)]
        bits = self._read("region", start, stop)
        return list(np.unpackbits(bits, axis=2, count=self.width).astype(bool))

    def numbers(self) -> list[int]:
        """Returns the index of each item among the inputs, ascending."""
        return self._read("number", 0, len(self)).tolist()

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yields ranges (start, stop) of items to read together: about 8 MB of latents each."""
        rows = piece_rows(4 * int(np.prod(self.shape)))
        for start in range(0, len(self), rows):
            yield start, min(start + rows, len(self))

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        try:
            return np.asarray(self._arrays[name][start:stop])
        except Exception as error:  # zarr raises all kinds for damaged chunks.
            raise DataError(
                f"{self._path}: {name} of {self.height}x{self.width} is damaged"
                f" ({one_line(error)}); {_REMEDY}"
            ) from error


@dataclasses.dataclass(frozen=True)
class LatentStore:
    """A complete store of latents.

    Attributes:
      path: Path of the store.
      about: Model, options, inputs, version, command.
      progress: See the docstring of the module.
      groups: The items, grouped by image size.
    """

    path: Path
    about: dict[str, Any]
    progress: dict[str, Any]
    groups: tuple[LatentGroup, ...]

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)


def open_latents(path: str | os.PathLike) -> LatentStore:
    """Opens the latents that `fundus-vae encode` wrote.

    Raises:
      DataError: The store is missing, something else, damaged, unfinished, or empty.
    """
    path = Path(path)
    attributes, groups = read_attributes(path), []
    about, progress = attributes["about"], attributes["progress"]
    if not progress["complete"]:
        raise DataError(
            f"{path}: unfinished, {progress['read']} of {about['count']} images;"
            " the same encode command continues it"
        )
    if not progress["items"]:
        raise DataError(f"{path}: holds no items; {len(progress['failures'])} could not be read")
    steps = None if progress["steps"] is None else np.array(progress["steps"], np.float32)
    for name, rows in progress["rows"].items():
        group = attributes["groups"][name]
        expected = layout(about, group)
        if path.is_file():
            arrays = _npz_arrays(path, name)
        else:
            arrays = _zarr_arrays(path, name, list(expected))
        for key, (dtype, shape) in expected.items():
            length = progress["bytes"][name] if key == "packed" else rows
            if key not in arrays or arrays[key].shape[:1] != (length,):
                raise DataError(f"{path}: {name}/{key} is missing or cut; encode again")
            found = arrays[key].dtype
            alike = found.kind in "TOU" if dtype is str else found == np.dtype(dtype)
            if arrays[key].shape[1:] != shape or not alike:
                raise DataError(
                    f"{path}: {name}/{key} holds {found} {list(arrays[key].shape[1:])}, expected "
                    f"{np.dtype(dtype)} {list(shape)}; encode again"
                )
        groups.append(LatentGroup(path, group, arrays, steps))
    return LatentStore(path, about, progress, tuple(groups))


def read_attributes(path: Path) -> dict[str, Any]:
    """Reads `about`, `progress` and `groups` (height, width and latent shape by name) of a store.

    Raises:
      DataError: The store is missing or damaged, or the path holds something else.
    """
    if not path.exists():
        raise DataError(f"{path}: no such latents; expected what `fundus-vae encode` wrote")
    check_files(path)
    try:
        if path.is_file():
            check_npz(path)
            with np.load(path) as file:
                attributes = schema.parse_json(str(file[ATTRIBUTES]), path, remedy=_REMEDY)
        else:
            root = zarr.open_group(path, mode="r", zarr_format=3)
            attributes = dict(root.attrs)
            rows = attributes["progress"]["rows"]
            attributes["groups"] = {name: dict(root[name].attrs) for name in rows}
        if attributes["about"]["format"] != FORMAT:
            found = attributes["about"]["format"]
            raise DataError(f"{path}: its format is {found!r}, expected {FORMAT!r}; {_REMEDY}")
        crc = attributes["crc"]
    except DataError:
        raise
    except Exception as error:  # zarr and NumPy raise all kinds for damaged files.
        reason = one_line(error) or type(error).__name__
        raise DataError(f"{path}: no latents of `fundus-vae encode` ({reason})") from error
    schema.check(attributes, path, _SCHEMA, remedy=_REMEDY)
    if crc != attributes_crc(attributes):
        raise DataError(f"{path}: its attributes do not match their checksum; {_REMEDY}")
    _check_agreement(path, **{key: attributes[key] for key in _SCHEMA})
    return attributes


def attributes_crc(attributes: dict[str, Any]) -> int:
    """Returns the checksum of `about`, `progress` and `groups` of a store."""
    return schema.json_crc([attributes[key] for key in _SCHEMA])


def layout(about: dict[str, Any], group: dict[str, Any]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Returns dtype (`str` for texts) and shape of one row of each array of a group.

    Args:
      about: Attribute of the store.
      group: Attributes of the group: height, width and latent.
    """
    latent, dtype = tuple(group["latent"]), np.dtype(about["dtype"])
    arrays = {"mean": (dtype, latent)} if about["quantise"] is None else {
        "packed": (np.uint8, ()), "end": (np.int64, ())
    }  # fmt: skip
    if about["log_var"]:
        arrays["log_var"] = dtype, latent
    arrays |= {"number": (np.int64, ()), "origin": (np.int32, (2,))}
    arrays["fov"] = np.float32, (len(FIELDS),)
    if about["fov_mask"]:
        # Bits are packed along the width.
        arrays["region"] = np.uint8, (group["height"], -(-group["width"] // 8))
    return arrays | dict.fromkeys(TEXTS, (str, ()))


def _check_agreement(path: Path, about: dict, progress: dict, groups: dict) -> None:
    """Raises DataError if the attributes of a store contradict each other."""
    rows, steps = progress["rows"], progress["steps"]
    latents = [group["latent"] for group in groups.values()]
    quantised = about["quantise"] is not None
    for agrees, what in (
        (sum(rows.values()) == progress["items"], "the rows of its groups are not its items"),
        (
            progress["items"] + len(progress["failures"]) == progress["read"] <= about["count"],
            "its items and failures are not the images that were read",
        ),
        (groups.keys() == rows.keys(), "its groups have no rows"),
        (
            all(name == f"{group['height']}x{group['width']}" for name, group in groups.items()),
            "a group is named unlike its images",
        ),
        (all(len(latent) in (1, 3) for latent in latents), "its latents have another rank"),
        (
            not (quantised and rows)
            or (
                bool(steps)
                and progress["bytes"].keys() == rows.keys()
                and all(latent[-1] == len(steps) for latent in latents)
            ),
            "its quantiser does not fit its latents",
        ),
        (quantised or steps is None, "it has a quantiser and is not quantised"),
    ):
        if not agrees:
            raise DataError(f"{path}: {what}; {_REMEDY}")


def piece_rows(item_bytes: int) -> int:
    """Returns the number of items that are stored together: a power of two, about 8 MB."""
    return 1 << (max(1, _PIECE_BYTES // item_bytes).bit_length() - 1)


def _npz_arrays(path: Path, name: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            keys = [key for key in file if key.startswith(f"{name}/")]
            return {key.removeprefix(f"{name}/"): file[key] for key in keys}
    except Exception as error:  # NumPy raises all kinds for damaged files.
        raise DataError(f"{path}: damaged ({one_line(error)}); {_REMEDY}") from error


def _zarr_arrays(path: Path, name: str, names: list[str]) -> dict[str, zarr.Array]:
    try:
        arrays = dict(zarr.open_group(path / name, mode="r", zarr_format=3).arrays())
        for key, array in arrays.items():
            check_array(path, f"{name}/{key}", array)
            # zarr reads a missing chunk as zeros.
            if array.nchunks_initialized != array.nchunks:
                lost = array.nchunks - array.nchunks_initialized
                raise DataError(f"{path}: {lost} chunks of {name}/{key} are missing; {_REMEDY}")
    except DataError:
        raise
    except Exception as error:  # zarr raises all kinds for damaged files.
        raise DataError(f"{path}: {name} is missing or damaged; {_REMEDY}") from error
    return {key: arrays[key] for key in names if key in arrays}
