"""Pictures in the page: which tiles, and images as data URIs."""

import base64
import dataclasses
import io
from html import escape

import numpy as np
from PIL import Image

from vae.evaluation.evaluate import Evaluation
from vae.evaluation.figures import DIFFERENCE_GAIN, Example
from vae.evaluation.photographs import PhotographEvaluation

VIEWS = ("original", "reconstruction", f"{DIFFERENCE_GAIN} × difference")
RANKS = ("worst", "median", "best")
# Larger tiles are shown by their centre: lossless pixels are heavy, and the page is one file.
MAX_SIDE = 512
# Up to this side there is room for several tiles of a rank.
SMALL_SIDE = 256
_JPEG_QUALITY = 90


@dataclasses.dataclass(frozen=True)
class RankedExample(Example):
    """A tile to show, and why: one of `RANKS`."""

    rank: str


def pick(evaluation: Evaluation) -> list[RankedExample]:
    """The worst, median and best tiles by SSIM, up to three of each, of different photographs.

    The neighbours of the worst tile are most likely bad for the same reason, and say no more.
    """
    ssim, photograph = evaluation.tiles["ssim"], evaluation.tiles["photograph"]
    ranking = np.argsort(ssim, kind="stable")[: int(np.isfinite(ssim).sum())]
    orders = {
        "worst": ranking,
        "best": ranking[::-1],
        "median": ranking[np.argsort(np.abs(np.arange(len(ranking)) - (len(ranking) - 1) // 2))],
    }
    count = 3 if max(evaluation.size) <= SMALL_SIDE else 1
    chosen, taken = {}, set()
    for rank, order in orders.items():
        shown: dict[str, int] = {}
        for row in order.tolist():
            if len(shown) < count and row not in taken and photograph[row] not in shown:
                shown[photograph[row]] = row
                taken.add(row)
        chosen[rank] = list(shown.values())
    tiles = evaluation.tiles
    return [
        RankedExample(
            row=row,
            caption=f"{tiles['tile_id'][row]}  SSIM {ssim[row]:.4f}  {tiles['psnr'][row]:.1f} dB",
            rank=rank,
        )
        for rank in RANKS
        for row in chosen[rank]
    ]


def tile_views(original: np.ndarray, reconstruction: np.ndarray) -> list[np.ndarray]:
    """The three views of a tile, uint8 [h, w, 3] each, of its centre where it is large."""
    height, width = original.shape[:2]
    h, w = min(height, MAX_SIDE), min(width, MAX_SIDE)
    y, x = (height - h) // 2, (width - w) // 2
    a, b = original[y : y + h, x : x + w], reconstruction[y : y + h, x : x + w]
    difference = np.minimum(DIFFERENCE_GAIN * np.abs(a.astype(np.int16) - b), 255)
    return [a, b, difference.astype(np.uint8)]


def pick_photographs(photographs: PhotographEvaluation) -> list[tuple[str, dict]]:
    """The rows of two photographs with pictures, the worst and the median by SSIM: (rank, row)."""
    rows = [row for row in photographs.rows if row["photograph"] in photographs.pictures]
    rows.sort(key=lambda row: row["ssim"])
    if len(rows) < 2:
        return [("measured", row) for row in rows]
    return [("worst", rows[0]), ("median", rows[len(rows) // 2])]


def triple(views: list[np.ndarray] | np.ndarray, caption: str, *, lossless: bool) -> str:
    """Three images in a row that open in the viewer.

    Args:
      views: uint8 [h, w, 3], as `VIEWS`.
      caption: HTML that goes below.
      lossless: PNG, or JPEG for pictures that are reduced anyway.
    """
    height, width = views[0].shape[:2]
    buttons = []
    for name, view in zip(VIEWS, views, strict=True):
        buttons.append(
            f'<button type="button" class="view" data-name="{escape(name)}">'
            f'<img src="{data_uri(view, lossless)}" width="{width}" height="{height}" '
            f'alt="{escape(name)}" loading="lazy"></button>'
        )
    return f'<figure class="triple"><div>{"".join(buttons)}</div>{caption}</figure>'


def data_uri(image: np.ndarray, lossless: bool) -> str:
    """uint8 [h, w, 3] -> data URI of a PNG, or of a JPEG."""
    file = io.BytesIO()
    if lossless:
        Image.fromarray(image).save(file, "PNG", optimize=True)
    else:
        Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
