"""Pictures of the report page: choice of the examples, and images as data URIs."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vae.evaluation.evaluate import Evaluation
from vae.evaluation.photographs import PhotographEvaluation
from vae.evaluation.tile_pictures import Example

# Factors of the difference maps; the largest factor that does not saturate is taken.
GAINS = (1, 2, 5, 10, 20, 50)
RANKS = ("worst", "median", "best")
# Larger tiles are cropped to their centre: the page is one file, and lossless pictures are large.
MAX_SIDE = 512
# Up to this side, several tiles are shown per rank.
SMALL_SIDE = 256
_JPEG_QUALITY = 90


@dataclasses.dataclass(frozen=True)
class RankedExample(Example):
    """A tile to show, with its rank, one of `RANKS`."""

    rank: str


def pick(evaluation: Evaluation) -> list[RankedExample]:
    """Picks the worst, median and best tiles by SSIM, up to three each, of different photographs.

    The neighbours of the worst tile are usually bad for the same reason and add no information.
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
    """Chooses the factor, one of `GAINS`, for absolute differences [h, w, 3] in grey levels."""
    high = float(np.percentile(np.concatenate([each.ravel() for each in differences]), 99.9))
    return max((gain for gain in GAINS if gain * high <= 255), default=GAINS[0])


def tile_views(original: np.ndarray, reconstruction: np.ndarray) -> list[np.ndarray]:
    """Returns both and their absolute difference, grey levels [h, w, 3], cropped to the centre."""
    height, width = original.shape[:2]
    h, w = min(height, MAX_SIDE), min(width, MAX_SIDE)
    y, x = (height - h) // 2, (width - w) // 2
    a, b = original[y : y + h, x : x + w], reconstruction[y : y + h, x : x + w]
    return [a, b, np.abs(a.astype(np.int16) - b)]


def pick_photographs(photographs: PhotographEvaluation) -> list[tuple[str, dict]]:
    """Picks the worst and the median photograph by SSIM among those with pictures: (rank, row)."""
    rows = [row for row in photographs.rows if row["photograph"] in photographs.pictures]
    rows.sort(key=lambda row: row["ssim"])
    if len(rows) < 2:
        return [("measured", row) for row in rows]
    return [("worst", rows[0]), ("best" if len(rows) == 2 else "median", rows[len(rows) // 2])]


def triple(views: Sequence[np.ndarray], gain: int) -> list[tuple[str, np.ndarray]]:
    """Returns names and pictures, uint8, of `tile_views`, with `gain` times the difference."""
    original, reconstruction, difference = views
    amplified = np.round(gain * difference.astype(np.float32)).clip(0, 255).astype(np.uint8)
    return [
        ("original", original),
        ("reconstruction", reconstruction),
        (f"difference × {gain}", amplified),
    ]


def data_uri(image: np.ndarray, lossless: bool) -> str:
    """Encodes uint8 [h, w, 3] as a data URI of a PNG (lossless) or of a JPEG."""
    file = io.BytesIO()
    if lossless:
        Image.fromarray(image).save(file, "PNG", optimize=True)
    else:
        Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
