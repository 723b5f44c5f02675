"""Bytes and quality of quantised latents compared with JPEG, on a sample of images."""

import dataclasses
import functools

import numpy as np

from vae.data.inputs import Inputs, Item
from vae.evaluation.jpeg import decode_jpeg, encode_jpeg, nearest_quality
from vae.inference.compare import compare
from vae.inference.latent_store import LatentGroup, LatentStore
from vae.inference.latents import decode_range
from vae.inference.model import Model

# Largest sample, in images and in pixels of all images: takes a minute on two cores.
SAMPLE_ITEMS = 64
SAMPLE_PIXELS = 24 << 20


@dataclasses.dataclass(frozen=True)
class Rate:
    """Size and quality of one codec, as means over the sample.

    Attributes:
      name: Name in the table.
      bytes: Bytes an image; NaN where the codec has no rate.
      ssim: SSIM inside the field of view.
      psnr: PSNR inside the field of view, dB.
    """

    name: str
    bytes: float
    ssim: float
    psnr: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of quantised latents with JPEG; `str` formats it as a table.

    Attributes:
      items: Number of images in the sample.
      total_bytes: Bytes of all latents of the store, with the item ends and steps for decoding.
      total_items: Number of images in the store.
      rows: Quantised latents, JPEG of equal bytes, JPEG of equal SSIM, unquantised latents.
      unmatched: True if JPEG does not reach the SSIM of the latents at any quality.
    """

    items: int
    total_bytes: int
    total_items: int
    rows: tuple[Rate, ...]
    unmatched: bool

    def __str__(self) -> str:
        lines = [
            f"{self.total_items} images in {self.total_bytes:,} bytes,"
            f" {self.total_bytes / self.total_items:,.0f} each. A sample of {self.items}:",
            f"{'':28}{'bytes':>10}{'SSIM':>9}{'PSNR':>9}",
        ]
        for row in self.rows:
            size = "" if np.isnan(row.bytes) else f"{row.bytes:,.0f}"
            lines.append(f"{row.name:28}{size:>10}{row.ssim:9.4f}{row.psnr:6.2f} dB")
        if self.unmatched:
            lines.append("JPEG does not reach this SSIM even at quality 100.")
        return "\n".join(lines)


def compare_with_jpeg(model: Model, store: LatentStore, inputs: Inputs) -> Comparison:
    """Decodes a sample spread evenly over a quantised store and compares it with JPEG.

    Sizes are complete: JPEG files with headers and tables, latents with the position of each item
    and the quantisation steps.

    Args:
      model: The model that encoded the store.
      store: A quantised store.
      inputs: The encoded images, in the same order.
    """
    sample = [(group, number) for group in store.groups for number in _spread(group, len(store))]
    steps = 4 * len(store.progress["steps"])
    originals, masks, reconstructions, means, sizes = [], [], [], [], []
    for group, number in sample:
        (row,), (packed,) = group.rows(number, number + 1), group.packed(number, number + 1)
        item = next(inputs.read(row.number))
        if not isinstance(item, Item) or item.item_id != row.item_id:
            continue  # The file has changed or vanished since it was encoded.
        image = item.image if store.about["keep_border"] else item.inside()
        originals.append(image)
        masks.append(item.mask())
        reconstructions.append(decode_range(model, group, number, number + 1)[0])
        means.append(model.reconstruct(image))
        sizes.append(len(packed) + 8 + steps / len(store))
    quantised_rate = _rate("quantised latents", sizes, originals, reconstructions, masks)

    @functools.cache
    def jpeg(quality: int) -> Rate:
        files = [encode_jpeg(image, quality) for image in originals]
        pictures = [decode_jpeg(file) for file in files]
        sizes = [len(file) for file in files]
        return _rate(f"JPEG q{quality}", sizes, originals, pictures, masks)

    same_bytes = jpeg(nearest_quality(lambda quality: jpeg(quality).bytes, quantised_rate.bytes))
    same_ssim = jpeg(nearest_quality(lambda quality: jpeg(quality).ssim, quantised_rate.ssim))
    mean = _rate("unquantised latents", [np.nan], originals, means, masks)
    rows = (
        quantised_rate,
        dataclasses.replace(same_bytes, name=f"{same_bytes.name}, as many bytes"),
        dataclasses.replace(same_ssim, name=f"{same_ssim.name}, as good in SSIM"),
        mean,
    )
    total = sum(size for size in store.progress["bytes"].values()) + 8 * len(store) + steps
    return Comparison(
        len(originals), total, len(store), rows, same_ssim.ssim < quantised_rate.ssim - 1e-3
    )


def _spread(group: LatentGroup, items: int) -> list[int]:
    """Returns the numbers of a group's sampled items: evenly spaced, in proportion to its size."""
    wanted = max(1, round(SAMPLE_ITEMS * len(group) / items))
    fit = max(1, int(SAMPLE_PIXELS * len(group) / items / (group.height * group.width)))
    places = np.linspace(0, len(group) - 1, min(wanted, fit, len(group)))
    return sorted({int(place) for place in places})


def _rate(
    name: str,
    sizes: list[float],
    originals: list[np.ndarray],
    pictures: list[np.ndarray],
    masks: list[np.ndarray],
) -> Rate:
    scores = [compare(*triple) for triple in zip(originals, pictures, masks, strict=True)]
    ssim, psnr = np.nanmean(np.array(scores, np.float64), axis=0)
    return Rate(name, float(np.mean(sizes)), float(ssim), float(psnr))
