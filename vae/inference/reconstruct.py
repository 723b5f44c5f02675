"""Reconstructed images as files: reconstructions, comparisons, difference maps, and a table."""

import collections
import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from vae.checkpoints.provenance import provenance
from vae.data.cores import available_cores
from vae.data.errors import DataError
from vae.data.failures import Failure, failure_of
from vae.data.files import write_beside, write_csv
from vae.data.inputs import Inputs, Item
from vae.inference import pictures
from vae.inference.batches import item_batches
from vae.inference.compare import compare
from vae.inference.enhance import EnhancementModel
from vae.inference.model import Model

TABLE = "reconstructions.csv"
RECONSTRUCTIONS, COMPARISONS, DIFFERENCES = "reconstructions", "comparisons", "differences"

Row = Mapping[str, str | int | float]
Result = TypeVar("Result")

_WRITING_BYTES = 192 << 20  # Bytes of images that wait to be drawn and written.
_COMMAND = 500  # Characters of the command that are recorded.


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """An image and its reconstruction.

    Attributes:
      item: The input as it was read.
      image: uint8 [H, W, 3], the input of the model: black outside the field of view, unless the
        border is kept.
      output: uint8 [H, W, 3].
      ssim: SSIM inside the field of view; NaN if no window fits.
      psnr: PSNR in dB inside the field of view; NaN if no pixel is inside.
    """

    item: Item
    image: np.ndarray
    output: np.ndarray
    ssim: float
    psnr: float


def reconstruct_inputs(
    model: Model, inputs: Inputs, *, keep_border: bool = False
) -> Iterator[Reconstruction | Failure]:
    """Reconstructs images in their order, neighbouring tiles of one size together.

    Args:
      model: The autoencoder.
      inputs: The images.
      keep_border: True keeps the pixels outside the field of view in input and output; False makes
        them black. If no field of view is known, all pixels are kept.

    Yields:
      A reconstruction for each image, or a failure in its place.
    """
    for group in item_batches(inputs.read()):
        yield from _reconstruct(model, group, keep_border)


def _reconstruct(
    model: Model, group: list[Item] | list[Failure], keep_border: bool
) -> list[Reconstruction | Failure]:
    if isinstance(group[0], Failure):
        return group
    try:
        images = [item.image if keep_border else item.inside() for item in group]
        if len(group) == 1:
            outputs = [model.reconstruct(images[0])]
        else:
            outputs = model.reconstruct(np.stack(images))
        results = []
        for item, image, output in zip(group, images, outputs, strict=True):
            output = output if keep_border else item.inside(output)
            results.append(
                Reconstruction(item, image, output, *compare(image, output, item.mask()))
            )
        return results
    except Exception as error:
        if len(group) == 1:
            return [failure_of(group[0].item_id, group[0].path, error)]
    # One item made the group fail: the items are reconstructed one by one.
    return [result for item in group for result in _reconstruct(model, [item], keep_border)]


def write_reconstructions(
    results: Iterator[Reconstruction | Failure],
    out: str | os.PathLike,
    *,
    origin: Mapping[str, str],
    suffix: str = ".png",
    with_pictures: bool = True,
    levels: float = 5.0,
) -> Iterator[dict[str, str | int | float] | Failure]:
    """Writes each reconstruction, a comparison and a difference map, each file whole or not at all.

    Args:
      results: From `reconstruct_inputs`.
      out: Folder for `reconstructions/<id>.png`, `comparisons/<id>.png`, `differences/<id>.png`.
      origin: Provenance, stored in the files and in the rows of the table.
      suffix: ".png" or ".jpg".
      with_pictures: True also writes comparisons and difference maps.
      levels: Grey levels at the top of the colour scale of differences.

    Yields:
      The table row of each image once its files are written, or a failure in its place.
    """
    out = Path(out)

    def write(result: Reconstruction) -> dict[str, str | int | float]:
        return _write(result, out, origin, suffix, with_pictures, levels)

    once = without_repeats(results)
    yield from write_in_order(once, write, lambda result: 3 * result.image.nbytes)


def without_repeats(results: Iterator[Result | Failure]) -> Iterator[Result | Failure]:
    """Passes results on, but fails each one whose files would replace those of an earlier one.

    Args:
      results: Results of items (`result.item`); a failure is passed on unchanged.

    Yields:
      The result, or a failure in its place.
    """
    seen: set[PurePosixPath] = set()
    for result in results:
        if not isinstance(result, Failure):
            item, before = result.item, len(seen)
            seen.add(PurePosixPath(item.item_id))
            if len(seen) == before:
                yield Failure(
                    item.item_id,
                    item.path,
                    f"{item.path}: a second image is called {item.item_id!r}; its files would "
                    "replace those of the first: rename one of them",
                )
                continue
        yield result


