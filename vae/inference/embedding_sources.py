"""Sources of the images in a latent store: their pixels, and their position in a photograph."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from vae.data.errors import DataError, FundusError
from vae.data.images import read_image
from vae.data.inputs import Inputs, Item, open_inputs
from vae.data.manifest import PHOTOGRAPHS, PhotographRow, read_photographs
from vae.data.region import FovChoice
from vae.inference.latent_store import LatentStore, Row

_SIDE = 360  # longer side of a photograph as shown, pixels


@dataclasses.dataclass(frozen=True)
class Source:
    """An image and the photograph around it.

    Attributes:
      image: uint8 [H, W, 3], black outside a known field of view; None if it was not found.
      photograph: uint8 [h, w, 3], reduced; None if it is unknown or was not found.
      box: Left, top, width and height of the image in `photograph`, pixels.
    """

    image: np.ndarray | None
    photograph: np.ndarray | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class Sources:
    """Finder of the images and photographs that the rows of a latent store name.

    A store may come from somebody else, and what it names would be shown. Files are therefore
    opened only below the folder that holds the store, and below `folders`.

    Attributes:
      missing: One line for each file or image that was not found.
    """

    def __init__(self, store: LatentStore, folders: Iterable[str | os.PathLike] = ()):
        self.missing: list[str] = []
        self._inputs: Inputs | None = None
        self._folders = [Path(folder).resolve() for folder in (store.path.parent, *folders)]
        try:
            about = store.about
            for path in (*about["inputs"], about["fov_mask"]):
                if path is not None:
                    self._require_below(path)
            choice = FovChoice(about["fov"], about["fov_mask"], about["max_lost_share"])
            self._inputs = open_inputs(about["inputs"], split=about["split"], choice=choice)
        except FundusError as error:
            self.missing.append(str(error))
        self._tables: dict[Path, dict[str, PhotographRow]] = {}

    def find(self, row: Row) -> Source:
        """Returns the image of a row, and its photograph and position, as far as they are found."""
        item = self._item(row)
        image = None if item is None else item.inside()
        if image is None or row.origin[0] < 0 or row.photograph in ("", row.item_id):
            return Source(image)
        photograph = self._photograph_row(row)
        if photograph is None:
            return Source(image)
        small = self._small(photograph.path, photograph)
        if small is None:
            return Source(image)
        factor = small.shape[1] / photograph.width
        y, x = row.origin
        height, width = image.shape[:2]
        return Source(image, small, (x * factor, y * factor, width * factor, height * factor))

    def _require_below(self, path: str) -> None:
        real = Path(path).resolve()
        if not any(real.is_relative_to(folder) for folder in self._folders):
            raise DataError(
                f"{path}: is not below {self._folders[0]}, where the store is; --images DIR shows "
                "files of another folder"
            )

    def _item(self, row: Row) -> Item | None:
        if self._inputs is None or row.number >= len(self._inputs):
            return None
        item = next(self._inputs.read(row.number))
        if isinstance(item, Item) and item.item_id == row.item_id:
            return item
        self.missing.append(f"{row.path}: no longer holds {row.item_id}")
        return None

    def _photograph_row(self, row: Row) -> PhotographRow | None:
        path = Path(row.path)
        depth = row.photograph.count("/") + 3  # from a tile up to the folder of the table
        for folder in (path, *path.parents[:depth]):
            if (folder / PHOTOGRAPHS).is_file():
                if folder not in self._tables:
                    table = read_photographs(folder / PHOTOGRAPHS)
                    self._tables[folder] = {entry.photograph: entry for entry in table}
                return self._tables[folder].get(row.photograph)
        return None

    @functools.cache  # noqa: B019 - the object lives no longer than a command
    def _small(self, path: str, row: PhotographRow) -> np.ndarray | None:
        try:
            self._require_below(path)
            image = read_image(path)
        except FundusError as error:
            self.missing.append(str(error))
            return None
        factor = _SIDE / max(row.height, row.width)
        size = (max(1, round(row.width * factor)), max(1, round(row.height * factor)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if row.masked:
            return None
        if row.fov.known:  # Names and dates are burned in outside.
            small[~row.fov.scaled(factor).mask(*small.shape[:2])] = 0
        return small
