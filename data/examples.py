"""One record of a built dataset, parsed: the tile and what is known of it."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from vae.data import fov, records
from vae.data.errors import DataError
from vae.data.images import require_encoded_size
from vae.data.names import composed
from vae.data.record_files import damaged
from vae.data.thumbnails import circle_of


class Example:
    """A record of a source; nothing of its image is decoded before it is asked for."""

    def __init__(self, source: records.RecordSource, number: int, record: bytes | None = None):
        """Parses record `number`, and reads it unless `record` is its payload.

        Raises:
          DataError: It does not match its checksum, or is no example.
        """
        record = source[number] if record is None else record
        self._locator = (source, number)
        try:
            self._features = tf_example_pb2.Example.FromString(record).features.feature
        except DecodeError as error:
            raise self._damaged("is no example") from error

    def text(self, name: str) -> str:
        """One of tile_id, which is a file's path, and photograph, patient, label, which are names:
        their accents are composed."""
        text = self._features[name].bytes_list.value[0].decode()
        return text if name == "tile_id" else composed(text)

    def geometry(self) -> tuple[fov.FieldOfView, int, int]:
        """The field of view of the tile's photograph, and the tile's origin (y, x) in it."""
        values = (self._features[f"fov_{name}"].float_list.value[0] for name in fov.FIELDS)
        y, x = (self._features[name].int64_list.value[0] for name in ("y", "x"))
        return fov.FieldOfView(*values), y, x

    def circle(self, y: int = 0, x: int = 0) -> np.ndarray:
        """Where the field of view lies as seen from row y, column x of the tile: float32 [3]; see
        `vae.data.thumbnails.circle_of`."""
        field, top, left = self.geometry()
        height, width = (
            self._features[f"photo_{side}"].int64_list.value[0] for side in ("height", "width")
        )
        return circle_of(field, height, width, top + y, left + x)

    def decode(self) -> np.ndarray:
        """The tile as it was built: uint8 [H, W, 3].

        Raises:
          DataError: The record holds no image, or one of more pixels than the limit.
        """
        encoded = self._features["image"].bytes_list.value[0]
        try:
            require_encoded_size(encoded, "its image")
        except DataError as error:
            raise self._damaged(f"is refused: {error}") from None
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise self._damaged("holds no image")
        return image

    def _damaged(self, what: str):
        source, number = self._locator
        return damaged(*source.locate(number), what, source[number])


def read_examples(source: records.RecordSource, numbers: Sequence[int]) -> Iterator[Example]:
    """Some records of a source, parsed one after another; raises as `Example` does."""
    for number, record in zip(numbers, source.read_many(numbers), strict=True):
        yield Example(source, number, record)
