"""Enhancement of degraded photographs, uint8 arrays, by a model loaded from a path.

The tone stage depends on each pixel, its position and the photograph's thumbnail. Sharpening is one
filter for the whole photograph. The detail stage has a bounded receptive field. Photographs of any
size are therefore processed in strips and windows, with no seam.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import cv2
import flax.linen as nn
import jax
import numpy as np

from vae import weights
from vae.checkpoints.config import ENHANCER, PRIOR
from vae.checkpoints.loading import SavedModel, load_saved, variables_hash
from vae.checkpoints.modules import make_model
from vae.data.errors import DataError
from vae.data.fov import FieldOfView, find_fov
from vae.data.thumbnails import circle_of, make_thumbnail
from vae.inference.arrays import Images, as_images
from vae.inference.judgement import Judgement, judge, refusal
from vae.inference.windows import filter_windows
from vae.metrics import to_float
from vae.models.periodogram import HOP, SIDE, window_powers
from vae.models.tone import THUMBNAIL_CIRCLE, WITHIN, apply_tone

# Height in pixels of the strips that the tone stage processes; a multiple of HOP.
STRIP = 256

COLOURS = ("keep", "correct")

_window_powers = jax.jit(window_powers)


class Enhanced(NamedTuple):
    """An enhanced photograph.

    Attributes:
      image: uint8 [H, W, 3]; unchanged outside a known field of view.
      judgement: The quality of the photograph, and the reasons for what was changed.
    """

    image: np.ndarray
    judgement: Judgement


class EnhancementModel:
    """A trained enhancer.

    Attributes:
      saved: The loaded file: path, config, step, variables.
    """

    def __init__(self, saved: SavedModel):
        self.saved = saved
        self._module = make_model(saved.config)
        variables = jax.device_put(saved.variables)
        self._stages = _Stages(
            *(functools.partial(function, variables) for function in _compiled(self._module))
        )

    def __repr__(self) -> str:
        return f"<vae.EnhancementModel {self.saved.about}>"

    def __reduce__(self):
        return EnhancementModel, (self.saved,)  # The compiled functions cannot be pickled.

    @functools.cached_property
    def hash(self) -> str:
        """Identifies the model in everything made with it."""
        return variables_hash(self.saved.variables)

    def enhance(
        self,
        photograph: Images,
        fov: FieldOfView | None = None,
        *,
        strength: float = 1.0,
        colour: str = "keep",
    ) -> np.ndarray:
        """Enhances a photograph: uint8 [H, W, 3]; see `enhanced`."""
        return self.enhanced(photograph, fov, strength=strength, colour=colour).image

    def enhanced(
        self,
        photograph: Images,
        fov: FieldOfView | None = None,
        *,
        strength: float = 1.0,
        colour: str = "keep",
    ) -> Enhanced:
        """Enhances a photograph and judges its quality.

        Args:
          photograph: uint8 [H, W, 3], sRGB, any size; or a path or a Pillow image.
          fov: Its field of view. None finds it (`vae.data.fov.find_fov`);
            `vae.data.fov.UNKNOWN` enhances the whole picture.
          strength: From 0, no change, to 1.
          colour: "keep" keeps the hue; "correct" also moves the mean colour to that of the
            training photographs.

        Raises:
          ValueError: Wrong shape or dtype, a strength outside [0, 1], or an unknown `colour`.
          vae.data.errors.DataError: The file cannot be read, or no field of view is found.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength {strength}: expected a number from 0 to 1")
        if colour not in COLOURS:
            raise ValueError(f"colour {colour!r}: expected one of {', '.join(COLOURS)}")
        photograph = as_images(photograph, "photograph", (3,))
        fov = _found(photograph) if fov is None else fov
        if refused := refusal(photograph, fov):
            return Enhanced(photograph.copy(), refused)
        height, width = photograph.shape[:2]
        inside = fov.mask(height, width) if fov.known else np.ones((height, width), bool)
        masked = np.where(inside[..., None], photograph, np.uint8(0))
        thumbnail = make_thumbnail(photograph, fov)[None]
        coefficients = self._stages.coefficients(thumbnail)
        toned = self._toned(masked, coefficients, fov)
        if colour == "correct":
            toned = (toned + 1) * self._balance(thumbnail, coefficients) - 1
        sharp = self._sharpened(toned.copy(), inside)
        made = filter_windows(
            self._stages.detail,
            sharp,
            factor=self._module.downsample,
            halo=self._module.detail_halo,
        )
        full = _mixed(photograph, made, inside, 1.0)
        judgement = judge(photograph, np.asarray(coefficients)[0], toned, sharp, made, full, inside)
        image = full if strength == 1 else _mixed(photograph, made, inside, strength)
        return Enhanced(image, judgement)

    def _toned(
        self, photograph: np.ndarray, coefficients: jax.Array, fov: FieldOfView
    ) -> np.ndarray:
        """Applies the tone stage to a photograph that is black outside: float32 [H, W, 3]."""
        height, width = photograph.shape[:2]
        toned = np.empty(photograph.shape, np.float32)
        for top in range(0, height, STRIP):
            strip = photograph[top : top + STRIP]
            # All strips have one shape, so that the stage compiles once.
            strip = np.pad(strip, ((0, STRIP - len(strip)), (0, 0), (0, 0)))
            circle = circle_of(fov, height, width, y=top)[None]
            made = np.asarray(_tone(strip[None], coefficients, circle))[0]
            toned[top : top + STRIP] = made[: height - top]
        return toned

    def _balance(self, thumbnail: np.ndarray, coefficients: jax.Array) -> np.ndarray:
        """Returns the factors of R, G, B that move the mean colour to the typical one."""
        circle = np.array([THUMBNAIL_CIRCLE], np.float32)
        mean = (np.asarray(_tone(thumbnail, coefficients, circle))[0] + 1)[WITHIN[..., 0]].mean(0)
        typical = np.array(self.saved.config.model.typical_colour)
        return (typical / typical.sum() * mean.sum() / np.maximum(mean, 1e-3)).astype(np.float32)

    def _sharpened(self, toned: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Sharpens the result of the tone stage in place and returns it."""
        total, count = np.zeros(()), np.zeros(())
        for top in range(0, len(toned), STRIP):
            rows = slice(top, top + STRIP + SIDE - HOP)
            # All strips have one shape, so that the function compiles once.
            lacking = ((0, STRIP + SIDE - HOP - len(toned[rows])), (0, 0))
            strip = np.pad(toned[rows], (*lacking, (0, 0)))[None]
            found = _window_powers(strip, np.pad(inside[rows], lacking)[None])
            total, count = (
                a + np.asarray(b, np.float64) for a, b in zip((total, count), found, strict=True)
            )
        kernels = np.asarray(
            self._stages.kernels(total.astype(np.float32), count.astype(np.float32))
        )[0]
        for channel, kernel in enumerate(kernels):
            plane = np.ascontiguousarray(toned[..., channel])
            toned[..., channel] += cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        return toned


def load_enhancer(path: str | os.PathLike = weights.ENHANCE) -> EnhancementModel:
    """Loads an enhancer.

    Args:
      path: A path as for `load_model`, of a run of `configs/enhance256.py`; "enhance" loads the
        bundled weights.

    Raises:
      vae.data.errors.DataError: No model, a damaged one, or a model of another kind.
    """
    saved = load_saved(path)
    if saved.config.model.architecture != ENHANCER:
        what = "a prior" if saved.config.model.architecture == PRIOR else "an autoencoder"
        command = "sample" if what == "a prior" else "reconstruct"
        raise DataError(
            f"{path} is {what}, no enhancer: `fundus-vae {command}` takes it; train an "
            "enhancer with --config=configs/enhance256.py"
        )
    return EnhancementModel(saved)


class _Stages(NamedTuple):
    """The compiled functions, with the variables bound."""

    coefficients: Callable  # (thumbnails)
    kernels: Callable  # (powers, count)
    detail: Callable  # (sharpened)


def _compiled(module: nn.Module) -> _Stages:
    """Compiles the functions of `_Stages` with the variables as their first argument."""

    @jax.jit
    def coefficients(variables, thumbnails):
        return module.apply(variables, to_float(thumbnails), method="coefficients")

    @jax.jit
    def kernels(variables, powers, count):
        return module.apply(variables, powers, count, method="kernels")

    @jax.jit
    def detail(variables, sharpened):
        return module.apply(variables, sharpened, method="detail")

    return _Stages(coefficients, kernels, detail)


@jax.jit
def _tone(images, coefficients, circles):
    return apply_tone(to_float(images), coefficients, circles)


def _mixed(image: np.ndarray, made: np.ndarray, inside: np.ndarray, strength: float) -> np.ndarray:
    """Returns image + strength * (made - image) inside, rounded: uint8.

    Only values that are black or white already stay or become so: nothing else is clipped.
    """
    levels = (made + 1) * np.float32(127.5)
    levels = image + np.float32(strength) * (levels - image)
    changed = np.clip(np.rint(levels), np.minimum(image, 1), np.maximum(image, 254))
    return np.where(inside[..., None], changed.astype(np.uint8), image)


def _found(photograph: np.ndarray) -> FieldOfView:
    try:
        return find_fov(photograph)
    except DataError as error:
        raise DataError(f"{error}; fov=vae.data.fov.UNKNOWN enhances the whole picture") from error
