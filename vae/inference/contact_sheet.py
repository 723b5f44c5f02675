"""A contact sheet of one photograph under every degradation, to check the formulas by eye."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vae.data.errors import DataError
from vae.data.fov import find_fov, fov_mask
from vae.models.degradations import DEGRADATIONS, WHOLE, FovGeometry, degrade

SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
PANEL = 240
_LABEL, _TEXT = 120, 14


def contact_sheet(photograph: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draws one photograph with a row per degradation and a column for each of `SEVERITIES`.

    Pixels outside a known field of view are black, because dates and names are burned in there.

    Args:
      photograph: uint8 [H, W, 3], sides of at least `PANEL`.
      seed: Seed of all random draws.

    Returns:
      uint8 [h, w, 3].

    Raises:
      vae.data.errors.DataError: The photograph is smaller than a panel.
    """
    height, width = photograph.shape[:2]
    if min(height, width) < PANEL:
        raise DataError(f"expected sides of at least {PANEL} pixels, got {height} x {width}")
    fov = find_fov(photograph)
    centre = (fov.y, fov.x, fov.radius) if fov.known else (height / 2, width / 2, width / 2)
    mask, key = fov_mask(fov, photograph), jax.random.key(seed)
    if fov.known:
        photograph = np.where(mask[..., None], photograph, np.uint8(0))
    top = int(np.clip(centre[0] - PANEL / 2, 0, height - PANEL))
    left = int(np.clip(centre[1] - PANEL / 2, 0, width - PANEL))
    # Degradations in `WHOLE` are visible at low resolution and are drawn on a copy of panel size.
    scale = PANEL / max(height, width)
    side = [max(1, round(length * scale)) for length in (width, height)]
    small = np.asarray(Image.fromarray(photograph).resize(side, Image.Resampling.BOX))
    small_mask = np.asarray(Image.fromarray(mask).resize(side, Image.Resampling.NEAREST))
    whole = (small, small_mask, _place(0, 0, *(value * scale for value in centre), 1 / scale))
    window = np.s_[top : top + PANEL, left : left + PANEL]
    middle = (photograph[window], mask[window], _place(top, left, *centre))

    columns = PANEL + 4
    sheet = Image.new("RGB", (_LABEL + columns * len(SEVERITIES), 24 + columns * len(DEGRADATIONS)))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for column, severity in enumerate(SEVERITIES):
        draw.text((_LABEL + columns * column + 4, 4), f"severity {severity:g}", font=font)
    for row, name in enumerate(DEGRADATIONS):
        draw.text((6, 24 + columns * row + 6), name.replace("_", " "), font=font)
        # Degradations of the whole photograph are drawn on all of it, the others on its middle.
        image, inside, place = whole if name in WHOLE else middle

        @jax.jit
        def make(severity, name=name, image=image, inside=inside, place=place):
            made = degrade(image / jnp.float32(255), inside, place, {name: severity}, key)
            return jnp.round(made * 255).astype(jnp.uint8)

        for column, severity in enumerate(SEVERITIES):
            panel = Image.fromarray(np.asarray(make(severity)))
            sheet.paste(panel, (_LABEL + columns * column, 24 + columns * row))
    return np.asarray(sheet)


def _place(
    y: int, x: int, fov_y: float, fov_x: float, radius: float, step: float = 1.0
) -> FovGeometry:
    return FovGeometry(jnp.int32(y), jnp.int32(x), *map(jnp.float32, (fov_y, fov_x, radius, step)))
