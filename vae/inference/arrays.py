"""Images as callers give them: arrays, paths and Pillow images, checked and converted to uint8."""

import os

import numpy as np
from PIL import Image

from vae.data.images import convert_image, read_image

# The methods of models accept images in these forms.
Images = np.ndarray | str | os.PathLike | Image.Image

SHAPES = {3: "[H, W, 3]", 4: "[N, H, W, 3]"}


def as_images(given: Images, name: str, dimensions: tuple[int, ...] = (4, 3)) -> np.ndarray:
    """Returns images as an array.

    Args:
      given: An array; or the path of an image file or a Pillow image, which are one [H, W, 3].
      name: Name of the argument, for errors.
      dimensions: Numbers of dimensions to accept.

    Returns:
      uint8 [H, W, 3] or [N, H, W, 3], sRGB.

    Raises:
      ValueError: Wrong shape or dtype; the message suggests a conversion for the usual ones.
      vae.data.errors.DataError: The file cannot be read.
    """
    if isinstance(given, str | os.PathLike):
        given = read_image(given)
    elif isinstance(given, Image.Image):
        given = convert_image(given, name)
    images = np.asarray(given)
    if (
        images.dtype != np.uint8
        or images.ndim not in dimensions
        or images.shape[-1] != 3
        or 0 in images.shape[-3:]
    ):
        expected = " or ".join(SHAPES[number] for number in dimensions)
        raise ValueError(
            f"{name}: expected uint8 {expected} with values 0..255, got "
            f"{getattr(given, 'dtype', type(given).__name__)} {list(images.shape)}"
            f"{_hint(images, name)}"
        )
    return images


def _hint(images: np.ndarray, name: str) -> str:
    """Suggests conversions for the usual mistakes; "" if none fits."""
    hints = []
    if images.ndim in (3, 4) and images.shape[-1] != 3 and images.shape[-3] == 3:
        order = (0, 2, 3, 1) if images.ndim == 4 else (1, 2, 0)
        hints.append(f"the channels come first: {name}.transpose{order} puts them last")
    elif images.ndim in (3, 4) and images.shape[-1] == 4:
        hints.append(f"there is an alpha channel: {name}[..., :3] drops it")
    elif images.ndim == 2 or (images.ndim in (3, 4) and images.shape[-1] == 1):
        grey = f"{name}[..., None]" if images.ndim == 2 else name
        hints.append(f"it is grey: np.repeat({grey}, 3, axis=-1) has three channels")
    if images.dtype.kind == "f" and images.size and np.isfinite(images).all():
        low, high = images.min(), images.max()
        if low >= 0 and high <= 1:
            scaled = f"{name} * 255"
        elif low >= -1 and high <= 1:
            scaled = f"({name} + 1) * 127.5"
        else:
            scaled = name
        hints.append(f"for its values give np.rint({scaled}).clip(0, 255).astype(np.uint8)")
    return "".join(f"; {hint}" for hint in hints)
