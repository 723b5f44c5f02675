"""SSIM and PSNR of images of any size, computed in blocks to bound memory."""

import jax
import jax.numpy as jnp
import numpy as np

from vae import metrics

# Side of a block in SSIM positions. On a CPU the filter of a block, a product with a small matrix,
# is seven times as fast as the filter of a large image; a tile of 256 pixels has four blocks.
BLOCK = 128
# Pixels that neighbouring blocks share, because SSIM windows cross the border between them.
OVERLAP = metrics.SSIM_WINDOW - 1
# Blocks per call.
_BATCH = 4


def compare(
    image: np.ndarray, output: np.ndarray, mask: np.ndarray, block: int = BLOCK
) -> tuple[float, float]:
    """Returns SSIM and PSNR of an image inside a mask.

    Args:
      image: uint8 [H, W, 3].
      output: uint8 [H, W, 3].
      mask: bool [H, W], the field of view.
      block: Side of a block, in pixels.

    Returns:
      Mean SSIM over the windows that lie wholly inside the mask, and PSNR in dB over its pixels;
      NaN if there are none.
    """
    side = block + OVERLAP
    corners = [
        (y, x)
        for y in range(0, mask.shape[0], block)
        for x in range(0, mask.shape[1], block)
        if mask[y : y + side, x : x + side].any()
    ]
    total = np.zeros(4)
    for first in range(0, len(corners), _BATCH):
        # All calls have one shape; the padding lies outside the mask and does not count.
        blocks = [
            np.zeros((_BATCH, side, side, *a.shape[2:]), a.dtype) for a in (image, output, mask)
        ]
        for slot, (y, x) in enumerate(corners[first : first + _BATCH]):
            for filled, array in zip(blocks, (image, output, mask), strict=True):
                part = array[y : y + side, x : x + side]
                filled[slot, : part.shape[0], : part.shape[1]] = part
        total += np.asarray(jax.device_get(_block_sums(*jax.device_put(blocks))), np.float64).sum(0)
    ssim_sum, windows, squares, pixels = total
    mse = squares / pixels if pixels else np.nan
    psnr = 20 * np.log10(255.0) - 10 * np.log10(np.maximum(mse, metrics.MIN_MSE))
    return float(ssim_sum / windows) if windows else float("nan"), float(psnr)


@jax.jit
def _block_sums(image: jax.Array, output: jax.Array, mask: jax.Array) -> jax.Array:
    """Sums SSIM, windows, squared errors and pixels of each block: float32 [B, 4]."""
    inside = metrics.window_inside(mask)
    a, b = image.astype(jnp.float32), output.astype(jnp.float32)
    ssim = metrics.ssim_map(a / 255.0, b / 255.0).mean(axis=-1)
    core = mask[:, :-OVERLAP, :-OVERLAP]
    squares = jnp.square(a - b)[:, :-OVERLAP, :-OVERLAP].mean(axis=-1)
    sums = (jnp.where(inside, ssim, 0.0), inside, jnp.where(core, squares, 0.0), core)
    return jnp.stack([jnp.sum(x, axis=(1, 2), dtype=jnp.float32) for x in sums], axis=-1)
