"""Evaluation of whole photographs, encoded and decoded in windows or tiles.

Border padding affects most pixels of a training crop and almost none of a photograph. Metrics of
tiles therefore do not show how good a model is on photographs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vae.data.errors import DataError
from vae.data.fov import fov_mask
from vae.data.images import read_image
from vae.data.manifest import PhotographRow
from vae.data.thumbnails import make_thumbnail
from vae.evaluation.evaluate import Evaluation
from vae.inference.blending import reconstruct_blended
from vae.inference.codec import compiled
from vae.inference.compare import compare
from vae.inference.pictures import reduced
from vae.inference.windows import Half, decode_windows, encode_windows
from vae.multihost import sum_over_processes

# Longer side of a kept picture of a photograph, pixels.
PICTURE_SIDE = 900


@dataclasses.dataclass(frozen=True)
class PhotographEvaluation:
    """The metrics of whole photographs.

    Attributes:
      rows: One dict per photograph: photograph, patient, label, height, width (pixels, as tiled),
        ssim, psnr (dB, inside the field of view), tile_ssim, tile_psnr (means over its tiles),
        tiles (number of tiles).
      notes: Photographs that are not measured, with the reason and the remedy.
      pictures: Pictures by photograph, reduced to `PICTURE_SIDE`, if requested: the original and
        the reconstruction, uint8 [h, w, 3], and their absolute difference in grey levels,
        float32, computed before the reduction.
    """

    rows: list[dict[str, Any]]
    notes: list[str]
    pictures: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Returns the means of ssim, psnr, tile_ssim and tile_psnr; {} without photographs."""
        if not self.rows:
            return {}
        names = ("ssim", "psnr", "tile_ssim", "tile_psnr")
        return {name: float(np.mean([row[name] for row in self.rows])) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"means": self.means, "rows": self.rows, "notes": self.notes}


def whole_photographs(
    module: nn.Module,
    variables: Any,
    photographs: Sequence[PhotographRow],
    evaluation: Evaluation,
    *,
    mesh: Mesh,
    thumbnails: Mapping[str, np.ndarray] | None = None,
    window: int | None = None,
    pictures: bool = False,
) -> PhotographEvaluation:
    """Reconstructs whole photographs and measures them inside their fields of view.

    All processes of the mesh call it together, and each reads the files.

    Args:
      module: An autoencoder for images of any size or for tiles of one size.
      variables: Variables of the module, on the mesh.
      photographs: Photographs to measure, for example all of the split.
      evaluation: Evaluation of the tiles; photographs without a counted tile are skipped.
      mesh: Mesh with the axes data and fsdp.
      thumbnails: Thumbnail of each photograph by id. A file with another one is not measured: it
        has changed, or a table from elsewhere names a file of this machine. None accepts all.
      window: Side of a window in pixels; None for a side that suits the photograph.
      pictures: If true, reduced pictures are kept.

    Returns:
      The metrics; the notes name files that cannot be read.
    """
    encode, decode = compiled(module, variables, mesh)
    of_tiles = _tile_means(evaluation)
    measurable = [p for p in photographs if p.photograph in of_tiles]
    rows, problems, kept = [], [], {}
    for photograph in measurable:
        try:
            if photograph.masked:
                raise DataError(f"{photograph.path}: its field-of-view mask is not stored")
            image, problem = read_as_tiled(photograph, thumbnails), None
        except DataError as error:
            image, problem = None, str(error)
        # Processes compute together, so all of them skip a file that one cannot read.
        if sum_over_processes(np.array([image is None], np.float64))[0]:
            problems.append(problem or f"{photograph.path}: cannot be read by another process")
            continue
        mask = fov_mask(photograph.fov, image)
        image[~mask] = 0
        output = _reconstruct(module, encode, decode, image, batch=mesh.size, window=window)
        ssim, psnr = compare(image, output, mask)
        if pictures:
            kept[photograph.photograph] = _reduced(image, np.where(mask[..., None], output, 0))
        rows.append(
            {
                "photograph": photograph.photograph,
                "patient": photograph.patient,
                "label": photograph.label,
                "height": image.shape[0],
                "width": image.shape[1],
                "ssim": ssim,
                "psnr": psnr,
                **of_tiles[photograph.photograph],
            }
        )
    return PhotographEvaluation(rows, _notes(problems, len(measurable)), kept)


