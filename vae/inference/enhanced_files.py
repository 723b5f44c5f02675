"""Enhanced photographs as files: results, comparisons, maps of changes, and a table."""

import csv
import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from vae.data.failures import Failure, failure_of
from vae.data.inputs import Inputs, Item
from vae.inference import enhanced_page, pictures
from vae.inference.enhance import EnhancementModel
from vae.inference.judgement import Judgement
from vae.inference.reconstruct import file_name, without_repeats, write_in_order, write_picture

ENHANCED, COMPARISONS, CHANGES = "enhanced", "comparisons", "changes"
TABLE = "enhanced.csv"
# The table counts pixels that changed by more than this number of grey levels.
CHANGED = 5


@dataclasses.dataclass(frozen=True)
class Enhancement:
    """A photograph and its enhancement.

    Attributes:
      item: The input as it was read.
      image: uint8 [H, W, 3], black outside a known field of view.
      output: uint8 [H, W, 3], the enhanced image.
      judgement: The quality of the photograph, and the reasons for what was changed.
    """

    item: Item
    image: np.ndarray
    output: np.ndarray
    judgement: Judgement


def enhance_inputs(
    model: EnhancementModel,
    inputs: Inputs,
    *,
    strength: float = 1.0,
    colour: str = "keep",
    without: Collection[str] = frozenset(),
) -> Iterator[Enhancement | Failure]:
    """Enhances photographs one after another.

    Args:
      model: The enhancer.
      inputs: Photographs.
      strength: Between 0 and 1.
      colour: "keep" or "correct"; see `EnhancementModel.enhanced`.
      without: Ids of photographs to skip.

    Yields:
      An enhancement for each photograph, or a failure in its place; a failure for each tile.
    """
    for item in inputs.read(without=without):
        if isinstance(item, Failure):
            yield item
        elif item.photograph not in ("", item.item_id):
            yield Failure(
                item.item_id,
                item.path,
                f"{item.path}: {item.item_id} is a tile; enhancement needs the light and haze of "
                "the whole photograph: give the photograph that it was cut from",
            )
        else:
            try:
                result = _enhance(model, item, strength, colour)
            except Exception as error:
                result = failure_of(item.item_id, item.path, error)
            yield result


def finished(
    out: str | os.PathLike, origin: Mapping[str, str], suffix: str
) -> list[dict[str, str]]:
    """Returns the table rows that an interrupted run of the same command has written.

    Args:
      out: Folder of the results.
      origin: Provenance of this run; rows of another command or model do not count.
      suffix: Suffix of the enhanced pictures. A picture that is missing or older than its
        photograph is made again.
    """
    out = Path(out)
    try:
        with (out / TABLE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []

    def done(row: dict[str, str]) -> bool:
        if any(row.get(name) != value for name, value in origin.items()):
            return False
        try:
            made = (out / ENHANCED / f"{row['id']}{suffix}").stat().st_mtime
            return os.stat(row["path"]).st_mtime < made
        except (OSError, KeyError, ValueError):
            return False

    return [row for row in rows if done(row)]


def _enhance(model: EnhancementModel, item: Item, strength: float, colour: str) -> Enhancement:
    image = item.inside()
    made = model.enhanced(image, item.fov, strength=strength, colour=colour)
    return Enhancement(item, image, item.inside(made.image), made.judgement)


def write_enhancements(
    results: Iterator[Enhancement | Failure],
    out: str | os.PathLike,
    *,
    origin: Mapping[str, str],
    suffix: str = ".png",
    levels: float = 50.0,
) -> Iterator[dict[str, str | int | float] | Failure]:
    """Writes each result, a comparison and a map of changes; each file whole or not at all.

    Args:
      results: From `enhance_inputs`.
      out: Folder for `enhanced/<id>.png`, `comparisons/<id>.png`, `changes/<id>.png` and the
        reduced pictures `previews/<id>_before.jpg` and `_after.jpg` of the page.
      origin: Provenance, and `strength` and `colour` that the results were made with; stored in the
        files and in the rows of the table.
      suffix: ".png" or ".jpg".
      levels: Grey levels at the top of the colour scale of changes.

    Yields:
      The table row of each photograph once its files are written, or a failure in its place.
    """
    out = Path(out)

    def write(result: Enhancement) -> dict[str, str | int | float]:
        item, image, output = result.item, result.image, result.output
        name, mask = file_name(item, suffix), item.mask()
        change = pictures.difference(image, output)
        height, width = image.shape[:2]
        caption = (
            f"{item.item_id}  {width} x {height}  judged: {result.judgement}  "
            f"strength {origin['strength']}  model {origin['model']}  "
            "not for diagnosis"
        )
        write_picture(out / ENHANCED / name, output, origin)
        page = pictures.comparison(
            image, output, mask, caption=caption, levels=levels, titles=("before", "after")
        )
        write_picture(out / COMPARISONS / name, page, origin)
        scale = f"mean absolute change of R, G, B: black 0, pale yellow {levels:g} grey levels"
        picture = pictures.difference_map(change, levels)
        write_picture(out / CHANGES / name, picture, {**origin, "scale": scale})
        for which, shown in (("before", image), ("after", output)):
            small = pictures.reduced(shown, enhanced_page.SIDE)
            path = out / enhanced_page.PREVIEWS / enhanced_page.preview_name(item.item_id, which)
            write_picture(path, small, origin)
        inside = change[mask] if mask.any() else np.zeros(1, np.float32)
        row = {
            "id": item.item_id,
            "path": item.path,
            "height": height,
            "width": width,
            "fov": item.field,
            "judged": str(result.judgement),
            "quality": round(result.judgement.quality, 4),
            "mean_change": round(float(inside.mean()), 3),
            "largest_change": round(float(inside.max()), 1),
            "share_changed": round(float((inside > CHANGED).mean()), 4),
        }
        return row | {"label": item.label} | origin

    once = without_repeats(results)
    yield from write_in_order(once, write, lambda result: 4 * result.image.nbytes)
