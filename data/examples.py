"""Parsed records of a built dataset: a tile and its metadata."""

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
    """A parsed record of a source; the image is decoded on request."""

    def __init__(self, source: records.RecordSource, number: int, record: bytes | None = None):
        """Parses record `number` from its payload `record`, or reads it from `source` if None.

        Raises:
          DataError: The record does not match its checksum, or is no example.
        """
        record = source[number] if record is None else record
        self._locator = (source, number)
        try:
            self._features = tf_example_pb2.Example.FromString(record).features.feature
        except DecodeError as error:
            raise self._damaged("is no example") from error

    def text(self, name: str) -> str:
        """Returns tile_id, photograph, patient or label; all but the tile_id, a path, in NFC."""
        try:
            text = self._value(name, "bytes_list").decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"has a {name} that is no UTF-8") from error
        return text if name == "tile_id" else composed(text)

    def geometry(self) -> tuple[fov.FieldOfView, int, int]:
        """Returns the photograph's field of view and the tile's origin (y, x) in the photograph."""
        values = (self._value(f"fov_{name}", "float_list") for name in fov.FIELDS)
        y, x = (self._value(name, "int64_list") for name in ("y", "x"))
        return fov.FieldOfView(*values), y, x

    def circle(self, y: int = 0, x: int = 0) -> np.ndarray:
        """Returns the FOV circle relative to row y, column x of the tile: float32 [3], in pixels.

        See `vae.data.thumbnails.circle_of`.
        """
        field, top, left = self.geometry()
        height, width = (self._value(f"photo_{s}", "int64_list") for s in ("height", "width"))
        return circle_of(field, height, width, top + y, left + x)

    def decode(self) -> np.ndarray:
        """Decodes the tile: uint8 [H, W, 3], sRGB.

        Raises:
          DataError: The record has no image, or its image has more pixels than the limit.
        """
        encoded = self._value("image", "bytes_list")
        try:
            require_encoded_size(encoded, "its image")
        except DataError as error:
            raise self._damaged(f"is refused: {error}") from None
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise self._damaged("holds no image")
        return image

    def _value(self, name: str, kind: str):
        """Returns the first value of a feature; raises DataError if it has none."""
        values = getattr(self._features[name], kind).value
        if not values:
            raise self._damaged(f"has no {name}")
        return values[0]

    def _damaged(self, what: str):
        source, number = self._locator
        return damaged(*source.locate(number), what, source[number])


def read_examples(source: records.RecordSource, numbers: Sequence[int]) -> Iterator[Example]:
    """Yields the parsed records `numbers` of a source; raises `DataError` as `Example` does."""
    for number, record in zip(numbers, source.read_many(numbers), strict=True):
        yield Example(source, number, record)
