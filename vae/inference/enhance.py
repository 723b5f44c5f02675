"""Enhancement of degraded photographs and tiles, uint8 arrays, by a model loaded from a path.

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
import jax.numpy as jnp
import numpy as np

from vae import weights
from vae.checkpoints.config import ENHANCER, PRIOR
from vae.checkpoints.loading import SavedModel, load_saved, variables_hash
from vae.checkpoints.modules import make_model
from vae.data.errors import DataError
from vae.data.fov import FieldOfView, find_fov
from vae.data.thumbnails import circle_of, make_thumbnail
from vae.inference.arrays import Images, as_images
from vae.inference.batches import batch_size, in_batches
from vae.inference.one_colour import NOTE, is_one_colour
from vae.inference.windows import filter_windows
from vae.metrics import to_float, to_uint8
from vae.models.layers import depth_to_space, space_to_depth
from vae.models.periodogram import HOP, SIDE, window_powers

# Height in pixels of the strips that the tone stage processes; a multiple of HOP.
STRIP = 256

_window_powers = jax.jit(window_powers)


class Enhanced(NamedTuple):
    """An enhanced photograph.

    Attributes:
      image: uint8 [H, W, 3]; unchanged outside a known field of view.
      uncertainty: float32 [H, W], standard deviation of the result at strength 1 in grey levels,
        root mean square over R, G, B; 0 outside a known field of view. It combines the deviation
        of each pixel over posterior samples with the usual error of the tone of the whole
        photograph (`vae.models.tone.expected_error`, with the model's `tone_rms_error`). None
        without samples.
      note: Reason why nothing was changed: a photograph of one colour (`vae.inference.one_colour`),
        for which the model is not trained; its uncertainty is 0. "" if it was enhanced.
    """

    image: np.ndarray
    uncertainty: np.ndarray | None
    note: str


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
        self, photograph: Images, fov: FieldOfView | None = None, *, strength: float = 1.0
    ) -> np.ndarray:
        """Enhances a photograph: uint8 [H, W, 3]; see `enhanced`."""
        return self.enhanced(photograph, fov, strength=strength).image

    def enhanced(
        self,
        photograph: Images,
        fov: FieldOfView | None = None,
        *,
        strength: float = 1.0,
        samples: int = 0,
        seed: int = 0,
    ) -> Enhanced:
        """Enhances a photograph and estimates the uncertainty of the result.

        Args:
          photograph: uint8 [H, W, 3], sRGB, any size; or a path or a Pillow image.
          fov: Its field of view. None finds it (`vae.data.fov.find_fov`);
            `vae.data.fov.UNKNOWN` enhances the whole picture.
          strength: From 0, no change, to 1.
          samples: Number of posterior samples for the uncertainty: at least 2, or 0 for none. Each
            takes as long as the result.
          seed: Seed of the samples. The noise of a latent does not depend on the windows.

        Raises:
          ValueError: Wrong shape or dtype, a strength outside [0, 1], or one sample.
          vae.data.errors.DataError: The file cannot be read, or no field of view is found.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength {strength}: expected a number from 0 to 1")
        if samples < 0 or samples == 1:
            raise ValueError(f"samples {samples}: expected at least 2, or 0")
        photograph = as_images(photograph, "photograph", (3,))
        fov = _found(photograph) if fov is None else fov
        if is_one_colour(photograph, fov):
            blank = np.zeros(photograph.shape[:2], np.float32) if samples else None
            return Enhanced(photograph.copy(), blank, NOTE)
        height, width = photograph.shape[:2]
        inside = fov.mask(height, width) if fov.known else np.ones((height, width), bool)
        masked = np.where(inside[..., None], photograph, np.uint8(0))
        thumbnail = make_thumbnail(photograph, fov)[None]
        sharp = self._sharpened(self._toned(masked, thumbnail, fov), inside)
        image = _mixed(photograph, self._windows(sharp), inside, strength)
        if not samples:
            return Enhanced(image, None, "")
        deviation = self._deviation(sharp, samples, seed)
        tone = np.asarray(self._stages.tone_error(thumbnail))[0]
        return Enhanced(image, np.where(inside, np.hypot(deviation, tone), np.float32(0)), "")

    def enhance_tiles(
        self,
        images: np.ndarray,
        thumbnails: np.ndarray,
        circles: np.ndarray,
    ) -> np.ndarray:
        """Enhances tiles separately, which is less exact than enhancing their photographs.

        A tile shows less of the blur, and pixels near its border have less context.

        Args:
          images: uint8 [N, S, S, 3], sides divisible by 8.
          thumbnails: uint8 [N, THUMBNAIL, THUMBNAIL, 3], thumbnails of their photographs
            (`vae.data.thumbnails.make_thumbnail`).
          circles: float32 [N, 3], FOV circle of each tile (`vae.data.thumbnails.circle_of`).

        Returns:
          uint8 [N, S, S, 3].
        """
        size = min(batch_size(images.shape[1] * images.shape[2]), len(images))
        made = in_batches(self._stages.all, images, thumbnails, circles, size=size, fixed=True)
        return np.array(to_uint8(made))

    def tile_uncertainty(
        self,
        images: np.ndarray,
        thumbnails: np.ndarray,
        circles: np.ndarray,
        *,
        samples: int = 8,
    ) -> np.ndarray:
        """Estimates `Enhanced.uncertainty` of separate tiles; arguments as for `enhance_tiles`.

        Returns:
          float32 [N, S, S], grey levels.
        """
        f, channels = self._module.downsample, self._module.latent_channels
        rng = np.random.default_rng(0)
        found = []
        for image, thumbnail, circle in zip(images, thumbnails, circles, strict=True):
            toned = self._stages.tone(image[None], thumbnail[None], circle[None])
            sharp = self._stages.sharpen(toned, circle[None])
            made = []
            for _ in range(samples):
                noise = _noise_plane(rng, image.shape, f, channels)[None]
                planes = jnp.concatenate([sharp, noise], axis=-1)
                made.append(self._stages.detail(planes)[0] * 127.5)
            square = np.square(np.std(made, axis=0, ddof=1)).mean(axis=-1)
            found.append(np.sqrt(square).astype(np.float32))
        tones = [np.asarray(self._stages.tone_error(thumbnail[None])) for thumbnail in thumbnails]
        return np.hypot(np.stack(found), np.stack(tones)[:, :, None])

    def _toned(self, photograph: np.ndarray, thumbnail: np.ndarray, fov: FieldOfView) -> np.ndarray:
        """Applies the tone stage to a photograph that is black outside: float32 [H, W, 3]."""
        height, width = photograph.shape[:2]
        toned = np.empty(photograph.shape, np.float32)
        for top in range(0, height, STRIP):
            strip = photograph[top : top + STRIP]
            # All strips have one shape, so that the stage compiles once.
            strip = np.pad(strip, ((0, STRIP - len(strip)), (0, 0), (0, 0)))
            circle = circle_of(fov, height, width, y=top)[None]
            made = np.asarray(self._stages.tone(strip[None], thumbnail, circle))[0]
            toned[top : top + STRIP] = made[: height - top]
        return toned

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

    def _deviation(self, sharp: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """Returns the standard deviation over posterior samples, RMS over RGB: float32 [H, W]."""
        mean = np.zeros_like(sharp)
        square = np.zeros_like(sharp)
        for number in range(samples):
            made = self._windows(sharp, np.random.default_rng([seed, number])) * 127.5
            # Welford (1962) avoids the difference of large sums.
            change = made - mean
            mean += change / (number + 1)
            square += change * (made - mean)
        return np.sqrt(square.mean(axis=-1) / (samples - 1))

    def _windows(self, sharp: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Applies the detail stage; with `rng`, to one sample of the posterior."""
        f = self._module.downsample
        if rng is not None:
            noise = _noise_plane(rng, sharp.shape, f, self._module.latent_channels)
            sharp = np.concatenate([sharp, noise], axis=-1)
        return filter_windows(self._stages.detail, sharp, factor=f, halo=self._module.detail_halo)


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

    tone: Callable  # (images, thumbnails, circles)
    tone_error: Callable  # (thumbnails)
    kernels: Callable  # (powers, count)
    sharpen: Callable  # (toned, circles)
    detail: Callable  # (planes): the sharpened image, and noise
    all: Callable  # (images, thumbnails, circles)


def _compiled(module: nn.Module) -> _Stages:
    """Compiles the functions of `_Stages` with the variables as their first argument."""

    @jax.jit
    def tone(variables, images, thumbnails, circles):
        return module.apply(
            variables, to_float(images), to_float(thumbnails), circles, method="tone"
        )

    @jax.jit
    def tone_error(variables, thumbnails):
        return module.apply(variables, to_float(thumbnails), method="tone_error")

    @jax.jit
    def kernels(variables, powers, count):
        return module.apply(variables, powers, count, method="kernels")

    @jax.jit
    def sharpen(variables, toned, circles):
        return module.apply(variables, toned, circles, method="sharpen")

    @jax.jit
    def detail(variables, planes):
        sharp, noise = planes[..., :3], None
        if planes.shape[-1] > 3:
            noise = space_to_depth(planes[..., 3:], module.downsample)
            noise = noise[..., : module.latent_channels]
        return module.apply(variables, sharp, noise, method="detail")

    @jax.jit
    def everything(variables, images, thumbnails, circles):
        return module.apply(variables, to_float(images), to_float(thumbnails), circles)

    return _Stages(tone, tone_error, kernels, sharpen, detail, everything)


def _noise_plane(
    rng: np.random.Generator, shape: tuple[int, ...], f: int, channels: int
) -> np.ndarray:
    """Draws standard normal noise for all latents.

    It is stored as image channels, so that windows cut image and noise at the same places.

    Returns:
      float32 [H, W, n]: `space_to_depth` gives n * f * f >= `channels` values per latent.
    """
    height, width = (-(-side // f) for side in shape[:2])
    planes = -(-channels // f**2)
    noise = np.zeros((1, height, width, planes * f**2), np.float32)
    noise[..., :channels] = rng.standard_normal((height, width, channels), np.float32)
    plane = np.asarray(depth_to_space(jnp.asarray(noise), f))[0]
    return plane[: shape[0], : shape[1]]


def _mixed(image: np.ndarray, made: np.ndarray, inside: np.ndarray, strength: float) -> np.ndarray:
    """Returns image + strength * (made - image) inside, rounded: uint8."""
    levels = (made + 1) * np.float32(127.5)
    levels = image + np.float32(strength) * (levels - image)
    changed = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.where(inside[..., None], changed, image)


def _found(photograph: np.ndarray) -> FieldOfView:
    try:
        return find_fov(photograph)
    except DataError as error:
        raise DataError(f"{error}; fov=vae.data.fov.UNKNOWN enhances the whole picture") from error
