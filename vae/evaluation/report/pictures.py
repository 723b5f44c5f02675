"""Pictures in the page: which tiles, and images as data URIs."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vae.evaluation.evaluate import Evaluation
from vae.evaluation.photographs import PhotographEvaluation
from vae.evaluation.tile_pictures import Example

# Factors of the difference maps: the largest that leaves the errors shown below white.
GAINS = (1, 2, 5, 10, 20, 50)
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
            caption=f"SSIM {ssim[row]:.4f}, {tiles['psnr'][row]:.1f} dB\n{tiles['tile_id'][row]}",
            rank=rank,
        )
        for rank in RANKS
        for row in chosen[rank]
    ]


def choose_gain(differences: Sequence[np.ndarray]) -> int:
    """How much to amplify absolute differences in grey levels, [h, w, 3] each: one of `GAINS`."""
    high = float(np.percentile(np.concatenate([each.ravel() for each in differences]), 99.9))
    return max((gain for gain in GAINS if gain * high <= 255), default=GAINS[0])


def tile_views(original: np.ndarray, reconstruction: np.ndarray) -> list[np.ndarray]:
    """Both and their difference [h, w, 3] in grey levels, of the centre of a large tile."""
    height, width = original.shape[:2]
    h, w = min(height, MAX_SIDE), min(width, MAX_SIDE)
    y, x = (height - h) // 2, (width - w) // 2
    a, b = original[y : y + h, x : x + w], reconstruction[y : y + h, x : x + w]
    return [a, b, np.abs(a.astype(np.int16) - b)]


def pick_photographs(photographs: PhotographEvaluation) -> list[tuple[str, dict]]:
    """Two photographs with pictures, the worst and the median by SSIM: (rank, its row) each."""
    rows = [row for row in photographs.rows if row["photograph"] in photographs.pictures]
    rows.sort(key=lambda row: row["ssim"])
    if len(rows) < 2:
        return [("measured", row) for row in rows]
    return [("worst", rows[0]), ("best" if len(rows) == 2 else "median", rows[len(rows) // 2])]


def triple(views: Sequence[np.ndarray], gain: int) -> list[tuple[str, np.ndarray]]:
    """Names and pictures of what `tile_views` gives, uint8, with `gain` times the difference."""
    original, reconstruction, difference = views
    amplified = np.round(gain * difference.astype(np.float32)).clip(0, 255).astype(np.uint8)
    return [
        ("original", original),
        ("reconstruction", reconstruction),
        (f"difference × {gain}", amplified),
    ]


def data_uri(image: np.ndarray, lossless: bool) -> str:
    """uint8 [h, w, 3] -> data URI of a PNG, or of a JPEG."""
    file = io.BytesIO()
    if lossless:
        Image.fromarray(image).save(file, "PNG", optimize=True)
    else:
        Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
