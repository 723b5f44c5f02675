"""README's picture of enhancement: a photograph degraded, enhanced, and in the original.

    python benchmarks/enhancement_figure.py [--model enhance] [--out docs/figures/enhancement.jpg]

The photograph is scikit-image's `retina` (CC0), from a camera that is in no training set here. Its
illumination, haze, blur and noise are computed (`vae.models.degradations`) with `SEVERITIES`.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from vae.data.files import write_beside
from vae.data.fov import find_fov
from vae.data.images import encode_image
from vae.data.thumbnails import centre_of
from vae.inference.enhance import load_enhancer
from vae.metrics import masked_psnr, masked_ssim
from vae.models.degradations import FovGeometry, degrade

SEVERITIES = {"haze": 0.6, "illumination": 0.5, "defocus": 0.3, "noise": 0.35}
SEED = 4
PANEL, GAP, TEXT = 330, 4, 15
# First row and column of the unscaled detail: the optic disc's rim and vessels.
DETAIL = (560, 420)


def main() -> None:
    """Draws the picture and prints its metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="enhance")
    parser.add_argument("--out", default="docs/figures/enhancement.jpg")
    options = parser.parse_args()

    clean = np.ascontiguousarray(data.retina())
    fov = find_fov(clean)
    inside = fov.mask(*clean.shape[:2])
    centre = map(jnp.float32, centre_of(fov, *clean.shape[:2]))
    place = FovGeometry(jnp.int32(0), jnp.int32(0), *centre)
    bad = degrade(clean / jnp.float32(255), inside, place, SEVERITIES, jax.random.key(SEED))
    before = np.asarray(jnp.round(bad * 255).astype(jnp.uint8))
    after = load_enhancer(options.model).enhance(before, fov)
    for name, image in (("degraded", before), ("enhanced", after)):
        psnr = float(masked_psnr(clean[None], image[None], inside[None])[0])
        floats = [one[None] / np.float32(255) for one in (clean, image)]
        ssim = float(masked_ssim(*floats, inside[None])[0])
        print(f"{name}: {psnr:.2f} dB, SSIM {ssim:.4f}")

    step = PANEL + GAP
    sheet = Image.new("RGB", (3 * step - GAP, 2 * step + 22), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    titles = ("degraded on purpose", "enhanced", "the original photograph")
    y, x = DETAIL
    for column, (title, image) in enumerate(zip(titles, (before, after, clean), strict=True)):
        draw.text((column * step + 2, 2), title, font=font, fill="black")
        whole = Image.fromarray(image).resize((PANEL, PANEL), Image.Resampling.BOX)
        sheet.paste(whole, (column * step, 22))
        detail = Image.fromarray(image[y : y + PANEL, x : x + PANEL])
        sheet.paste(detail, (column * step, 22 + step))
    write_beside(options.out, encode_image(np.asarray(sheet), ".jpg"))
    print(f"{options.out}: {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