def read_as_tiled(
    photograph: PhotographRow, thumbnails: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Reads a photograph and resizes it to the size at which its tiles were cut.

    Args:
      photograph: Its row in the dataset.
      thumbnails: See `whole_photographs`.

    Returns:
      uint8 [height, width, 3].

    Raises:
      DataError: The file is missing or damaged, or its size or its thumbnail has changed.
    """
    image = read_image(photograph.path)
    if photograph.scale != 1:
        size = (photograph.width, photograph.height)
        # The same interpolation as in make-tiles.
        method = cv2.INTER_AREA if photograph.scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, size, interpolation=method)
    if image.shape[:2] != (photograph.height, photograph.width):
        raise DataError(
            f"{photograph.path} is {image.shape[0]} x {image.shape[1]} and was "
            f"{photograph.height} x {photograph.width} when its tiles were cut"
        )
    if thumbnails is not None:
        _check_content(photograph, image, thumbnails.get(photograph.photograph))
    return image


def _check_content(row: PhotographRow, image: np.ndarray, expected: np.ndarray | None) -> None:
    """Raises DataError if the thumbnail of a photograph is not the one of its dataset."""
    found = make_thumbnail(image, row.fov)
    # Decoders differ by a level.
    if expected is None or np.abs(found.astype(int) - expected).mean() > 1:
        raise DataError(f"{row.path}: is another photograph than the one that was cut")


def _reconstruct(
    module: nn.Module,
    encode: Half,
    decode: Half,
    image: np.ndarray,
    *,
    batch: int,
    window: int | None,
) -> np.ndarray:
    """Encodes and decodes a photograph in seamless windows, or in blended tiles if the model takes
    tiles of one size only."""
    if module.tile_size is not None:
        return reconstruct_blended(
            lambda tiles: decode(encode(tiles).mean), image, tile=module.tile_size, batch=batch
        )
    how = {"factor": module.downsample, "window": window, "batch": batch}
    latents = encode_windows(lambda part: encode(part).mean, image, halo=module.encoder_halo, **how)
    output = decode_windows(decode, latents, halo=module.decoder_halo, **how)
    return output[: image.shape[0], : image.shape[1]]


def _tile_means(evaluation: Evaluation) -> dict[str, dict[str, float | int]]:
    tiles = evaluation.tiles
    counted = tiles["windows"] > 0
    names, index = np.unique(tiles["photograph"][counted], return_inverse=True)
    count = np.bincount(index)
    ssim, psnr = (np.bincount(index, tiles[k][counted]) / count for k in ("ssim", "psnr"))
    return {
        str(name): {"tile_ssim": float(s), "tile_psnr": float(p), "tiles": int(n)}
        for name, s, p, n in zip(names, ssim, psnr, count, strict=True)
    }


def _reduced(image: np.ndarray, output: np.ndarray) -> list[np.ndarray]:
    """Returns original, reconstruction and difference for `PhotographEvaluation.pictures`."""
    layers = (image, output, np.abs(image.astype(np.float32) - output))
    return [reduced(layer, PICTURE_SIDE) for layer in layers]


def _notes(problems: list[str], count: int) -> list[str]:
    if not count:
        return ["no whole photographs: no photographs.csv lists the photographs of these tiles"]
    if not problems:
        return []
    return [
        f"{len(problems)} of {count} whole photographs are not measured, the first because "
        f"{problems[0]}; run where the files are, or repeat make-tiles and build with their new "
        "paths"
    ]
