"""Clean tiles of a split, and every way in which they are made bad."""

import dataclasses
import functools
import hashlib
import heapq
import math

import jax
import jax.numpy as jnp
import numpy as np

from vae.configs.enhance256 import get_config
from vae.data.errors import DataError
from vae.data.pipeline import Dataset, eval_batches
from vae.models.degradations import DEGRADATIONS
from vae.models.pairs import degrade_tile, draw_severities

SEVERITIES = (1 / 3, 2 / 3, 1.0)
CLEAN, MIXED = "clean", "mixed"


@dataclasses.dataclass(frozen=True)
class Case:
    """One way of degrading: a degradation alone, several as in training, or none.

    Attributes:
      name: Of `DEGRADATIONS`, "mixed" or "clean".
      severity: Between 0 and 1; NaN where several are drawn.
    """

    name: str
    severity: float


CASES = (
    Case(CLEAN, 0.0),
    Case(MIXED, math.nan),
    *(Case(name, severity) for name in DEGRADATIONS for severity in SEVERITIES),
)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A clean tile with its photograph around it; see `vae.data.pipeline.eval_batches`."""

    image: np.ndarray
    fov: np.ndarray
    thumbnail: np.ndarray
    circle: np.ndarray
    tile_id: str
    photograph: str
    patient: str
    label: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """A tile to look at: uint8 [S, S, 3] each.

    Attributes:
      caption: Plain text.
      before: Degraded.
      after: What the model makes of it.
      clean: The tile itself.
    """

    caption: str
    before: np.ndarray
    after: np.ndarray
    clean: np.ndarray


def pick_tiles(dataset: Dataset, split: str, *, size: int, count: int, seed: int) -> list[Tile]:
    """Tiles of every patient alike, the same for the same seed.

    Args:
      dataset: With thumbnails.
      split: Which split.
      size: Side of the tiles, pixels.
      count: About how many: a multiple of the number of patients, at least one of each.
      seed: Of the choice.

    Raises:
      DataError: The dataset has no thumbnails, or the split no tiles.
    """
    found: dict[str, list] = {}
    quota = count
    for batch in eval_batches(dataset, split, size=size, seed=seed, batch_size=64, context=True):
        for row in np.flatnonzero(batch["valid"]):
            tile = Tile(**{f.name: batch[f.name][row] for f in dataclasses.fields(Tile)})
            rank = -_number(f"{seed}:{tile.tile_id}")
            heap = found.setdefault(str(tile.patient), [])
            push = heapq.heappush if len(heap) < quota else heapq.heappushpop
            push(heap, (rank, tile.tile_id, tile))
    if not found:
        raise DataError(f"{dataset.path}: split {split!r} has no tiles")
    quota = max(1, count // len(found))
    return [
        tile
        for patient in sorted(found)
        for _, _, tile in sorted(found[patient], key=lambda entry: -entry[0])[:quota]
    ]


def degrade_case(tile: Tile, case: Case, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A tile and its thumbnail as a bad camera saw them, the same for the same seed.

    Tiles of one photograph are degraded alike; what is mixed is drawn for each photograph as in
    training by the defaults of `config.degrade`, of which the shares that are clean and that have
    one degradation alone are 0.

    Returns:
      uint8 [S, S, 3] and uint8 [THUMBNAIL, THUMBNAIL, 3].
    """
    key = jax.random.key(_number(f"{seed}:{tile.photograph}") % 2**32)
    mixed = case.name == MIXED
    severities = np.array([case.severity * (case.name == name) for name in DEGRADATIONS])
    origin = np.array([_number(f"{tile.tile_id}:{axis}") % 4096 for axis in "yx"], np.int32)
    severities = np.nan_to_num(severities).astype(np.float32)
    made = _degrade(tile.image, tile.thumbnail, tile.circle, severities, mixed, key, origin)
    return tuple(np.rint(np.asarray(picture) * 255).astype(np.uint8) for picture in made)


@functools.cache
def _settings():
    settings = get_config().degrade
    settings.clean = settings.alone = 0.0
    return settings


@jax.jit
def _degrade(image, thumbnail, circle, severities, mixed, key, origin):
    which, how = jax.random.split(key)
    drawn = draw_severities(which, _settings())
    severities = {
        name: jnp.where(mixed, drawn[name], severities[i]) for i, name in enumerate(DEGRADATIONS)
    }
    return degrade_tile(image, thumbnail, circle, severities, how, origin)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
