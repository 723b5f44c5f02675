"""The tfds dataset `fundus_tiles`: directories of tiles -> sharded records."""

from typing import Any

NAME = "fundus_tiles"
VERSION = "1.0.0"  # Of the examples; the reader refuses another one.


def __getattr__(name: str) -> Any:
    # Readers of a dataset need the names above and not what builds it.
    if name == "build":
        from data.fundus_tiles.build import build

        return build
    if name == "FundusTiles":
        from data.fundus_tiles.builder import FundusTiles

        return FundusTiles
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
