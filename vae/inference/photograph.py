"""A whole photograph through either kind of model."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vae.inference.blending import reconstruct_blended
from vae.inference.windows import Half, decode_windows, encode_windows, pad_to_factor
from vae.models import grid

# Where JPEG's blocks begin in a photograph is judged by so many parts a side, of so many pixels.
PARTS, PART = 4, 256

Losses = Callable[[np.ndarray], jax.Array]


def phase_of(grid_losses: Losses, image: np.ndarray) -> jax.Array:
    """Where JPEG's blocks begin in a photograph, judged by parts spread over all of it.

    Args:
      grid_losses: uint8 [N, h, w, 3] -> the model's `grid_losses`.
      image: uint8 [H, W, 3], sides divisible by f.

    Returns:
      int32 [1], see `vae.models.grid.choose`.
    """
    sides = [min(side, PART) for side in image.shape[:2]]
    # Of 8 pixels, as the blocks of latents: parts of one phase.
    rows, columns = (
        np.unique(np.linspace(0, (length - side) // grid.BLOCK, PARTS).astype(int)) * grid.BLOCK
        for length, side in zip(image.shape[:2], sides, strict=True)
    )
    parts = [image[y : y + sides[0], x : x + sides[1]] for y in rows for x in columns]
    return grid.choose(grid_losses(np.stack(parts)).sum(axis=0, keepdims=True))


def encode_photograph(
    module: nn.Module,
    encode: Half,
    grid_losses: Losses,
    image: np.ndarray,
    *,
    batch: int = 1,
    window: int | None = None,
) -> Any:
    """Encodes a photograph in windows, as if it were encoded whole.

    Args:
      module: A model of bounded reach.
      encode: uint8 [batch, h, w, 3] -> what `encode_windows` takes; it gets `phase`, too, if the
        model knows of JPEG's grid.
      grid_losses: See `phase_of`.
      image: uint8 [H, W, 3].
      batch: Windows in a call.
      window: Side of a window in pixels; None for what suits the photograph.

    Returns:
      See `encode_windows`.
    """
    image = pad_to_factor(image, module.downsample)
    if module.jpeg_grid:
        encode = functools.partial(encode, phase=phase_of(grid_losses, image))
    f, halo = module.downsample, module.encoder_halo
    return encode_windows(encode, image, factor=f, halo=halo, window=window, batch=batch)


def decode_photograph(
    module: nn.Module,
    decode: Half,
    latents: np.ndarray,
    *,
    batch: int = 1,
    window: int | None = None,
) -> np.ndarray:
    """The other half of `encode_photograph`: latents [h, w, C] -> what `decode_windows` gives."""
    if module.jpeg_grid == grid.BOTH:
        decode = functools.partial(decode, phase=grid.read(latents[None]))
    f, halo = module.downsample, module.decoder_halo
    return decode_windows(decode, latents, factor=f, halo=halo, window=window, batch=batch)


def reconstruct_photograph(
    module: nn.Module,
    encode: Half,
    decode: Half,
    grid_losses: Losses,
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
      encode: uint8 [batch, h, w, 3] -> latents to decode; see `encode_photograph`.
      decode: Latents -> uint8 [batch, h, w, 3]; see `decode_photograph`.
      grid_losses: See `phase_of`.
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
    how = {"batch": batch, "window": window}
    latents = encode_photograph(module, encode, grid_losses, image, **how)
    output = decode_photograph(module, decode, latents, **how)
    return output[: image.shape[0], : image.shape[1]]
