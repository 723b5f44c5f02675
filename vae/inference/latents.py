"""Encoding of images to latents on disk, and decoding of latents to images."""

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from vae.data.errors import DataError, UsageError
from vae.data.failures import Failure, failure_of
from vae.data.images import write_image
from vae.data.inputs import Inputs, Item
from vae.inference.batches import batch_bounds, item_batches
from vae.inference.latent_store import LatentGroup, LatentStore, Row
from vae.inference.latent_writer import LatentWriter
from vae.inference.model import Model
from vae.models import Posterior


def describe_model(model: Model) -> dict[str, Any]:
    """Returns the entries of a store that describe the model: JSON values."""
    saved = model.saved
    return {
        "model": model.hash,
        "model_path": str(saved.path),
        "model_step": saved.step,
        "model_name": saved.config.name,
        "model_config": saved.config.model.to_dict(),
    }


def encode_inputs(
    model: Model, inputs: Inputs, writer: LatentWriter, *, keep_border: bool = False
) -> None:
    """Encodes all inputs that are not in the store yet, and completes the store.

    An input that cannot be read or encoded is recorded in the store as a failure.

    Args:
      model: Any autoencoder.
      inputs: The same inputs, in the same order, as when the store was begun.
      writer: The store.
      keep_border: True also encodes pixels outside the field of view, names and dates included.
    """
    failures: list[Failure] = []
    bar = tqdm(
        total=len(inputs), initial=writer.read, unit=" images", desc="encode",
        disable=not sys.stderr.isatty(),
    )  # fmt: skip
    number = writer.read
    with bar:
        for batch in item_batches(_fitting(model, item) for item in inputs.read(number)):
            failures.extend(_encode(model, batch, number, writer, keep_border))
            number += len(batch)
            if writer.due:
                writer.commit(number, failures)
                failures = []
            bar.update(len(batch))
        writer.commit(len(inputs), failures, complete=True)


def _encode(
    model: Model,
    batch: list[Item] | list[Failure],
    number: int,
    writer: LatentWriter,
    keep_border: bool,
) -> list[Failure]:
    """Encodes a batch whose first item has the index `number`; returns the failures."""
    if isinstance(batch[0], Failure):
        return batch
    try:
        rows = [Row.from_item(item, number + i) for i, item in enumerate(batch)]
        images = [item.image if keep_border else item.inside() for item in batch]
        posterior = _posterior(model, images)
        writer.add(rows, rows[0].size, posterior.mean, posterior.log_var)
        return []
    except Exception as error:
        if len(batch) == 1:
            return [failure_of(batch[0].item_id, batch[0].path, error)]
    # One item made the batch fail: the items are encoded one by one.
    single = [
        _encode(model, [item], number + i, writer, keep_border) for i, item in enumerate(batch)
    ]
    return [failure for failures in single for failure in failures]


def _posterior(model: Model, images: list[np.ndarray]) -> Posterior:
    """Encodes a batch as `Model.reconstruct` does: a single image counts as a photograph."""
    if len(images) > 1 or model.tile_size is not None:
        return model.posterior(np.stack(images))
    return jax.tree.map(lambda leaf: leaf[None], model.posterior(images[0]))


def _fitting(model: Model, item: Item | Failure) -> Item | Failure:
    if isinstance(item, Item) and (reason := _unfit(model, item)):
        return Failure(item.item_id, item.path, reason)
    return item


def _unfit(model: Model, item: Item) -> str:
    """Returns the reason why a model of one tile size cannot encode an image; "" if it can."""
    side = model.tile_size
    height, width = item.image.shape[:2]
    if side is None or (height, width) == (side, side):
        return ""
    return (
        f"{item.path}: {height}x{width}, and this model encodes tiles of {side}x{side} only;"
        f" cut them with `fundus-vae make-tiles --tile {side}`"
    )


def check_model(store: LatentStore, model: Model) -> None:
    """Refuses latents of another model.

    Raises:
      UsageError: The hashes differ.
    """
    if store.about["model"] != model.hash:
        raise UsageError(
            f"{store.path} holds latents of model {store.about['model']}"
            f" ({store.about['model_path']}), and --model {model.saved.path} is {model.hash};"
            " only the model that encoded can decode"
        )


def decoded(
    model: Model, store: LatentStore, *, keep_border: bool = False
) -> Iterator[tuple[Row, np.ndarray] | Failure]:
    """Decodes all items of a store, in constant memory.

    Args:
      model: The model that encoded them.
      store: From `open_latents`.
      keep_border: True keeps the decoded pixels outside the field of view; False makes them black
        if the field of view is known or a mask was given.

    Yields:
      The metadata of each item with its image, uint8 [H, W, 3] in its original size, or the failure
      of an item whose latents are damaged.
    """
    for group in store.groups:
        for start, stop in batch_bounds(group.numbers(), group.height * group.width):
            yield from _decoded(model, store, group, start, stop, keep_border)


def _decoded(
    model: Model, store: LatentStore, group: LatentGroup, start: int, stop: int, keep_border: bool
) -> list[tuple[Row, np.ndarray] | Failure]:
    try:
        rows, images = group.rows(start, stop), decode_range(model, group, start, stop)
        if not keep_border:
            masks = np.stack(group.masks(start, stop))
            images = np.where(masks[..., None], images, np.uint8(0))
        return list(zip(rows, images, strict=True))
    except Exception as error:
        if stop - start == 1:
            name = f"item {start} of {group.height}x{group.width}"
            return [failure_of(name, store.path, error)]
    # One item made the range fail: the items are decoded one by one.
    return [
        result
        for number in range(start, stop)
        for result in _decoded(model, store, group, number, number + 1, keep_border)
    ]


def decode_range(model: Model, group: LatentGroup, start: int, stop: int) -> np.ndarray:
    """Decodes a range of a group to images of their original size: uint8 [N, H, W, 3]."""
    latents = group.latents(start, stop)
    if len(latents) > 1 or model.tile_size is not None:
        images = model.decode(latents)
    else:
        images = model.decode(latents[0])[None]
    if min(images.shape[1] - group.height, images.shape[2] - group.width) < 0:
        raise DataError(
            f"latents of {group.height}x{group.width} pixels decode to {images.shape[1]}x"
            f"{images.shape[2]}: the store is damaged; encode again"
        )
    return images[:, : group.height, : group.width]


def decode_to_folder(
    model: Model, store: LatentStore, out: Path, *, keep_border: bool = False
) -> list[Failure]:
    """Writes every item as OUT/<item id>.png.

    Returns:
      Failures of the items that could not be decoded or written.
    """
    failures: list[Failure] = []
    written: set[Path] = set()
    bar = tqdm(total=len(store), unit=" images", desc="decode", disable=not sys.stderr.isatty())
    with bar:
        for result in decoded(model, store, keep_border=keep_border):
            bar.update()
            if isinstance(result, Failure):
                failures.append(result)
                continue
            row, image = result
            try:
                place = _place(store, row, out)
                if place in written:
                    raise DataError(
                        f"{store.path}: item {row.number} is called {row.item_id!r}, as one before"
                        " it, whose file it would replace"
                    )
                write_image(place, image)
                written.add(place)
            except Exception as error:
                failures.append(failure_of(row.item_id, store.path, error))
    return failures


def _place(store: LatentStore, row: Row, out: Path) -> Path:
    name = PurePosixPath(row.item_id)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise DataError(f"{store.path}: item {row.item_id!r} leads out of {out}")
    return out / f"{name}.png"
