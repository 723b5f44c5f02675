"""Reconstruction of photographs of any size by a tile model with an unbounded receptive field.

No halo makes the outputs of such tiles agree. Tiles therefore overlap by half and are blended: each
pixel is a weighted mean of up to four tiles, and the weights fall to zero at the edges of a tile.
"""

import numpy as np

from vae.inference.windows import Half, map_windows


def tile_origins(length: int, tile: int) -> list[int]:
    """Returns where tiles start along one axis: evenly spread, overlapping by at least half.

    Args:
      length: Length of the axis, at least `tile`.
      tile: Side of a tile, even.

    Returns:
      Ascending origins: the first tile starts at 0, the last ends at `length`.
    """
    steps = -(-(length - tile) // (tile // 2))
    return [round(i * (length - tile) / max(steps, 1)) for i in range(steps + 1)]


def blend_weights(origins: list[int], tile: int, length: int) -> np.ndarray:
    """Returns the weight of each tile at each pixel along one axis: normalised squared sines.

    Args:
      origins: From `tile_origins`.
      tile: Side of a tile.
      length: Length of the axis.

    Returns:
      float32 [tiles, tile]; at each pixel the weights of the tiles that contain it sum to one.
    """
    rise = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    total = np.zeros(length)
    for origin in origins:
        total[origin : origin + tile] += rise
    return np.stack([rise / total[o : o + tile] for o in origins]).astype(np.float32)


def pad_to_tile(image: np.ndarray, tile: int) -> np.ndarray:
    """Extends [H, W, C] by reflection at the bottom and right until no side is below `tile`."""
    height, width = image.shape[:2]
    missing = (max(0, tile - height), max(0, tile - width))
    if not any(missing):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")


def reconstruct_blended(
    reconstruct: Half, image: np.ndarray, *, tile: int, batch: int = 1
) -> np.ndarray:
    """Reconstructs an image of any size from overlapping tiles.

    Args:
      reconstruct: uint8 [batch, tile, tile, 3] -> the same.
      image: uint8 [H, W, 3]; an image smaller than a tile is extended by reflection.
      tile: Side of a tile, pixels.
      batch: Tiles per call.

    Returns:
      uint8 of the shape of `image`.
    """
    padded = pad_to_tile(image, tile)
    height, width = padded.shape[:2]
    rows, columns = tile_origins(height, tile), tile_origins(width, tile)
    of_row = dict(zip(rows, blend_weights(rows, tile, height), strict=True))
    of_column = dict(zip(columns, blend_weights(columns, tile, width), strict=True))
    blended = np.zeros(padded.shape, np.float32)
    tiles = map_windows(
        reconstruct,
        lambda y, x: padded[y : y + tile, x : x + tile],
        [(y, x) for y in rows for x in columns],
        batch,
    )
    for (y, x), output in tiles:
        weights = of_row[y][:, None] * of_column[x][None, :]
        blended[y : y + tile, x : x + tile] += weights[..., None] * output
    return np.rint(blended[: image.shape[0], : image.shape[1]]).astype(np.uint8)
