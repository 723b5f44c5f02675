"""Pictures of tiles next to their reconstructions."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image, ImageDraw, ImageFont

from vae.evaluation.evaluate import Evaluation
from vae.evaluation.scoring import reconstruct_step
from vae.evaluation.split import Split
from vae.sharding import put_batch

DIFFERENCE_GAIN = 10
_COLUMNS = ("original", "reconstruction", f"{DIFFERENCE_GAIN} x difference")
_MIN_SIDE = 192  # Smaller tiles are enlarged by a whole factor, by nearest neighbour.
_MARGIN = 8
_TEXT = 14


@dataclasses.dataclass(frozen=True)
class Example:
    """A tile to show: its position in the split and its caption."""

    row: int
    caption: str


def pick_examples(evaluation: Evaluation, count: int = 5) -> list[Example]:
    """Picks tiles spread evenly over the ranking by SSIM, from the worst to the best.

    An odd count includes the median.
    """
    ssim = evaluation.tiles["ssim"]
    ranking = np.argsort(ssim, kind="stable")[: int(np.isfinite(ssim).sum())]
    count = min(count, len(ranking))
    places = np.round(np.linspace(0, len(ranking) - 1, count)).astype(int)
    examples = []
    for place in dict.fromkeys(places.tolist()):
        row = int(ranking[place])
        examples.append(
            Example(
                row,
                f"{_rank(place, len(ranking))}  {evaluation.tiles['tile_id'][row]}  "
                f"SSIM {ssim[row]:.4f}  {evaluation.tiles['psnr'][row]:.1f} dB",
            )
        )
    return examples


def reconstruct_examples(
    module: nn.Module, variables: Any, split: Split, examples: list[Example], *, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Fetches the examples' tiles and reconstructs them from the posterior mean.

    Args:
      module: A module with the methods `encode` and `decode`.
      variables: Variables of the module, on the mesh.
      split: The split that was evaluated; read up to the last example.
      examples: At least one. All processes of the mesh call together, with the same examples.
      mesh: Mesh with the axes data and fsdp.

    Returns:
      Originals and reconstructions, uint8 [len(examples), H, W, 3], on every process.
    """
    wanted = {example.row: place for place, example in enumerate(examples)}
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    first_row = 0
    for batch in split():
        images = put_batch(mesh, {"image": batch["image"]})["image"]
        here = [row for row in wanted if 0 <= row - first_row < len(images)]
        if here:
            step = reconstruct_step(module, mesh)
            originals, outputs = jax.device_get(step(variables, images))
            for row in here:
                found[wanted[row]] = (originals[row - first_row], outputs[row - first_row])
        first_row += len(images)
        if len(found) == len(wanted):
            break
    pairs = [found[place] for place in range(len(examples))]
    return np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])


def reconstruction_figure(
    originals: np.ndarray, reconstructions: np.ndarray, captions: list[str] | None = None
) -> np.ndarray:
    """Draws one row per tile: original, reconstruction and tenfold absolute difference.

    Args:
      originals: uint8 [K, H, W, 3].
      reconstructions: uint8 [K, H, W, 3].
      captions: One line above each row; None for no captions.

    Returns:
      uint8 [height, width, 3]; pixels of the tiles are not interpolated.
    """
    difference = np.abs(originals.astype(np.int16) - reconstructions)
    difference = np.minimum(DIFFERENCE_GAIN * difference, 255).astype(np.uint8)
    zoom = -(-_MIN_SIDE // min(originals.shape[1:3]))
    height, width = (zoom * side for side in originals.shape[1:3])
    line = _TEXT + _MARGIN
    row_height = height + _MARGIN + (line if captions else 0)
    canvas = Image.new(
        "RGB",
        (3 * width + 4 * _MARGIN, line + _MARGIN + len(originals) * row_height),
        "white",
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT)
    for column, title in enumerate(_COLUMNS):
        draw.text((_MARGIN + column * (width + _MARGIN), _MARGIN), title, "black", font)
    for row, tiles in enumerate(zip(originals, reconstructions, difference, strict=True)):
        top = line + _MARGIN + row * row_height
        if captions:
            draw.text((_MARGIN, top), _shorten(captions[row], canvas.width, font), "black", font)
            top += line
        for column, tile in enumerate(tiles):
            enlarged = Image.fromarray(tile).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (_MARGIN + column * (width + _MARGIN), top))
    return np.asarray(canvas)


def _rank(place: int, count: int) -> str:
    if count == 1:
        return "only tile"
    names = {count // 2: "median", (count - 1) // 2: "median", 0: "worst", count - 1: "best"}
    return names.get(place, f"{place + 1} of {count}")


def _shorten(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Cuts the middle out of a caption that is too long; its end holds the metrics."""
    if font.getlength(text) <= width - 2 * _MARGIN:
        return text
    half = len(text) // 2
    while half > 1 and font.getlength(f"{text[:half]}…{text[-half:]}") > width - 2 * _MARGIN:
        half -= 1
    return f"{text[:half]}…{text[-half:]}"
