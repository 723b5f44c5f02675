"""Metrics of images of any size, computed block by block."""

import math

import numpy as np
import pytest

from vae import metrics
from vae.inference import compare as module
from vae.inference.compare import compare


def pair(height, width):
    """Smooth waves, and the same with noise."""
    rows, columns = np.indices((height, width))
    waves = [np.sin(rows / 7 + columns / period) for period in (5, 9, 13)]
    image = 120 + 60 * np.stack(waves, axis=-1)
    noise = np.random.default_rng(0).normal(0, 5, image.shape)
    return image.astype(np.uint8), np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_blocks_give_the_metrics_of_the_whole(block):
    image, output = pair(83, 101)
    rows, columns = np.indices(image.shape[:2])
    mask = (rows - 40) ** 2 + (columns - 50) ** 2 < 41**2
    batch = (image[None], output[None], mask[None])
    expected = (
        float(metrics.masked_ssim(batch[0] / 255.0, batch[1] / 255.0, batch[2])[0]),
        float(metrics.masked_psnr(*batch)[0]),
    )
    assert compare(image, output, mask, block) == pytest.approx(expected, abs=1e-4)


def test_one_shape_is_compiled_for_all_sizes():
    module._block_sums.clear_cache()
    for size in ((256, 256), (300, 150), (64, 64), (5, 700)):
        compare(*pair(*size), np.ones(size, bool))
    assert module._block_sums._cache_size() == 1


def test_images_without_windows_give_nan():
    image, output = pair(40, 40)
    mask = np.zeros((40, 40), bool)
    assert all(map(math.isnan, compare(image, output, mask)))
    mask[20, :] = True  # pixels, but no whole window
    ssim, psnr = compare(image, output, mask)
    assert math.isnan(ssim) and 20 < psnr < 50
