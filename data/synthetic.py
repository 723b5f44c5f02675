"""Procedural fundus photographs, drawn in milliseconds, for tests and demonstrations."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vae.data.images import write_image


def fundus_photograph(
    seed: int | Sequence[int], size: int = 256, *, left: bool = False, noise: float = 2.0
) -> np.ndarray:
    """Draws a synthetic fundus photograph, a function of the arguments.

    It shows an orange-red disc with vignetting and choroidal texture, an optic disc with its cup, a
    macula, branching vessels and sensor noise, on a nearly black surround.

    Args:
      seed: Seed for `numpy.random.default_rng`; decides colours, positions and vessels.
      size: Side of the square picture in pixels.
      left: Puts the optic disc on the left, as in a left eye.
      noise: Standard deviation of the sensor noise in grey levels, 0 to 255.

    Returns:
      uint8 `[size, size, 3]`.
    """
    rng = np.random.default_rng(seed)
    centre = (size - 1) / 2 + rng.uniform(-0.01, 0.01, 2) * size
    radius = 0.47 * size
    y, x = (np.mgrid[:size, :size] - centre[:, None, None]) / radius
    disc_x, disc_y = 0.45 + rng.uniform(-0.05, 0.05), rng.uniform(-0.08, 0.08)

    def spot(spot_x: float, spot_y: float, width: float, sharpness: float = 1.0) -> np.ndarray:
        distance = ((x - spot_x) ** 2 + (y - spot_y) ** 2) / width**2
        return np.exp(-(distance**sharpness))[..., None]

    colour = np.array([200.0, 95.0, 45.0]) * rng.uniform([0.85, 0.75, 0.6], [1.1, 1.15, 1.3])
    texture = sum(_smooth_noise(rng, size, radius * s, 0.05) for s in (0.3, 0.08, 0.025))
    light = 1.0 - rng.uniform(0.25, 0.45) * ((x + rng.uniform(-0.2, 0.2)) ** 2 + y**2)
    image = colour * (np.maximum(light, 0.35) * (1.0 + texture))[..., None]
    image *= 1.0 - np.array([0.25, 0.4, 0.4]) * spot(disc_x - 0.85, disc_y + 0.05, 0.18)
    image *= 1.0 - np.array([0.25, 0.6, 0.55]) * _vessels(rng, size, centre, radius, disc_x, disc_y)
    bright = np.array([250.0, 205.0, 130.0])
    image += (bright - image) * 0.75 * spot(disc_x, disc_y, 0.15, 3.0)
    image += (bright * [1.0, 1.1, 1.3] - image) * 0.6 * spot(disc_x, disc_y, 0.06)

    inside = x**2 + y**2 <= 1.0
    image = cv2.GaussianBlur(np.where(inside[..., None], image, 0.0), (0, 0), size / 1200 + 0.3)
    image = np.where(inside[..., None], np.maximum(image, 30.0), 2.0)
    image += rng.normal(0.0, noise, image.shape) * np.where(inside, 1.0, 0.3)[..., None]
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image[:, ::-1]) if left else image


def write_photographs(
    directory: str | os.PathLike,
    *,
    patients: int = 6,
    eyes: int = 2,
    size: int = 256,
    seed: int = 0,
    labels: Sequence[str] = ("synthetic",),
) -> list[Path]:
    """Writes `<directory>/<label>/p<number>_<R|L>.png`; the labels alternate between patients.

    Returns:
      The files in the order of writing.
    """
    written = []
    for patient in range(patients):
        folder = Path(directory, labels[patient % len(labels)])
        folder.mkdir(parents=True, exist_ok=True)
        for eye in range(eyes):
            image = fundus_photograph((seed, patient, eye), size, left=bool(eye % 2))
            written.append(folder / f"p{patient:02d}_{'RL'[eye % 2]}{eye // 2 or ''}.png")
            write_image(written[-1], image)
    return written


def _smooth_noise(
    rng: np.random.Generator, size: int, width: float, amplitude: float
) -> np.ndarray:
    """Returns Gaussian noise with spots of `width` pixels and the given standard deviation."""
    coarse = max(4, round(size / max(width, 1.0)) * 2)
    noise = rng.normal(size=(coarse, coarse)).astype(np.float32)
    field = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return amplitude * field / field.std()


def _vessels(
    rng: np.random.Generator,
    size: int,
    centre: np.ndarray,
    radius: float,
    disc_x: float,
    disc_y: float,
) -> np.ndarray:
    """Returns vessel density in [0, 1], `[size, size, 1]`: four arcades that bend and branch."""
    canvas = np.zeros((size, size), np.uint8)
    # (x, y, direction, bend per step, width in pixels, steps left); lengths in FOV radii.
    arcades = ((2.3, 0.05), (-2.3, -0.05), (0.9, -0.03), (-0.9, 0.03))
    growing = [
        (disc_x, disc_y, angle + rng.uniform(-0.2, 0.2), -bend, 0.035 * radius, 34)
        for angle, bend in arcades
        for _ in range(2)
    ]
    step = 0.05
    while growing:
        x, y, angle, bend, width, steps = growing.pop()
        points = []
        for i in range(steps):
            points.append((x, y))
            angle += -bend * 0.8 + rng.normal(0.0, 0.07)
            x, y = x + step * np.cos(angle), y + step * np.sin(angle)
            if i > 3 and width > 0.6 and rng.random() < 0.13:
                side = rng.choice([-1.0, 1.0])
                growing.append((x, y, angle + 0.7 * side, 0.02 * side, 0.6 * width, steps - i))
                width *= 0.85
        pixels = np.array(points) * radius + centre[::-1]
        # Fixed-point coordinates with 4 fractional bits keep thin vessels smooth.
        line = np.rint(pixels * 16).astype(np.int32)[:, None]
        cv2.polylines(canvas, [line], False, 255, max(1, round(width)), cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), 0.4 + size / 1500).astype(np.float64)[..., None] / 255
