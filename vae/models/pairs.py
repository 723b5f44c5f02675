"""Training pairs for enhancement, made on the device: degraded input and clean target."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae.metrics import to_float
from vae.models.augment import CropAndTurn, augment_placed
from vae.models.cameras import CHANGES, simulate_cameras
from vae.models.degradations import BLURS, DEGRADATIONS, REACH, WHOLE, FovGeometry, degrade
from vae.models.tone import THUMBNAIL_CIRCLE, WITHIN
from vae.precision import HIGHEST


@flax.struct.dataclass
class Pairs:
    """Examples of a batch, values in [-1, 1].

    Attributes:
      clean: float32 [B, S, S, 3], the target.
      degraded: float32 [B, S, S, 3], the degraded input.
      thumbnail: float32 [B, THUMBNAIL, THUMBNAIL, 3], the thumbnail with the same degradations.
      circle: float32 [B, 3], FOV circle in pixels of the example: row and column of its centre,
        radius.
    """

    clean: jax.Array
    degraded: jax.Array
    thumbnail: jax.Array
    circle: jax.Array


def draw_severities(key: jax.Array, settings: ConfigDict) -> dict[str, jax.Array]:
    """Draws the severity of every degradation for one photograph: [] each, 0 if not applied.

    Args:
      key: Random key of the photograph.
      settings: `config.degrade`.
    """
    clean_key, which_key, how_key = jax.random.split(key, 3)
    alone_key, one_key = jax.random.split(jax.random.fold_in(key, 1))
    names = [name for name in DEGRADATIONS if settings[name] > 0]
    spared = jax.random.bernoulli(clean_key, settings.clean)
    present = jax.random.bernoulli(which_key, settings.probability, (len(names),))
    alone = jax.random.bernoulli(alone_key, settings.alone)
    one = jax.random.randint(one_key, (), 0, max(len(names), 1)) == jnp.arange(len(names))
    present = jnp.where(alone, one, present)
    severities = jnp.where(present & ~spared, jax.random.uniform(how_key, present.shape), 0.0)
    return {name: settings[name] * severities[i] for i, name in enumerate(names)}


def degrade_tile(
    tile: jax.Array,
    thumbnail: jax.Array,
    circle: jax.Array,
    severities: dict[str, jax.Array | float],
    key: jax.Array,
    origin: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Applies the same degradations to a tile and to its photograph's thumbnail.

    Args:
      tile: [H, W, 3], grey levels 0 to 255.
      thumbnail: [THUMBNAIL, THUMBNAIL, 3], grey levels 0 to 255.
      circle: float32 [3], FOV circle in pixels of the tile: row and column of its centre, radius.
      severities: Name of a degradation -> [] in [0, 1].
      key: Random key of the photograph.
      origin: int32 [2], the tile's first row and column in the photograph; sets the position of
        grain and blocks.

    Returns:
      (tile, thumbnail), float32 in [0, 1], rounded to multiples of 1/255 like 8-bit files.
    """
    y, x, radius = circle
    there = FovGeometry(origin[0], origin[1], y + origin[0], x + origin[1], radius)
    degraded = degrade(tile / jnp.float32(255), _inside(tile, there), there, severities, key)
    thumbnail = _degrade_thumbnail(thumbnail, radius, severities, key)
    return jnp.round(degraded * 255) / 255, thumbnail


def _degrade_thumbnail(thumbnail, radius, severities, key):
    """Degrades a thumbnail; `radius` is in pixels of the photograph. Returns float32 in [0, 1]."""
    zero = jnp.zeros((), jnp.int32)
    whole = FovGeometry(zero, zero, *THUMBNAIL_CIRCLE, step=radius / THUMBNAIL_CIRCLE[2])
    inside = _inside(thumbnail, whole)
    shown = {name: severity for name, severity in severities.items() if name in WHOLE}
    thumbnail = degrade(thumbnail / jnp.float32(255), inside, whole, shown, key)
    return jnp.round(thumbnail * 255) / 255


def _inside(image: jax.Array, place: FovGeometry) -> jax.Array:
    """Marks the field of view: the FOV circle without what bars or the frame cut off, bool [H, W].

    What is cut off is black in the thumbnail and in the tile. With haze on it, the tone stage would
    recognise haze by these parts, which have none in a photograph.
    """
    v, u = place.grid(image.shape[:2])
    return (v**2 + u**2 <= 1) & (image.max(axis=-1) > 0)


