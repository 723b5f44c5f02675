"""A whole photograph through either kind of model."""

import flax.linen as nn
import numpy as np

from vae.inference.blending import reconstruct_blended
from vae.inference.windows import Half, reconstruct_windows


def reconstruct_photograph(
    module: nn.Module,
    encode: Half,
    decode: Half,
    image: np.ndarray,
    *,
    batch: int = 1,
    window: int | None = None,
) -> np.ndarray:
    """Encodes and decodes a photograph of any size.

    A model of bounded reach takes it in windows with enough halo: the result is that of the whole
    photograph, with no seam. One that takes tiles of one size takes it as tiles that overlap by
    half and are blended.

    Args:
      module: Says which it is, and its reach.
      encode: uint8 [batch, h, w, 3] -> latents to decode.
      decode: Latents -> uint8 [batch, h, w, 3].
      image: uint8 [H, W, 3].
      batch: Windows or tiles in a call.
      window: Side of a window in pixels; None for what suits the photograph.

    Returns:
      uint8 [H, W, 3].
    """
    if module.tile_size is not None:
        return reconstruct_blended(
            lambda tiles: decode(encode(tiles)), image, tile=module.tile_size, batch=batch
        )
    return reconstruct_windows(
        encode,
        decode,
        image,
        factor=module.downsample,
        encoder_halo=module.encoder_halo,
        decoder_halo=module.decoder_halo,
        window=window,
        batch=batch,
    )
