"""The JPEG baseline: its quality at the same number of bytes as the model."""

import functools
import heapq
import io
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from vae.evaluation.scoring import jpeg_step
from vae.evaluation.split import Batch, map_over_split
from vae.multihost import sum_over_processes
from vae.sharding import put_batch

# Tiles for the search of the quality; their mean size is within about 2% of a large split's.
SAMPLE_TILES = 512


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encodes uint8 [H, W, 3] as JPEG: 4:2:0, optimised Huffman tables, quality 1 to 100."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return file.getvalue()


def decode_jpeg(encoded: bytes) -> np.ndarray:
    """Decodes a JPEG file to uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


class TileSample:
    """A random sample of tiles drawn during one pass; the same for the same split and seed.

    Attributes:
      limit: Maximum number of tiles.
      seed: Seed of the draw.
    """

    def __init__(self, limit: int, seed: int):
        self.limit = limit
        self.seed = seed
        self._heap: list[tuple[int, int, np.ndarray]] = []

    def add(self, images: np.ndarray, tile_ids: np.ndarray, rows: np.ndarray) -> None:
        """Offers tiles: uint8 [n, H, W, 3], str [n], int [n] (positions in the split)."""
        for image, tile_id, row in zip(images, tile_ids, rows, strict=True):
            # The tiles with the smallest hashes stay: this needs no random state and no count.
            entry = (-zlib.crc32(f"{self.seed}/{tile_id}".encode()), int(row), image)
            if len(self._heap) < self.limit:
                heapq.heappush(self._heap, (*entry[:2], image.copy()))
            elif entry[:2] > self._heap[0][:2]:
                heapq.heapreplace(self._heap, (*entry[:2], image.copy()))

    def tiles(self) -> list[tuple[int, np.ndarray]]:
        """Returns (position, image) of each tile, in the order of the split."""
        return [(row, image) for _, row, image in sorted(self._heap, key=lambda entry: entry[1])]


def nearest_quality(mean_bytes: Callable[[int], float], target: float) -> int:
    """Finds the JPEG quality whose size is nearest to a target, by bisection.

    Args:
      mean_bytes: Function from quality, 1 to 100, to size; increasing.
      target: The wanted size; outside the range, the nearer end is taken.

    Returns:
      Quality, 1 to 100.
    """
    low, high = 1, 100  # The answer is in low..high.
    while high - low > 1:
        middle = (low + high) // 2
        if mean_bytes(middle) < target:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda quality: abs(mean_bytes(quality) - target))


def match_quality(sample: TileSample, target_bytes: np.ndarray) -> int:
    """Finds the quality at which the sample's tiles take as many bytes as their targets in total.

    Both totals are over the same tiles, so a sample of unusually smooth tiles does no harm.

    Args:
      sample: This process's part of the sample.
      target_bytes: float [N], bytes for each tile of the split; NaN for tiles that do not count.

    Returns:
      Quality, 1 to 100; the same on every process.
    """
    tiles = [(image, target_bytes[row]) for row, image in sample.tiles()]
    tiles = [(image, target) for image, target in tiles if not np.isnan(target)]
    images = [image for image, _ in tiles]
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        @functools.cache
        def total_bytes(quality: int) -> float:
            sizes = pool.map(lambda image: len(encode_jpeg(image, quality)), images)
            return float(sum_over_processes(np.array([sum(sizes)], np.float64))[0])

        target = np.array([sum(target for _, target in tiles)], np.float64)
        return nearest_quality(total_bytes, float(sum_over_processes(target)[0]))


def jpeg_scores(batches: Iterable[Batch], mesh: Mesh, quality: int) -> dict[str, np.ndarray]:
    """Measures JPEG at one quality: `jpeg.ssim`, `jpeg.psnr` (dB), `jpeg.bytes`, float64 [N].

    Bytes are file sizes, including headers and tables (about 600 bytes).
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def step(batch, placed, first_row):
            files = list(pool.map(lambda image: encode_jpeg(image, quality), batch["image"]))
            decoded = np.stack(list(pool.map(decode_jpeg, files)))
            sizes = np.array([len(file) for file in files], np.int32)
            sent = put_batch(mesh, {"decoded": decoded, "sizes": sizes})
            return jpeg_step(mesh)(placed["image"], sent["decoded"], placed["fov"], sent["sizes"])

        scores, _ = map_over_split(batches, mesh, step)
    return scores
