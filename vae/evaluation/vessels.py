"""Vessel maps by a segmentation network whose weights the user gives, and their agreement.

The network is the W-Net of Galdran et al., "State-of-the-art retinal vessel segmentation with
minimalistic models" (2022): two U-Nets of 8, 16 and 32 channels, of which the second sees the image
and the result of the first. Its 68,482 parameters were trained on DRIVE and are not part of this
package: convert them to one .safetensors file with PyTorch's names.
"""

import functools
import os
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vae.data.errors import DataError
from vae.data.fov import FieldOfView

# Side of the map: the field of view is cut out and resized to it, pixels.
SIDE = 512
# Probability from which a pixel belongs to a vessel.
THRESHOLD = 0.42
EPSILON = 1e-5  # of PyTorch's batch normalisation
DEPTH = 2  # halvings of the resolution


Segmentation = Callable[[np.ndarray, FieldOfView], np.ndarray]


def load_segmentation(path: str | os.PathLike) -> Segmentation:
    """Loads the network.

    Args:
      path: A .safetensors file with the tensors of `unet1` and `unet2`.

    Returns:
      A function from a photograph, uint8 [H, W, 3], and its field of view to its vessels, bool
      [SIDE, SIDE].

    Raises:
      DataError: The file is missing, damaged or of another network.
    """
    try:
        weights = {name: jnp.asarray(leaf) for name, leaf in load_file(path).items()}
        probability = jax.jit(functools.partial(_probability, weights))
        jax.eval_shape(probability, jnp.zeros((1, SIDE, SIDE, 3)))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the weights of the vessel network ({error!r})") from error

    def vessels(photograph: np.ndarray, fov: FieldOfView) -> np.ndarray:
        image = _cut(photograph, fov).astype(np.float32) / 255
        return np.asarray(probability(image[None]))[0] > THRESHOLD

    return vessels


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the Dice coefficient of two bool arrays, from 0 to 1; NaN if both are empty."""
    total = a.sum() + b.sum()
    return float(2 * (a & b).sum() / total) if total else float("nan")


def _cut(photograph: np.ndarray, fov: FieldOfView) -> np.ndarray:
    """Cuts out the field of view and resizes it to `SIDE`."""
    height, width = photograph.shape[:2]
    if fov.known:
        inside = fov.mask(height, width)
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        photograph = np.where(inside[..., None], photograph, np.uint8(0))
        photograph = photograph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    smaller = max(photograph.shape[:2]) > SIDE
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(photograph, (SIDE, SIDE), interpolation=method)


def _probability(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Returns the mean probability over the four flips: [B, H, W, 3] in [0, 1] -> [B, H, W]."""
    total = 0.0
    for flips in ((), (1,), (2,), (1, 2)):
        seen = jnp.flip(images, flips)
        first = _unet(weights, "unet1", seen)
        second = _unet(weights, "unet2", jnp.concatenate([seen, first], axis=-1))
        total += jnp.flip(jax.nn.sigmoid(second), flips)
    return total[..., 0] / 4


def _unet(weights, name, x):
    skips = [_block(weights, f"{name}.first", x)]
    for level in range(DEPTH):
        halved = jax.lax.reduce_window(
            skips[-1], -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        skips.append(_block(weights, f"{name}.down_path.{level}", halved))
    x = skips.pop()
    for level in range(DEPTH):
        up = f"{name}.up_path.{level}"
        skip = _layer(weights, f"{up}.conv_bridge_layer.block", 0, skips.pop())
        x = jnp.concatenate([_doubled(weights, f"{up}.up_layer.block.0", x), skip], axis=-1)
        x = _block(weights, f"{up}.conv_layer", x)
    return _conv(weights, f"{name}.final", x)


def _block(weights, name, x):
    short = _norm(weights, f"{name}.shortcut.1", _conv(weights, f"{name}.shortcut.0", x))
    return _layer(weights, f"{name}.block", 3, _layer(weights, f"{name}.block", 0, x)) + short


def _layer(weights, name, position, x):
    x = jax.nn.relu(_conv(weights, f"{name}.{position}", x))
    return _norm(weights, f"{name}.{position + 2}", x)


def _conv(weights, name, x):
    kernel = weights[f"{name}.weight"]
    x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    return x + weights.get(f"{name}.bias", 0.0)


def _doubled(weights, name, x):
    """Transposed convolution of side 2 and stride 2."""
    made = jnp.einsum("bhwc,cdij->bhiwjd", x, weights[f"{name}.weight"])
    batch, height, _, width, _, channels = made.shape
    return made.reshape(batch, 2 * height, 2 * width, channels) + weights[f"{name}.bias"]


def _norm(weights, name, x):
    mean, var, scale, shift = (
        weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + shift
