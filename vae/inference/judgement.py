"""Judgement of a photograph: the defects that the enhancer found, from what its stages changed."""

import dataclasses

import numpy as np

from vae.data.fov import FieldOfView, fov_mask
from vae.data.thumbnails import MARGIN
from vae.inference.compare import compare
from vae.inference.one_colour import NOTE, is_one_colour
from vae.models.tone import GRID

# Least share of the pixels with R > G > B, up to 8 grey levels, in a photograph of the kind that
# the enhancer knows. It is at least 0.65 in 145 photographs of five cameras, reduced to 700 pixels.
ORDERED = 0.5
# Least change of a stage that counts as a defect: ratio of the mean brightness, logarithm of the
# gain (standard deviation over the photograph), offset and changes in grey levels.
DIM, UNEVEN, HAZE = 1.12, 0.08, 4.0
BLUR, GRAIN = 0.8, 0.8
# Block edges in the change of the detail stage, relative to the other pixels.
BLOCKS = 1.4


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The judgement of a photograph.

    Attributes:
      reasons: Names of the defects that were found, the largest part of the image first; empty for
        a good photograph.
      refusal: The reason why nothing was changed, or "".
      quality: SSIM of the photograph to the enhanced one inside the field of view: 1 where nothing
        is to be improved. NaN if nothing was tried.
      measures: The numbers behind the reasons.
    """

    reasons: tuple[str, ...]
    refusal: str = ""
    quality: float = float("nan")
    measures: dict[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.refusal or ", ".join(self.reasons) or "good"


def refusal(photograph: np.ndarray, fov: FieldOfView) -> Judgement | None:
    """Returns a judgement if the photograph is of a kind that the enhancer does not know.

    Args:
      photograph: uint8 [H, W, 3].
      fov: Its field of view; if it is unknown, the lit region is used.
    """
    if is_one_colour(photograph, fov):
        return Judgement((), NOTE)
    red, green, blue = photograph[fov_mask(fov, photograph)].T.astype(np.int16)
    ordered = np.mean((red + 8 > green) & (green + 8 > blue)) if len(red) else 0.0
    if ordered < ORDERED:
        return Judgement((), f"colours unlike a fundus photograph's ({ordered:.0%} of the pixels "
                         "have R > G > B): left as it is")  # fmt: skip
    return None


def judge(
    photograph: np.ndarray,
    coefficients: np.ndarray,
    toned: np.ndarray,
    sharp: np.ndarray,
    made: np.ndarray,
    enhanced: np.ndarray,
    inside: np.ndarray,
) -> Judgement:
    """Judges a photograph by what the stages changed.

    Args:
      photograph: uint8 [H, W, 3].
      coefficients: float32 [GRID, GRID, 2], of the tone stage.
      toned: float32 [H, W, 3] in [-1, 1], output of the tone stage.
      sharp: float32 [H, W, 3], output of the sharpening stage.
      made: float32 [H, W, 3], output of the detail stage.
      enhanced: uint8 [H, W, 3], the result at strength 1.
      inside: bool [H, W], the field of view.
    """
    if not inside.any():
        return Judgement(())
    across = (2 * (np.arange(GRID) + 0.5) / GRID - 1) * MARGIN
    cells = np.hypot(across[:, None], across) < 1
    gain, offset = coefficients[cells].T
    levels = 127.5 * (toned[inside] + 1)
    measures = {
        "brightness": float(levels.mean() / max(photograph[inside].mean(), 1)),
        "gain_spread": float(gain.std()),
        "offset": float(255 * offset.mean()),
        "sharpened": _rms(sharp[inside] - toned[inside]),
        "cleaned": _rms(made[inside] - sharp[inside]),
        "blocks": _blocks(made - sharp, inside),
    }
    grainy = measures["cleaned"] > GRAIN
    found = {
        "dim": measures["brightness"] > DIM,
        "bright": measures["brightness"] < 1 / DIM,
        "hazy": measures["offset"] > HAZE,
        "uneven": measures["gain_spread"] > UNEVEN,
        "blurred": measures["sharpened"] > BLUR,
        "noisy": grainy and measures["blocks"] < BLOCKS,
        "coded": grainy and measures["blocks"] >= BLOCKS,
    }
    quality, _ = compare(photograph, enhanced, inside)
    return Judgement(
        tuple(name for name, there in found.items() if there),
        quality=float(quality),
        measures=measures,
    )


def _rms(change: np.ndarray) -> float:
    return float(127.5 * np.sqrt(np.mean(np.square(change, dtype=np.float64))))


def _blocks(change: np.ndarray, inside: np.ndarray) -> float:
    """Returns how much larger steps at edges of 8 x 8 blocks are than other steps, at the phase
    where they are largest; the mean over rows and columns. About 1 without blocks."""
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(change[..., 1], axis=axis))
        there = inside.take(range(1, inside.shape[axis]), axis) & inside.take(
            range(inside.shape[axis] - 1), axis
        )
        total = np.where(there, steps, 0).sum(axis=1 - axis)
        count = there.sum(axis=1 - axis)
        means = [total[k::8].sum() / max(count[k::8].sum(), 1) for k in range(8)]
        others = (sum(means) - max(means)) / 7
        ratios.append(max(means) / max(others, 1e-9))
    return float(np.mean(ratios))
