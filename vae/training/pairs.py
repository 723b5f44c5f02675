"""Training pairs of enhancement, made on the device: what a camera saw, and what it should have."""

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data.views import MARGIN, VIEW
from vae.metrics import to_float
from vae.training.augment import augment_placed
from vae.training.degradations import DEGRADATIONS, REACH, WHOLE, Place, degrade


@flax.struct.dataclass
class Pairs:
    """Examples of a batch, values in [-1, 1].

    Attributes:
      clean: float32 [B, S, S, 3], the target.
      seen: float32 [B, S, S, 3], the same degraded.
      view: float32 [B, VIEW, VIEW, 3], the photograph's view degraded likewise.
      place: float32 [B, 3]: row and column of the centre of the field of view in pixels of the
        example, and its radius.
    """

    clean: jax.Array
    seen: jax.Array
    view: jax.Array
    place: jax.Array


def draw_severities(key: jax.Array, settings: ConfigDict) -> dict[str, jax.Array]:
    """The severity of every degradation of one photograph, [] each, 0 for those it is spared.

    Args:
      key: Of the photograph.
      settings: `config.degrade`.
    """
    clean_key, which_key, how_key = jax.random.split(key, 3)
    spared = jax.random.bernoulli(clean_key, settings.clean)
    present = jax.random.bernoulli(which_key, settings.probability, (len(DEGRADATIONS),))
    severities = jnp.where(present & ~spared, jax.random.uniform(how_key, present.shape), 0.0)
    return {
        name: settings[name] * severities[i]
        for i, name in enumerate(DEGRADATIONS)
        if settings[name] > 0
    }


def degrade_tile(
    tile: jax.Array,
    view: jax.Array,
    place: jax.Array,
    severities: dict[str, jax.Array | float],
    key: jax.Array,
    origin: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """A tile and its photograph's view as one bad camera would have seen both.

    Args:
      tile: uint8 [H, W, 3].
      view: uint8 [VIEW, VIEW, 3].
      place: float32 [3]: row and column of the centre of the field of view in pixels of the tile,
        and its radius.
      severities: By name of degradation, [] in [0, 1].
      key: Of the photograph.
      origin: int32 [2], the tile's first row and column in the photograph: where grain and blocks
        lie.

    Returns:
      (tile, view), float32 in [0, 1], in steps of 1/255 as files are.
    """
    y, x, radius = place
    there = Place(origin[0], origin[1], y + origin[0], x + origin[1], radius)
    v, u = there.grid(tile.shape)
    seen = degrade(tile / jnp.float32(255), v**2 + u**2 <= 1, there, severities, key)
    middle, small = jnp.float32((VIEW - 1) / 2), jnp.float32(VIEW / 2 / MARGIN)
    zero = jnp.zeros((), jnp.int32)
    whole = Place(zero, zero, middle, middle, small, step=radius / small)
    v, u = whole.grid(view.shape)
    shown = {name: severity for name, severity in severities.items() if name in WHOLE}
    view = degrade(view / jnp.float32(255), v**2 + u**2 <= 1, whole, shown, key)
    return jnp.round(seen * 255) / 255, jnp.round(view * 255) / 255


def make_pairs(
    images: jax.Array,
    views: jax.Array,
    places: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    config: ConfigDict,
) -> Pairs:
    """Crops, shrinks, turns and degrades each tile of a batch by its own draw.

    Args:
      images: uint8 [B, S, S, 3], clean tiles.
      views: uint8 [B, VIEW, VIEW, 3], of their photographs.
      places: float32 [B, 3], see `Pairs`, in pixels of the tiles.
      key: The step's key for this duty.
      rows: int32 [B], the place of each tile in the global batch.
      config: A run's: `data.crop`, `data.augment`, `data.scales` and `degrade`.
    """
    data = config.data
    cut_key, degrade_key = jax.random.split(key)
    # What blurs carry in from beyond the border is there, where the tiles are large enough.
    wide = (data.crop + 2 * REACH) * max(data.scales) <= data.size
    border = REACH if wide else 0
    side = data.crop + 2 * border
    inside = slice(border, side - border)
    images, cuts = augment_placed(images, cut_key, rows, side, data.augment, data.scales)

    def one(image, cut, view, place, row):
        draw_key, origin_key, photograph_key = jax.random.split(
            jax.random.fold_in(degrade_key, row), 3
        )
        place = cut.place(place, side)
        origin = jax.random.randint(origin_key, (2,), 0, 2**12)  # any phase of the block grids
        severities = draw_severities(draw_key, config.degrade)
        seen, view = degrade_tile(image, cut.turn(view), place, severities, photograph_key, origin)
        place -= border * jnp.array([1.0, 1.0, 0.0])
        clean = to_float(image[inside, inside])
        return Pairs(clean, 2 * seen[inside, inside] - 1, 2 * view - 1, place)

    return jax.vmap(one)(images, cuts, views, places, rows)