def write_in_order(
    results: Iterator[Result | Failure],
    write: Callable[[Result], Row],
    nbytes: Callable[[Result], int],
) -> Iterator[Row | Failure]:
    """Draws and writes results on threads while the next ones are computed.

    Args:
      results: Results of images; a failure is passed on unchanged.
      write: Writes the files of a result, and returns its row of the table. An error in it becomes
        the failure of that item.
      nbytes: Returns the bytes that a result occupies while it waits.

    Yields:
      The table row of each result once its files are written, or a failure in its place.
    """

    def attempt(result: Result | Failure) -> Row | Failure:
        if isinstance(result, Failure):
            return result
        try:
            return write(result)
        except Exception as error:
            return failure_of(result.item.item_id, result.item.path, error)

    waiting: collections.deque = collections.deque()
    size = 0
    with concurrent.futures.ThreadPoolExecutor(min(available_cores(), 8)) as pool:
        try:
            for result in results:
                while waiting and size > _WRITING_BYTES:
                    future, freed = waiting.popleft()
                    size -= freed
                    yield future.result()
                held = 0 if isinstance(result, Failure) else nbytes(result)
                waiting.append((pool.submit(attempt, result), held))
                size += held
                while waiting and waiting[0][0].done():
                    future, freed = waiting.popleft()
                    size -= freed
                    yield future.result()
            for future, _ in waiting:
                yield future.result()
        finally:
            for future, _ in waiting:
                future.cancel()


def write_table(path: str | os.PathLike, rows: Sequence[Mapping[str, str | int | float]]) -> None:
    """Writes the rows as CSV, first under another name and then renamed."""
    write_csv(path, rows[0], ([row[name] for name in rows[0]] for row in rows))


def origin_of(model: Model | EnhancementModel) -> dict[str, str]:
    """Returns the provenance of every output: the model's hash, our version, the command."""
    made = {"model": model.hash, **provenance()}
    if len(made["command"]) > _COMMAND:
        made["command"] = f"{made['command'][:_COMMAND]} ..."
    return made


def _write(
    result: Reconstruction,
    out: Path,
    origin: Mapping[str, str],
    suffix: str,
    with_pictures: bool,
    levels: float,
) -> dict[str, str | int | float]:
    item, image, output = result.item, result.image, result.output
    name = file_name(item, suffix)
    write_picture(out / RECONSTRUCTIONS / name, output, origin)
    height, width = image.shape[:2]
    if with_pictures:
        caption = (
            f"{item.item_id}  {width} x {height}  {format_metrics(result.ssim, result.psnr)}"
            f"  model {origin['model']}"
        )
        page = pictures.comparison(image, output, item.mask(), caption=caption, levels=levels)
        write_picture(out / COMPARISONS / name, page, origin)
        scale = f"mean absolute difference of R, G, B: black 0, pale yellow {levels:g} grey levels"
        map_ = pictures.difference_map(pictures.difference(image, output), levels)
        write_picture(out / DIFFERENCES / name, map_, {**origin, "scale": scale})
    return {
        "id": item.item_id,
        "path": item.path,
        "height": height,
        "width": width,
        "fov": item.field,
        "ssim": round(result.ssim, 6),
        "psnr": round(result.psnr, 4),
        "photograph": item.photograph,
        "patient": item.patient,
        "label": item.label,
        "split": item.split,
        **origin,
    }


def format_metrics(ssim: float, psnr: float) -> str:
    """Formats the two metrics as text."""
    return "no pixels to measure" if math.isnan(psnr) else f"SSIM {ssim:.4f}  PSNR {psnr:.2f} dB"


def file_name(item: Item, suffix: str) -> PurePosixPath:
    """Returns the path of an image's files below each output folder.

    Raises:
      DataError: The id leads out of these folders.
    """
    name = PurePosixPath(f"{item.item_id}{suffix}")
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{item.path}: the id {item.item_id!r} leaves the output folder")
    return name


def write_picture(path: Path, image: np.ndarray, fields: Mapping[str, str]) -> None:
    """Writes a picture with its provenance, first under another name and then renamed."""
    write_beside(path, pictures.encode_with_text(image, path.suffix, fields))