def make_thumbnail_pairs(
    thumbnails: jax.Array, circles: jax.Array, key: jax.Array, rows: jax.Array, config: ConfigDict
) -> Pairs:
    """Makes pairs of thumbnails, `config.train.thumbnail_draws` of each, to train the tone stage.

    Args:
      thumbnails: uint8 [B, THUMBNAIL, THUMBNAIL, 3].
      circles: float32 [B, 3], FOV circles of tiles of their photographs.
      key: Random key for augmentation at this step.
      rows: int32 [B], index of each thumbnail in the global batch.
      config: Config of the run; `train.thumbnail_draws`, `data.augment`, `cameras` and `degrade`
        are used.

    Returns:
      `config.train.thumbnail_draws` times B pairs of THUMBNAIL pixels a side. Pixels outside
      `WITHIN` are the same in input and target.
    """
    draws = config.train.thumbnail_draws
    thumbnails, circles, rows = (jnp.repeat(x, draws, axis=0) for x in (thumbnails, circles, rows))
    rows = draws * rows + jnp.tile(jnp.arange(draws), len(rows) // draws)
    camera_key, key = jax.random.split(key)
    thumbnails = _thumbnails_by_cameras(thumbnails, camera_key, rows, config)

    def one(thumbnail, circle, row):
        key_of_row = jax.random.fold_in(key, row)
        turn_key, draw_key, photograph_key = jax.random.split(key_of_row, 3)
        if config.data.augment:
            thumbnail = _turn(_drawn(CropAndTurn(*jnp.zeros(6, jnp.int32)), turn_key), thumbnail)
        severities = draw_severities(draw_key, config.degrade)
        degraded = 2 * _degrade_thumbnail(thumbnail, circle[2], severities, photograph_key) - 1
        clean = jnp.where(WITHIN, to_float(thumbnail), degraded)
        return Pairs(clean, degraded, degraded, jnp.array(THUMBNAIL_CIRCLE, jnp.float32))

    return jax.vmap(one)(thumbnails, circles, rows)


def make_pairs(
    images: jax.Array,
    thumbnails: jax.Array,
    circles: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    config: ConfigDict,
) -> Pairs:
    """Crops, reduces, turns and degrades each tile of a batch with its own random draw.

    Args:
      images: uint8 [B, S, S, 3], clean tiles.
      thumbnails: uint8 [B, THUMBNAIL, THUMBNAIL, 3], of their photographs.
      circles: float32 [B, 3], FOV circles in pixels of the tiles, see `Pairs`.
      key: Random key for augmentation at this step.
      rows: int32 [B], index of each tile in the global batch.
      config: Config of the run; `data.crop`, `data.augment`, `data.scales`, `cameras`, `degrade`
        and `train.stage` are used. With "sharpening" the targets keep the input's grain and blocks.
    """
    data = config.data
    crop_key, degrade_key, camera_key = jax.random.split(key, 3)
    # If the tile is large enough, blurs get real pixels from beyond the border of the crop.
    wide = (data.crop + 2 * REACH) * max(data.scales) <= data.size
    border = REACH if wide else 0
    side = data.crop + 2 * border
    inside = slice(border, side - border)
    images, crops = augment_placed(images, crop_key, rows, side, False, data.scales)
    images = simulate_cameras(images, camera_key, rows, config.cameras)
    thumbnails = _thumbnails_by_cameras(thumbnails, camera_key, rows, config)

    def one(image, crop, thumbnail, circle, row):
        draw_key, origin_key, photograph_key, turn_key = jax.random.split(
            jax.random.fold_in(degrade_key, row), 4
        )
        origin = jax.random.randint(origin_key, (2,), 0, 2**12)  # any phase of the block grids
        severities = draw_severities(draw_key, config.degrade)
        if data.augment:
            crop = _drawn(crop, turn_key)
        circle = crop.circle(circle, side)
        image, thumbnail = _turn(crop, image), _turn(crop, thumbnail)
        bad = functools.partial(degrade_tile, image, thumbnail, circle)
        degraded, thumbnail = bad(severities, photograph_key, origin)
        clean = to_float(image)
        if config.train.stage == "sharpening":
            # The target keeps every degradation other than blur.
            blurs = {name: severities[name] for name in BLURS if name in severities}
            clean += 2 * (degraded - bad(blurs, photograph_key, origin)[0])
        clean = clean[inside, inside]
        circle -= border * jnp.array([1.0, 1.0, 0.0])
        return Pairs(clean, 2 * degraded[inside, inside] - 1, 2 * thumbnail - 1, circle)

    return jax.vmap(one)(images, crops, thumbnails, circles, rows)


def _thumbnails_by_cameras(thumbnails, key, rows, config):
    """Gives thumbnails the colours that `simulate_cameras` gives tiles of the same key and row."""
    strengths = {name: config.cameras[name] if name == "colour" else 0.0 for name in CHANGES}
    return simulate_cameras(thumbnails, key, rows, strengths)


def _drawn(crop: CropAndTurn, key: jax.Array) -> CropAndTurn:
    """Replaces the symmetry by a random one of the eight symmetries of the square."""
    transpose, flip_y, flip_x = jax.random.bernoulli(key, shape=(3,))
    return crop.replace(transpose=transpose, flip_y=flip_y, flip_x=flip_x)


def _turn(crop: CropAndTurn, image: jax.Array) -> jax.Array:
    """Computes `CropAndTurn.turn` of [S, S, 3] by matrix products: float32 with the same values.

    XLA on CPUs fuses selections between turned images into their consumers. Fused into the powers
    of `degrade`, the eight selections per pixel took ten times as long as the powers.
    """
    image = jnp.where(crop.transpose, image.swapaxes(0, 1), image).astype(jnp.float32)
    rows, columns = (
        jnp.where(flip, jnp.eye(len(image))[::-1], jnp.eye(len(image)))
        for flip in (crop.flip_y, crop.flip_x)
    )
    image = jnp.einsum("yv,vuc->yuc", rows, image, precision=HIGHEST)
    return jnp.einsum("xu,yuc->yxc", columns, image, precision=HIGHEST)
