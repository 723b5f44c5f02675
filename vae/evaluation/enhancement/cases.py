"""Whole photographs of a split, and the cases in which they are degraded."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping

import cv2
import jax
import numpy as np
import simplejpeg

from vae.configs.enhance256 import get_config
from vae.data.fov import FieldOfView
from vae.data.manifest import PhotographRow
from vae.data.thumbnails import centre_of
from vae.evaluation.photographs import read_as_tiled
from vae.models.degradations import DEGRADATIONS, GAMMA, FovGeometry, degrade
from vae.models.pairs import draw_severities

# Photographs are reduced to this longer side, pixels.
SIDE = 768
# Severity of a degradation alone: clearly bad, not the worst of the training.
SEVERITY = 2 / 3
# Distance from the edge of the field of view at which metrics begin, pixels.
RIM = 10
CLEAN, SEVERAL = "clean", "several"


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A clean photograph, reduced to `SIDE`.

    Attributes:
      image: uint8 [H, W, 3].
      fov: Its field of view.
      inside: bool [H, W], the field of view; all pixels if it is unknown.
      measured: bool [H, W], the field of view without `RIM`.
      name: Id of the photograph.
      patient: Name of the patient.
      label: Label of the photograph.
    """

    image: np.ndarray
    fov: FieldOfView
    inside: np.ndarray
    measured: np.ndarray
    name: str
    patient: str
    label: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """Pictures of one photograph for display: uint8 [S, S, 3] each.

    Attributes:
      caption: Plain text.
      before: The degraded photograph.
      after: The enhanced photograph.
      clean: The clean photograph.
    """

    caption: str
    before: np.ndarray
    after: np.ndarray
    clean: np.ndarray


def read_photograph(
    row: PhotographRow, side: int = SIDE, thumbnails: Mapping[str, np.ndarray] | None = None
) -> Photograph:
    """Reads and reduces a photograph; `thumbnails` as for `vae.evaluation.photographs`.

    Raises:
      DataError: The file is missing, damaged or changed.
    """
    image, fov = read_as_tiled(row, thumbnails), row.fov
    factor = side / max(image.shape[:2])
    if factor < 1:
        size = tuple(round(factor * n) for n in image.shape[1::-1])
        image, fov = cv2.resize(image, size, interpolation=cv2.INTER_AREA), fov.scaled(factor)
    shape = image.shape[:2]
    inside = fov.mask(*shape) if fov.known else np.ones(shape, bool)
    kernel = np.ones((2 * RIM + 1,) * 2, np.uint8)
    measured = cv2.erode(np.pad(inside, 1).astype(np.uint8), kernel)[1:-1, 1:-1] > 0
    image = np.where(inside[..., None], image, np.uint8(0))
    return Photograph(image, fov, inside, measured, row.photograph, row.patient, row.label)


# ---- Degradations of the training ---------------------------------------------------------------


def degrade_trained(photograph: Photograph, name: str) -> np.ndarray:
    """Degrades a photograph by a name of `DEGRADATIONS` at `SEVERITY`, or by several at once.

    The random draws depend on the photograph and the name only. "several" draws severities as the
    training does, with at least one degradation.

    Returns:
      uint8 [H, W, 3].
    """
    key = jax.random.key(_number(f"{photograph.name}:{name}"))
    severities = np.array([SEVERITY * (name == one) for one in DEGRADATIONS], np.float32)
    shape = photograph.image.shape[:2]
    # Few shapes for all photographs, so that the function is seldom compiled.
    side = 128 * -(-max(shape) // 128)
    padding = [(0, side - n) for n in shape]
    made = _degrade(
        np.pad(photograph.image, [*padding, (0, 0)]),
        np.pad(photograph.inside, padding),
        np.float32(centre_of(photograph.fov, *shape)),
        severities,
        name == SEVERAL,
        key,
    )
    return np.rint(np.asarray(made)[: shape[0], : shape[1]] * 255).astype(np.uint8)


@jax.jit
def _degrade(image, inside, centre, severities, several, key):
    which, how = jax.random.split(key)
    drawn = draw_severities(which, _settings())
    severities = {
        name: jax.numpy.where(several, drawn.get(name, 0.0), severities[i])
        for i, name in enumerate(DEGRADATIONS)
    }
    place = FovGeometry(jax.numpy.int32(0), jax.numpy.int32(0), *centre)
    return degrade(image / jax.numpy.float32(255), inside, place, severities, how)


@functools.cache
def _settings():
    settings = get_config().degrade
    settings.clean = settings.alone = 0.0
    settings.probability = 0.4
    return settings


# ---- Degradations of the evaluation only --------------------------------------------------------
# Their formulas are not those of `vae.models.degradations`, from which the enhancer learned.


def _gamma(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darkens by an exponent of 1.8, as a wrong tone curve does."""
    del rng
    return 255 * (image / 255) ** 1.8


def _underexposed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Removes 75% of the light."""
    del rng
    return image * 0.25 ** (1 / GAMMA)


def _shadow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Removes up to 80% of the light in a soft disc, as a misplaced pupil does."""
    height, width = image.shape[:2]
    y, x = rng.uniform(0.2, 0.8, 2) * (height, width)
    away = np.hypot(np.arange(height)[:, None] - y, np.arange(width) - x) / (0.35 * width)
    return image * ((1 - 0.8 * np.exp(-(away**2))) ** (1 / GAMMA))[..., None]


def _gaussian(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurs by a Gaussian with a standard deviation of 2 pixels."""
    del rng
    return cv2.GaussianBlur(image, (0, 0), 2)


def _grain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds noise of 8 grey levels that neighbouring pixels share, as demosaicing makes it."""
    noise = cv2.GaussianBlur(rng.normal(size=image.shape).astype(np.float32), (0, 0), 0.8)
    return image + 8 * noise / noise.std()


def _encoded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Encodes as JPEG of quality 30 with halved colour resolution."""
    del rng
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), 30, colorsubsampling="420")
    return simplejpeg.decode_jpeg(data)


OTHERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "underexposed": _underexposed,
    "gamma": _gamma,
    "shadow": _shadow,
    "gaussian_blur": _gaussian,
    "correlated_noise": _grain,
    "re-encoded": _encoded,
}
# Degradations that the enhancer learned, without those that it does not try to undo.
TRAINED = tuple(name for name in DEGRADATIONS if name not in ("colour_cast", "spots"))
CASES = (CLEAN, SEVERAL, *TRAINED, *OTHERS)


def degraded(photograph: Photograph, case: str) -> np.ndarray:
    """Degrades a photograph by a name of `CASES`: uint8 [H, W, 3], unchanged outside."""
    if case == CLEAN:
        return photograph.image
    if case not in OTHERS:
        return degrade_trained(photograph, case)
    rng = np.random.default_rng(_number(f"{photograph.name}:{case}"))
    made = np.clip(np.rint(OTHERS[case](photograph.image, rng)), 0, 255).astype(np.uint8)
    return np.where(photograph.inside[..., None], made, photograph.image)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
