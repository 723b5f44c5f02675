"""Clean tiles of a split, and the cases in which they are degraded."""

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
    """One way of degrading: a single degradation, several as in training, or none.

    Attributes:
      name: A name of `DEGRADATIONS`, "mixed" or "clean".
      severity: Severity from 0 to 1; NaN for "mixed", where severities are drawn.
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
    """A clean tile with thumbnail and FOV circle; see `vae.data.pipeline.eval_batches`."""

    image: np.ndarray
    fov: np.ndarray
    thumbnail: np.ndarray
    fov_circle: np.ndarray
    tile_id: str
    photograph: str
    patient: str
    label: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """Pictures of one tile for display: uint8 [S, S, 3] each.

    Attributes:
      caption: Plain text.
      before: The degraded tile.
      after: The enhanced tile.
      clean: The clean tile.
    """

    caption: str
    before: np.ndarray
    after: np.ndarray
    clean: np.ndarray


def pick_tiles(dataset: Dataset, split: str, *, size: int, count: int, seed: int) -> list[Tile]:
    """Picks equally many tiles of every patient, the same for the same seed.

    Args:
      dataset: A dataset with thumbnails.
      split: Name of the split.
      size: Side of the tiles, pixels.
      count: Approximate number of tiles; at least one of each patient is returned.
      seed: Seed of the choice.

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
    """Degrades a tile and its thumbnail, equally for the same seed.

    All tiles of a photograph are degraded equally. The case "mixed" draws severities per photograph
    as in training, by the defaults of `config.degrade` with the shares `clean` and `alone` set
    to 0.

    Returns:
      Tile, uint8 [S, S, 3], and thumbnail, uint8 [THUMBNAIL, THUMBNAIL, 3].
    """
    key = jax.random.key(_number(f"{seed}:{tile.photograph}") % 2**32)
    mixed = case.name == MIXED
    severities = np.array([case.severity * (case.name == name) for name in DEGRADATIONS])
    origin = np.array([_number(f"{tile.tile_id}:{axis}") % 4096 for axis in "yx"], np.int32)
    severities = np.nan_to_num(severities).astype(np.float32)
    made = _degrade(tile.image, tile.thumbnail, tile.fov_circle, severities, mixed, key, origin)
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
